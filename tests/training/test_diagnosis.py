"""The diagnosis, each rule with the smallest change that makes it hold, and the training curves."""

import io

import pytest
from PIL import Image

from lever_mlflow.training.curves import training_curves
from lever_mlflow.training.diagnosis import diagnose, taught_nothing

GRPO = {
    "val/expected_reward": 1.21,
    "val/expected_reward_start": 1.2,
    "train/frac_reward_zero_std": 0.5,
    "val/kl_exact": 0.02,
    "val/picks_changed": 0.05,
    "train/loss": -0.01,
    "train/kl": 0.02,
}


@pytest.mark.parametrize(
    ("changes", "beginning"),
    [
        (
            {},
            "learning: expected reward 1.2000 to 1.2100 at epoch 1; 8 of 160 queries changed their picks (rule: a gain",
        ),
        ({"val/expected_reward": 1.2009}, "not learning: expected reward 1.2000 to 1.2009 at epoch 1; 8 of 160"),
        ({"val/picks_changed": 0.0}, "policy did not move: 0 of 160 queries changed their picks"),
        ({"val/kl_exact": 4.1}, "diverging: KL 4.1 from the start"),
        ({"val/kl_exact": 4.1, "train/frac_reward_zero_std": 0.96}, "no signal: 96% of groups have equal rewards"),
        ({"train/frac_reward_zero_std": 0.94}, "learning"),
    ],
)
def test_rules_of_grpo(changes, beginning):
    assert diagnose([{**GRPO, **changes}], 160, 1).startswith(beginning)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"val/picks_changed": 0.0}, "the training changed no picks on its validation queries"),
        ({"train/frac_reward_zero_std": 0.95}, "the training found no signal, as 95% of its groups have equal rewards"),
        ({"train/frac_reward_zero_std": 0.94}, ""),
        ({"val/kl_exact": 4.1, "val/expected_reward": 0.1}, ""),  # it moved, if to no good
    ],
)
def test_what_taught_nothing(changes, reason):
    assert taught_nothing({**GRPO, **changes}) == reason


def test_rce_is_measured_from_the_untrained_selector():
    start = {"val/expected_reward_start": 1.0, "train/frac_reward_zero_std": 0.5}
    history = [{"val/expected_reward": reward, **start} for reward in (1.0, 1.2, 1.1)]
    assert diagnose(history, 160, 2) == "learning: expected reward 1.0000 to 1.2000 at epoch 2 (rule: a gain of 0.001 or more)"
    assert diagnose(history[:1], 160, 1).startswith("not learning: expected reward 1.0000 to 1.0000 at epoch 1 (rule")


def test_curves_have_a_panel_per_kind_of_metric():
    figure = training_curves([GRPO, {**GRPO, "train/loss": -0.02}], "GRPO beta 0.12", [1, 2])
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["training loss", "reward on validation queries", "KL from the reference policy", "share"]
    marked = [line.get_xdata()[0] for line in figure.axes[0].get_lines() if line.get_label().startswith("_")]
    assert marked == [1, 2]
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_label() == "train/loss"]
    assert list(line.get_ydata()) == [-0.01, -0.02]
    buffer = io.BytesIO()
    figure.savefig(buffer)
    assert Image.open(buffer).size[0] > 600
