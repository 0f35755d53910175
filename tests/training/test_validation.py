"""Validation figures against numpy."""

import numpy as np
import pytest
from helpers.trainings import untrained_selector

from lever_mlflow.training.validation import exact_kl, picks_changed, validate_selector


def test_loss_and_expected_reward_by_hand(problem):
    selector = untrained_selector(2)
    validation = validate_selector(selector, problem.table(problem.groups[:3]))
    losses, rewards = [], []
    for group in problem.groups[:3]:
        batch = problem.batch([group])
        logprobs_G = selector.logprobs(batch.query_BD, batch.candidates_BND, batch.pointers_BGK)[0].double().detach().numpy()
        rewards_G = group.rewards_G()
        losses.append(-(np.exp(rewards_G) / np.exp(rewards_G).sum()) @ logprobs_G)
        rewards.append((np.exp(logprobs_G) / np.exp(logprobs_G).sum()) @ rewards_G)
    assert validation["val/loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert validation["val/expected_reward"] == pytest.approx(np.mean(rewards), abs=1e-5)


def test_a_selector_differs_from_another_but_not_from_itself(problem):
    selector, other = untrained_selector(2), untrained_selector(3)
    table = problem.table(problem.groups)
    assert picks_changed(selector, selector, table) == exact_kl(selector, selector, table) == 0.0
    changed = []
    for group in problem.groups:
        batch = problem.batch([group])
        picks, other_picks = (model.greedy(batch.query_BD, batch.candidates_BND, 2).tolist() for model in (selector, other))
        changed.append(picks != other_picks)
    assert 0 < np.mean(changed) < 1
    assert picks_changed(selector, other, table) == pytest.approx(np.mean(changed))
