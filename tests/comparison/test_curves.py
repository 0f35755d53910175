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


def test_change_in_percent_of_the_size_of_the_first_value():
    assert change(-2.0, -1.0) == 50.0
    assert change(0.0, 1.0) is None
    assert change(None, 1.0) is None


def test_six_digits_of_a_metric_are_shown_and_beta_is_that_of_the_run():
    result, _ = run(0.12, right(50), right(50))
    result.epochs[0].metrics["kl"] = 0.123456789
    result.epochs[1].metrics["kl"] = 0.123456788
    curves = curves_of(result)
    assert curves.values["kl"] == (0.123457, 0.123457)
    assert curves.trends["kl"] == "constant"
    assert curves.values["beta"] == (0.12, 0.12)
    assert curves.values["ppo_loss"] == (None, None)
