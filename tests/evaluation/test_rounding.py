import pytest

from lever_mlflow.evaluation.rounding import decimals, interval_text


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (69.975, {}, "69.98"),  # the float is 69.97499999999999; formatting it would give 69.97
        (100 * 27.99 / 40, {}, "69.98"),
        (0.125, {}, "0.13"),  # exact in binary; rounding half to even would give 0.12
        (57.0, {}, "57.00"),
        (-0.001, {"signed": True}, "0.00"),
        (1.205, {"signed": True}, "+1.21"),
        (-1.205, {"signed": True}, "-1.21"),
        (54.5, {"digits": 0}, "55"),
        (99.95, {"digits": 1}, "100.0"),
    ],
)
def test_half_is_rounded_up(value, options, text):
    assert decimals(value, **options) == text


def test_an_interval():
    assert interval_text((-0.001, 17.505)) == "[0.00, +17.51]"
    assert interval_text((71.5, 85.825), signed=False) == "[71.50, 85.83]"
