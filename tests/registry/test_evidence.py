import itertools

import numpy as np
import pytest
from helpers.evaluation_samples import evaluation_of, records_of

from lever_mlflow.evaluation.records import EvaluationRecords
from lever_mlflow.exceptions import DataError
from lever_mlflow.registry.evidence import (
    Condition,
    Evaluated,
    Gain,
    covers,
    gain,
    gain_over_champion,
    gain_over_random,
    gain_over_similarity,
    gate_condition,
    metrics,
    unknown,
)
from lever_mlflow.settings import PromotionSettings


def evaluated(policies, policy="epoch 1"):
    records = records_of(policies)
    return Evaluated(evaluation_of(len(records.frame)), records, policy)


def test_gain_is_paired_over_questions_and_averaged_over_shots_and_draws():
    accuracies = np.array([[1.0, 0.6, 0.0], [1.0, 0.0, 0.3]])
    draws = np.array([[[0.0, 0.6, 0.0], [0.3, 0.0, 0.0]], [[1.0, 0.0, 0.0], [0.3, 0.0, 0.6]]])
    over = gain(evaluated({"epoch 1": accuracies}), evaluated({"random": draws}, "random"))
    differences = np.array([1.0 - 0.4, 0.3 - 0.15, 0.15 - 0.15])  # by hand: 1.6 / 4, 0.6 / 4 and 0.6 / 4
    assert over.points == pytest.approx(100 * differences.mean())
    signs = np.array(list(itertools.product([-1, 1], repeat=3)))
    extreme = np.abs(signs @ differences) >= differences.sum() - 1e-9
    assert over.p_value == pytest.approx(extreme.mean()) == 0.5
    assert (over.low, over.high) == pytest.approx((0.0, 60.0))  # of 27 equally likely resamples the outermost
    assert over.questions == 3
    assert str(over) == "+25.00 points [0.00, +60.00], p = 0.500, 3 questions"


def test_gain_on_other_questions_or_of_an_unknown_policy_is_refused():
    first = evaluated({"epoch 1": np.ones((2, 3))})
    for other in (evaluated({"epoch 1": np.ones((2, 2))}), first._replace(policy="epoch 2")):
        with pytest.raises(DataError, match="do not cover the same questions; run the evaluate step again with rerun=true"):
            gain(first, other)


@pytest.mark.parametrize(
    ("tags", "met", "says"),
    [
        ({"gate": "pass"}, True, "data gate: pass"),
        ({"gate": "warning"}, True, "data gate: warning"),
        ({"gate": "critical", "gate_override": "a is 0"}, False, "data gate: critical; gate_override: a is 0"),
        ({"gate": "pass", "start_gate_override": "b is 1"}, False, "data gate: pass; start_gate_override: b is 1"),
        ({}, False, "data gate: missing"),
    ],
)
def test_gate(tags, met, says):
    assert gate_condition(tags)[:3] == ("gate", met, says)


@pytest.mark.parametrize(
    ("gains", "losses", "met"), [(6, 0, True), (5, 0, False), (0, 6, False), (12, 2, True), (9, 3, False), (0, 0, False)]
)
def test_better_than_random_takes_a_test_and_an_interval(gains, losses, met):
    """p of a sign test: 2 / 64 for 6 : 0, 2 / 32 for 5 : 0, 0.013 for 12 : 2, 0.146 for 9 : 3."""
    accuracies, random = np.full((2, 40), 0.3), np.full((2, 40), 0.3)
    accuracies[:, :gains], accuracies[:, 40 - losses :] = 1.0, 0.3
    random[:, 40 - losses :] = 1.0
    assert gain_over_random(evaluated({"epoch 1": accuracies, "random": random})).met == met


BETTER_ASKED = ": not significantly better, as similarity=better asks; p < 0.05 and an interval above 0 are needed"


@pytest.mark.parametrize(
    ("gains", "losses", "similarity", "met", "reason"),
    [
        (6, 0, "better", True, ""),
        (5, 0, "better", False, BETTER_ASKED),
        (0, 0, "better", False, BETTER_ASKED),
        (0, 6, "better", False, BETTER_ASKED),
        (0, 0, "not-worse", True, " (similarity=not-worse refuses only a significant loss)"),
        (0, 5, "not-worse", True, " (similarity=not-worse refuses only a significant loss)"),
        (0, 6, "not-worse", False, " (similarity=not-worse refuses only a significant loss): significantly worse"),
        (6, 0, "not-worse", True, " (similarity=not-worse refuses only a significant loss)"),
    ],
)
def test_over_the_strongest_similarity_baseline(gains, losses, similarity, met, reason):
    """p of a sign test: 2 / 64 for 6 : 0, 2 / 32 for 5 : 0; the weaker baselines would let everything pass."""
    accuracies, similar = np.full((2, 40), 0.3), np.full((2, 40), 0.3)
    accuracies[:, :gains] = 1.0
    similar[:, 40 - losses :] = 1.0 if losses else 0.3
    policies = {"epoch 1": accuracies, "random": np.ones((2, 40)), "image-similarity": np.zeros((2, 40))}
    condition = gain_over_similarity(
        evaluated(policies | {"text-similarity": similar, "fused-similarity": np.zeros((2, 40))}),
        PromotionSettings(similarity=similarity),
    )
    assert (condition.name, condition.met) == ("similarity", met)
    assert condition.says == f"over text-similarity, the strongest similarity baseline: {condition.gain}{reason}"
    assert condition.gain.points == pytest.approx(100 * 0.7 * (gains - losses) / 40)


def test_the_strongest_similarity_baseline_is_that_of_the_mean_over_shots_in_the_pool_or_of_all():
    """By hand: in the mean 0.45 of all and 0.4 in the pool, which is ahead at 1 shot; zero-shot and random do not count."""
    in_pool, of_all = np.array([[0.6] * 4, [0.2] * 4]), np.array([[0.3] * 4, [0.6] * 4])
    policies = {"epoch 1": np.ones((2, 4)), "zero-shot": np.ones((1, 4)), "random": np.ones((2, 4))}
    condition = gain_over_similarity(
        evaluated(policies | {"image-similarity": in_pool, "image-similarity (full training set)": of_all}), PromotionSettings()
    )
    assert condition.says.startswith(
        "over image-similarity (full training set), the strongest similarity baseline: +55.00 points "
    )
    with pytest.raises(DataError, match="the evaluation has no similarity baseline to compare with; run the evaluate step"):
        gain_over_similarity(evaluated(policies), PromotionSettings())


ABOVE_0, AT_LEAST = "; a gain above 0 points is needed", "; a gain of at least {} points is needed (min_gain)"


@pytest.mark.parametrize(
    ("gains", "losses", "min_gain", "reason"),
    [
        (1, 0, 0.0, ""),
        (6, 0, 0.0, ""),
        (6, 5, 0.0, ""),
        (0, 0, 0.0, f": exactly as accurate as the champion, which stays{ABOVE_0}"),
        (3, 3, 0.0, f": exactly as accurate as the champion, which stays{ABOVE_0}"),
        (0, 1, 0.0, f": less accurate than the champion, though not significantly{ABOVE_0}"),
        (0, 5, 0.0, f": less accurate than the champion, though not significantly{ABOVE_0}"),
        (0, 6, 0.0, f": significantly less accurate than the champion{ABOVE_0}"),
        (4, 0, 10.0, ""),
        (4, 0, 10.1, f": more accurate than the champion, but by too little{AT_LEAST.format(10.1)}"),
        (0, 0, 0.1, f": exactly as accurate as the champion, which stays{AT_LEAST.format(0.1)}"),
        (0, 6, 0.5, f": significantly less accurate than the champion{AT_LEAST.format(0.5)}"),
    ],
)
def test_over_the_champion(gains, losses, min_gain, reason):
    """A gain is 2.5 points for each of 40 questions; p of a sign test is 2 / 64 for 0 : 6, and 2 / 32 for 0 : 5."""
    accuracies, champions = np.zeros((2, 40)), np.zeros((2, 40))
    accuracies[:, :gains] = 1.0
    champions[:, 40 - losses :] = 1.0 if losses else 0.0
    candidate, champion = evaluated({"epoch 1": accuracies}), evaluated({"epoch 2": champions}, "epoch 2")
    condition = gain_over_champion(candidate, champion, PromotionSettings(min_gain=min_gain))
    assert condition.met == (reason == "")
    assert condition.says == f"over the champion: {condition.gain}{reason}"
    assert condition.gain.points == pytest.approx(2.5 * (gains - losses))


def test_differences_that_cancel_out_are_no_gain():
    """By hand, the three questions differ by 0.1, 0.2 and -0.3; floating-point numbers sum them up to 2.8e-17 or -2.8e-17."""
    accuracies, champions = np.array([[0.1, 0.2, 0.0]] * 2), np.array([[0.0, 0.0, 0.3]] * 2)
    for of_candidate, of_champion in ((accuracies, champions), (champions, accuracies)):
        candidate, champion = evaluated({"epoch 1": of_candidate}), evaluated({"epoch 2": of_champion}, "epoch 2")
        condition = gain_over_champion(candidate, champion, PromotionSettings())
        assert not condition.met
        assert condition.says.startswith("over the champion: 0.00 points [")
        assert "exactly as accurate as the champion" in condition.says


def test_metrics_of_conditions():
    over = Gain(-0.69, -1.42, -0.02, 0.054, 800)
    conditions = [Condition("gate", True, "data gate: pass"), Condition("champion", False, "", over)]
    assert metrics(conditions) == {
        "gain/over_champion": -0.69,
        "gain/over_champion_low": -1.42,
        "gain/over_champion_high": -0.02,
        "gain/over_champion_p": 0.054,
    }


def test_a_condition_without_evidence_is_not_met():
    assert unknown("champion", DataError("records are gone")) == (
        "champion",
        False,
        "no evidence on champion: records are gone",
        None,
    )


def test_what_an_evaluation_covers():
    whole = Evaluated(evaluation_of(6), records_of({"epoch 1": np.ones((2, 6))}), "epoch 1")
    frame = whole.records.frame

    def with_records(rows):
        return whole._replace(records=EvaluationRecords(rows))

    fewer = with_records(frame[frame.position < 4])
    assert covers(whole, fewer)
    assert not covers(fewer, whole)
    assert not covers(with_records(frame[frame.shots == 1]), fewer)
    assert not covers(with_records(frame.assign(part="selection")), fewer)
    others = [
        evaluation_of(6, seed=1),
        evaluation_of(6, vlm_digest="other"),
        evaluation_of(6, settings={"pool_size": 9}),
        evaluation_of(6, settings={"pool_sampler": "mixed"}),
        evaluation_of(6, settings={"order": "similar-last"}),
    ]
    assert not any(covers(whole._replace(evaluation=other), fewer) for other in others)
