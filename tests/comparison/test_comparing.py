import pytest
from helpers.comparison_samples import PREDECESSOR, compared, results, right, run

from lever_mlflow.comparison.comparing import compare
from lever_mlflow.comparison.results import read_results
from lever_mlflow.exceptions import ParameterError


def test_three_betas_are_compared_with_the_best_by_selection():
    pairs = [run(b, right(n), selection=s) for b, n, s in ((0.05, 90, 40.0), (0.12, 60, 70.0), (0.3, 30, 50.0))]
    facts = compared(*pairs)
    assert facts.reference == 0.12
    assert [(row.beta, row.points) for row in facts.differences] == [(0.05, 30.0), (0.3, pytest.approx(-30.0))]
    assert [row.beta for row in facts.ranking] == [0.12, 0.3, 0.05]
    assert facts.ranking[0].accuracy == pytest.approx(60.0)
    low, high = facts.ranking[0].interval
    assert (low, high) == (pytest.approx(60 - 1.96 * 4.9, abs=1.2), pytest.approx(60 + 1.96 * 4.9, abs=1.2))
    assert (facts.choice.beta, facts.choice.rule) == (0.05, "better")


def test_the_predecessors_runs():
    facts = compare(read_results(PREDECESSOR), {}, seed=0)
    assert facts.confounders == ["rl_data.n_positive_queries", "rl_data.mean_reward", "start_checkpoint", "rl_data"]
    assert [field.field for field in facts.fields if field.mark == "unknown"] == [
        "rl_data.positive_trial_percent", "start_val_loss",
    ]  # fmt: skip
    (pair,) = facts.statistics
    # differences at 200 questions: -1.8, -0.5, 1.2, 0
    assert pair.by_label["1"].model_dump(exclude={"by_shots", "by_size"}) == {
        "cells": 16, "up": 1, "tie": 1, "down": 2, "missing": 12,
        "mean": pytest.approx(-0.275),
        "largest_gain": {"points": pytest.approx(1.2), "size": 200, "shots": 3},
        "largest_drop": {"points": pytest.approx(-1.8), "size": 200, "shots": 1},
    }  # fmt: skip
    curves = facts.curves[0]
    assert curves.changes["kl"] == (pytest.approx(-13.5, abs=0.05), pytest.approx(-8.8, abs=0.05))
    assert curves.trends == {
        "train_loss": "falling", "val_loss": "mixed", "ppo_loss": "rising", "kl": "falling", "advantage_std": "not_rising",
        "advantage_max": "not_falling", "beta": "constant",
    }  # fmt: skip
    assert {part.command for part in facts.missing} == {
        "mlflow run . --env-manager local -e evaluate -P kl_beta=0.12 -P sizes=100,200,400,800 -P shots=1,2,3,4",
        "mlflow run . --env-manager local -e grpo -P kl_beta=0.15",
    }


def test_the_same_beta_twice_is_an_error_and_one_alone_is_its_own_choice():
    all_results, records = results(run(0.12, right(40)))
    with pytest.raises(ParameterError, match="different betas"):
        compare(all_results.model_copy(update={"runs": all_results.runs * 2}), records, seed=0)
    facts = compare(all_results, records, seed=0)
    assert (facts.choice.beta, facts.choice.rule) == (0.12, "alone")
    assert facts.differences == ()
