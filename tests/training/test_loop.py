"""The training loop: learning rate, early stopping, and losses that are not finite."""

import math

import numpy as np
import pytest
from helpers.trainings import run_grpo, run_rce

from lever_mlflow.exceptions import LeverError
from lever_mlflow.training.loop import lr_factor


@pytest.mark.parametrize(
    ("kind", "factors", "last"),
    [
        ("constant", [1, 1, 1], 1.0),
        ("linear", [1, 0.5, 0], 1 / 24),
        ("cosine", [1, 0.5, 0], (1 + math.cos(math.pi * 23 / 24)) / 2),
    ],
)
def test_learning_rate_over_all_steps(problem, kind, factors, last):
    assert [lr_factor(kind, progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx(factors)
    lr = run_grpo(problem, epochs=2, lr_scheduler=kind)[-1].metrics["train/lr"]
    assert lr == pytest.approx(1e-3 * last)  # at the last of 24 steps, 23 are done


def test_a_quarter_along_the_cosine():
    assert lr_factor("cosine", 0.25) == pytest.approx((1 + 2**-0.5) / 2)


def test_early_stopping_ends_without_gain(problem):
    assert len(run_grpo(problem, epochs=8, lr=1e-12, early_stopping=2)) == 3  # nothing moves: the first epoch, and two more
    rewards = [epoch.metrics["val/expected_reward"] for epoch in run_rce(problem, epochs=8, lr=3e-3)]
    gains = [later > max(rewards[: i + 1]) for i, later in enumerate(rewards[1:])]
    assert True in gains
    first_without = gains.index(False) + 2 if False in gains else 8
    assert len(run_rce(problem, epochs=8, lr=3e-3, early_stopping=1)) == first_without


def test_a_loss_that_is_not_finite_names_the_queries(problem):
    features_SD = problem.features_SD.copy()
    features_SD[problem.groups[0].query_id] = np.nan
    with pytest.raises(LeverError, match=r"loss is nan on queries \[0\]; choose a smaller lr"):
        run_rce(problem._replace(features_SD=features_SD), batch_size=1, val_share=0.01)
