import json
from dataclasses import replace

import numpy as np
import pytest

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.settings import REWARD_MODES
from lever_mlflow.trials.columns import check_scores
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rewards import Reward, rewards

CORRECT, ACCURACY = np.array([1, 0, 1]), np.array([1.0, 0.3, 0.6])
GT_PROB, REL_SCORE = np.array([0.5, 0.1, 0.2]), np.array([0.9, -0.4, 0.7])


def of(reward):
    return rewards(CORRECT, ACCURACY, reward, gt_prob=GT_PROB, rel_score=REL_SCORE).tolist()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("hard_plus_soft", [2.0, 0.3, 1.6]),
        ("hard_only", [1.0, 0.0, 1.0]),
        ("soft_only", [1.0, 0.3, 0.6]),
        ("separated", [3.0, 0.3, 2.6]),
        ("separated_gtprob", [2.5, 0.1, 2.2]),
        ("hard_plus_gtprob", [1.5, 0.1, 1.2]),
        ("hard_plus_gtprob_plus_rel", [1.5, 0.06, 1.2]),  # 0.1 + 0.1 * -0.4; right answers get nothing of rel
    ],
)
def test_modes(mode, expected):
    assert of(Reward(mode)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("mode", "weights", "expected"),
    [
        ("hard_plus_soft", {"hard": 2.0, "soft": 0.5}, [2.5, 0.15, 2.3]),
        ("soft_only", {"soft": 3.0}, [3.0, 0.9, 1.8]),
        ("separated", {"hard": 0.5}, [2.0, 0.3, 1.6]),  # 2 * 0.5 + accuracy
        ("separated_gtprob", {"gtprob": 2.0}, [3.0, 0.2, 2.4]),
        ("hard_plus_gtprob", {"hard": 0.0}, [0.5, 0.1, 0.2]),
        ("hard_plus_gtprob_plus_rel", {"hard": 2.0, "rel": 1.0}, [2.5, -0.3, 2.2]),
    ],
)
def test_weights(mode, weights, expected):
    assert of(Reward(mode, weights)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reward", "bounds"),
    [
        (Reward("hard_plus_soft"), (0.0, 2.0)),
        (Reward("hard_only"), (0.0, 1.0)),
        (Reward("separated"), (0.0, 3.0)),
        (Reward("separated_gtprob", {"hard": 2.0}), (0.0, 5.0)),
        (Reward("hard_plus_gtprob_plus_rel"), (-0.1, 2.0)),  # wrong with rel -1; right with probability 1
        (Reward("hard_plus_gtprob_plus_rel", {"rel": 1.5}), (-1.5, 2.5)),  # wrong with probability 1 and rel 1
    ],
)
def test_bounds_are_the_worst_and_the_best_trial(reward, bounds):
    assert reward.bounds == pytest.approx(bounds)


def test_no_trial_is_outside_the_bounds():
    rng = np.random.default_rng(0)
    correct, accuracy, gt_prob = rng.integers(0, 2, 500), rng.random(500), rng.random(500)
    for mode in REWARD_MODES:
        reward = Reward(mode, {term: float(rng.random()) for term in Reward(mode).terms})
        values = rewards(correct, accuracy, reward, gt_prob=gt_prob, rel_score=rng.uniform(-1, 1, 500))
        low, high = reward.bounds
        assert low <= values.min() < values.max() <= high


def test_a_label_names_a_reward_and_equal_rewards_have_one():
    assert Reward("hard_plus_soft", {"soft": 1.0}).label == "hard_plus_soft"
    assert Reward("hard_plus_soft", {"soft": 1.0}) == Reward()
    weighted = Reward("hard_plus_gtprob_plus_rel", {"rel": 0.1, "gtprob": 0.5, "hard": 2.0})
    assert weighted.label == "hard_plus_gtprob_plus_rel:hard=2,gtprob=0.5"
    assert Reward.of_label(weighted.label) == weighted
    assert weighted.options == {
        "reward_mode": "hard_plus_gtprob_plus_rel",
        "reward_weights": {"hard": 2.0, "gtprob": 0.5},
    }
    assert Reward("hard_only").options == {"reward_mode": "hard_only"}


@pytest.mark.parametrize(
    ("mode", "weights", "message"),
    [
        ("soft", {}, "reward_mode='soft' is not one of hard_plus_soft, "),
        ("hard_only", {"soft": 2.0}, "reward_mode=hard_only has no term 'soft'; its terms are hard$"),
        ("hard_plus_soft", {"sfot": 2.0}, "reward_mode=hard_plus_soft has no term 'sfot'; its terms are hard, soft$"),
        ("hard_plus_soft", {"soft": -1.0}, "soft=-1.0; a weight is a number of at least 0"),
        ("hard_plus_soft", {"soft": float("nan")}, "soft=nan; a weight is a number of at least 0"),
        ("hard_only", {"hard": 0.0}, "all weights of reward_mode=hard_only are 0"),
    ],
)
def test_rewards_that_there_are_not_are_refused(mode, weights, message):
    with pytest.raises(ParameterError, match=message):
        Reward(mode, weights)


def test_missing_scores_are_errors():
    with pytest.raises(ParameterError, match=r"needs vqa_gt_prob on every trial; .* -e rollout -P gt_prob=true`, or"):
        rewards(CORRECT, ACCURACY, Reward("hard_plus_gtprob"), gt_prob=np.array([0.1, np.nan, 0.2]))
    with pytest.raises(ParameterError, match="hard_plus_gtprob_plus_rel needs vqa_rel_score on every trial"):
        rewards(CORRECT, ACCURACY, Reward("hard_plus_gtprob_plus_rel"), gt_prob=GT_PROB)


def trial(pointer, **scores):
    return {"pointer": pointer, "gen_method": "beam", "vqa_correct": 1, "vqa_acc_score": 1.0, **scores}


def test_the_error_about_missing_scores_names_query_trial_and_field(tmp_path):
    first = [trial([1, 2], vqa_gt_prob=0.5, vqa_rel_score=-0.25), trial([3, 4], vqa_gt_prob=0.5, vqa_rel_score=0.5)]
    second = [trial([5, 6], vqa_gt_prob=0.5), trial([7, 8])]
    content = {"0": {"pointer_candidates": first}, "12": {"pointer_candidates": second}}
    (tmp_path / "rl.json").write_text(json.dumps(content))
    groups = load_rl_data(tmp_path / "rl.json").groups
    assert [t.rel_score for group in groups for t in group.trials] == [-0.25, 0.5, None, None]
    check_scores(groups, Reward("separated"))
    check_scores(groups[:1], Reward("hard_plus_gtprob_plus_rel"))
    place = r"query 12: the trial with pointer \[2, 3\] has no vqa_gt_prob, but reward_mode=separated_gtprob needs"
    with pytest.raises(ParameterError, match=place):
        check_scores(groups, Reward("separated_gtprob"))
    with pytest.raises(ParameterError, match=r"query 12: the trial with pointer \[0, 1\] has no vqa_rel_score"):
        check_scores([replace(groups[1], trials=groups[1].trials[:1])], Reward("hard_plus_gtprob_plus_rel"))
