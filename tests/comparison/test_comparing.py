import pytest
from helpers.comparison_samples import PREDECESSOR, compared, epoch, results, right, run, sample

from lever_mlflow.comparison.comparing import compare
from lever_mlflow.comparison.page import markdown
from lever_mlflow.comparison.picks import Items
from lever_mlflow.comparison.results import read_results
from lever_mlflow.exceptions import ParameterError


def test_three_betas_are_compared_with_the_best_by_selection():
    pairs = [run(b, right(n), selection=s) for b, n, s in ((0.05, 90, 40.0), (0.12, 60, 70.0), (0.3, 30, 50.0))]
    facts = compared(*pairs)
    assert facts.reference == "0.12"
    assert [(row.run, row.points) for row in facts.differences] == [("0.05", 30.0), ("0.3", pytest.approx(-30.0))]
    assert [row.run for row in facts.ranking] == ["0.12", "0.3", "0.05"]
    assert facts.ranking[0].accuracy == pytest.approx(60.0)
    low, high = facts.ranking[0].interval
    assert (low, high) == (pytest.approx(60 - 1.96 * 4.9, abs=1.2), pytest.approx(60 + 1.96 * 4.9, abs=1.2))
    assert (facts.choice.run, facts.choice.rule) == ("0.05", "better")


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


def test_the_same_run_twice_is_an_error_and_one_alone_is_its_own_choice():
    all_results, records = results(run(0.12, right(40)))
    with pytest.raises(ParameterError, match=r"evaluations: run evaluation 0\.12 is named twice; name each run once"):
        compare(all_results.model_copy(update={"runs": all_results.runs * 2}), records, seed=0)
    facts = compare(all_results, records, seed=0)
    assert (facts.choice.run, facts.choice.rule) == ("0.12", "alone")
    assert facts.differences == ()


def test_runs_of_mlflow_that_differ_in_nothing_are_told_apart_by_their_ids():
    facts = compared(run(0.12, right(60), run_id="0123456789"), run(0.12, right(40), run_id="abcdefabcd"))
    assert (facts.varied, facts.comparable) == ((), True)
    assert [result.label for result in facts.runs] == ["run 01234567", "run abcdefab"]
    assert [(row.run, row.points, row.kind) for row in facts.differences if row.primary] == [
        ("run abcdefab", pytest.approx(-20.0), "paired")
    ]
    assert facts.choice.run == "run 01234567"


def test_of_equal_runs_by_selection_the_larger_beta_or_else_the_first_run_is_the_reference():
    betas = compared(*(run(beta, right(50)) for beta in (0.05, 0.12, 0.3)))
    assert betas.reference == "0.3"
    others = compared(*(run(0.12, right(50), config={"lr": lr}, run_id=f"{lr}") for lr in (1, 2, 3)))
    assert (others.reference, [row.run for row in others.ranking]) == ("lr 1", ["lr 1", "lr 2", "lr 3"])
    best = compared(*(run(0.12, right(50), config={"lr": lr}, run_id=f"{lr}", selection=float(lr)) for lr in (1, 2, 3)))
    assert (best.reference, [row.run for row in best.ranking]) == ("lr 3", ["lr 3", "lr 2", "lr 1"])


def test_questions_of_different_data_sets_are_not_paired_though_their_ids_are_equal():
    items = Items({1000 + i: sample(1000 + i, "what?", "a") for i in range(100)}, {})
    pairs = [run(0.12, right(n), config={"dataset": d, "dataset_digest": d}, run_id=d) for n, d in ((60, "x"), (40, "y"))]
    facts = compared(*pairs, items=items)
    assert (facts.varied, [result.label for result in facts.runs]) == (("dataset",), ["x", "y"])
    assert {row.kind for row in facts.differences} == {"bound"}
    assert (facts.overlap_of_best, facts.examples) == ((), ())
    same = [run(0.12, right(n), config={"vlm": v, "vlm_digest": "d", "lr": n}, run_id=v) for n, v in ((60, "x"), (40, "y"))]
    facts = compared(*same)
    assert (facts.varied, {row.kind for row in facts.differences}) == (("lr",), {"paired"})  # one VLM under two names


def test_what_is_missing_of_a_run_is_filled_by_its_own_training():
    first, second = (
        run(
            0.12,
            right(60),
            sizes=sizes,
            config={"lr": i},
            run_id=f"e{i}",
            training_run=f"g{i}",
            commands=(f"train {i}", "test"),
        )
        for i, sizes in ((1, (50,)), (2, (50, 100)))
    )
    facts = compared(first, second)
    commands = {part.command for part in facts.missing if part.run == "lr 1"}
    assert commands == {
        "train 1",
        "mlflow run . --env-manager local -e evaluate -P kl_beta=0.12 -P grpo_run=g1 -P sizes=50,100 -P shots=2",
    }
    assert facts.command == "mlflow run . --env-manager local -e compare -P evaluations=e1,e2"


def test_of_identical_runs_with_records_the_picks_are_told():
    cells = epoch(1, {50: {2: 60.0}, 100: {2: 60.0}})
    pairs = [run(beta, right(60)) for beta in (0.12, 0.15)]
    two = [(result.model_copy(update={"epochs": (cells,)}), records) for result, records in pairs]
    (finding,) = compared(*two).identical
    assert (finding.cells, finding.picks) == (2, 1.0)
    assert "pick the same demonstrations for at least 100.0 % of the questions" in markdown(compared(*two), "en")
