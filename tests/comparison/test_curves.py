import pytest
from helpers.comparison_samples import right, run

from lever_mlflow.comparison.curves import change, curves_of, trend


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], "unknown"), ([1.0, None], "unknown"), ([1.0, None, 2.0], "rising"), ([2.0, 1.0, 0.5], "falling"),
        ([1.0, 1.0], "constant"), ([1.0, 1.0, 2.0], "not_falling"), ([2.0, 1.0, 1.0], "not_rising"), ([1.0, 2.0, 1.0], "mixed"),
    ],
)  # fmt: skip
def test_trend(values, expected):
    assert trend(values) == expected


@pytest.mark.parametrize(
    ("name", "before", "after", "expected"),
    [
        ("kl", 0.2, 0.3, pytest.approx(50.0)),  # percent
        ("advantage_std", 2.0, 1.0, -50.0),
        ("kl", 0.0, 1.0, None),
        ("kl", None, 1.0, None),
        ("train_loss", -2.0, -1.0, 1.0),  # in the loss's own unit, whatever its sign
        ("ppo_loss", -0.5, 0.25, 0.75),
        ("val_loss", 0.0, 1.0, 1.0),
        ("val_loss", 1.0, None, None),
    ],
)
def test_changes_are_in_percent_where_a_metric_cannot_be_negative(name, before, after, expected):
    assert change(name, before, after) == expected


def test_six_digits_of_a_metric_are_shown_and_beta_is_that_of_the_run():
    result, _ = run(0.12, right(50), right(50))
    result.epochs[0].metrics["kl"] = 0.123456789
    result.epochs[1].metrics["kl"] = 0.123456788
    curves = curves_of(result)
    assert curves.values["kl"] == (0.123457, 0.123457)
    assert curves.trends["kl"] == "constant"
    assert curves.values["beta"] == (0.12, 0.12)
    assert curves.values["ppo_loss"] == (None, None)
