import math

import pandas as pd
import pytest
from helpers.comparison_samples import PREDECESSOR, compared, policy, right, run

from lever_mlflow.comparison.comparing import compare
from lever_mlflow.comparison.results import read_results
from lever_mlflow.evaluation.records import EvaluationRecords


def rules(facts):
    return [finding.rule for finding in facts.findings]


def test_a_small_difference_is_no_finding_and_the_larger_beta_is_kept():
    facts = compared(run(0.12, right(51)), run(0.15, right(50)))
    (finding,) = [finding for finding in facts.findings if finding.rule == "no_difference"]
    assert finding.points == pytest.approx(1.0)
    assert finding.questions_needed == math.ceil(7.84888 * 100.0)  # one of 100 differs: deviation 10, difference 1
    assert (facts.choice.run, facts.choice.rule) == ("0.15", "closest")


def test_a_beta_below_its_baselines_is_said():
    facts = compared(run(0.12, right(0)), run(0.15, right(60)))
    assert [(finding.run, finding.rule) for finding in facts.findings if finding.rule.startswith("baseline")] == [
        ("0.12", "baseline_down"), ("0.12", "baseline_down"), ("0.15", "baseline_up"), ("0.15", "baseline_up"),
    ]  # fmt: skip


def test_of_the_similarity_baselines_the_strongest_is_named_and_the_start_always():
    result, records = run(0.12, right(60))
    names = {"image-similarity": 50, "fused-similarity": 90, "text-similarity": 70, "start": 80}
    frames = [records.frame, *(policy(name, right(count)) for name, count in names.items())]
    baselines = result.baselines | {name: {100: {2: float(count)}} for name, count in names.items()}
    facts = compared((result.model_copy(update={"baselines": baselines}), EvaluationRecords(pd.concat(frames))))
    named = [finding.baseline for finding in facts.findings if finding.rule.startswith("baseline")]
    assert named == ["random", "zero-shot", "fused-similarity", "start"]


def test_a_further_checkpoint_is_not_called_the_strongest_baseline():
    result, records = run(0.12, right(60))
    names = {"checkpoint 1 (old.pt)": 90, "text-similarity": 70, "fused-similarity": 40}
    frames = [records.frame, *(policy(name, right(count)) for name, count in names.items())]
    baselines = result.baselines | {name: {100: {2: float(count)}} for name, count in names.items()}
    facts = compared((result.model_copy(update={"baselines": baselines}), EvaluationRecords(pd.concat(frames))))
    named = [finding.baseline for finding in facts.findings if finding.rule.startswith("baseline")]
    assert named == ["random", "zero-shot", "text-similarity"]


def test_training_that_had_nothing_to_learn_from_is_said():
    poor = run(0.12, right(50), rl_data={"n_queries": 800, "n_positive_queries": 39})
    for epoch in poor[0].epochs:
        epoch.metrics.update(advantage_std=0.05, frac_reward_zero_std=0.95)
    facts = compared(poor, run(0.15, right(50)))
    assert {"few_positive", "no_contrast", "same_rewards"} <= set(rules(facts))
    fine = run(0.12, right(50), rl_data={"n_queries": 800, "n_positive_queries": 40})
    assert not {"few_positive", "no_contrast", "same_rewards"} & set(rules(compared(fine, run(0.15, right(50)))))


def test_the_predecessors_runs():
    facts = compare(read_results(PREDECESSOR), {}, seed=0)
    assert rules(facts) == [
        "not_comparable", "few_positive", "no_contrast", "kl_falling", "no_difference", "epochs_equal", "missing",
    ]  # fmt: skip
