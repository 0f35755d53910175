import copy

import numpy as np
import pandas as pd
import pytest

from lever_mlflow import report
from lever_mlflow.compare import Evaluation, compare, paired_interval, paired_p_value
from lever_mlflow.exceptions import ParameterError


def evaluation(beta, right, **inputs):
    """An evaluation of 100 questions at 2 shots; its best epoch answers the first ``right`` of them."""
    accuracy = np.array([1.0] * right + [0.0] * (100 - right))
    records = pd.DataFrame(
        {
            "policy": "epoch 1",
            "part": "report",
            "position": range(100),
            "question_id": range(100),
            "shots": 2,
            "picks": [[question % 7, 10 + (question < right)] for question in range(100)],
            "accuracy": accuracy,
        }
    )
    rows = [
        {"policy": "zero-shot", "size": 100, "shots": 0, "accuracy": 0.25},
        {"policy": "epoch 1", "size": 100, "shots": 2, "accuracy": right / 100},
    ]
    result = {
        "kl_beta": beta,
        "best_epoch": 1,
        "registered": {"name": "m", "version": "7", "alias": "kl"},
        "registration": {"checkpoint_digest": f"c{right}"},
        "profile": {"name": "mini", "num_beams": 1},
        "selection_accuracy": {"1": 0.5},
        "settings": {"sizes": [100], "shots": [2]},
        "training": {"kl_beta": beta, "lr": 5e-6},
        "inputs": {
            "kl_beta": str(beta),
            "rl_data_digest": "d",
            "start_digest": "s",
            "profile_digest": "p",
            "start_uri": "models:/m-1",
            "grpo_run": f"r{beta}",
            "seed": 0,
            "training_seed": "0",
            "reward_mode": "hard_only",
            **inputs,
        },
        "epochs": [{"epoch": 1, "train_loss": 0.5, "val_loss": 5.0, "kl": 0.01, "beta": beta}],
        "accuracy": rows,
        "overlap": [
            {
                "first": "start",
                "second": "epoch 1",
                "shots": 2,
                "ordered": 1.0,
                "unordered": 1.0,
                "reason": "equal weights",
            }
        ],
        "checkpoints": ["old.pt", "models:/m@champion"],
        "best_single": {"questions": 50, "oracle": 0.9, "random": 0.4, "winnable": 0.62},
    }
    return Evaluation(f"run{beta}", result, records)


def test_equal_runs_are_comparable_and_a_clear_difference_is_named():
    result = compare([evaluation(0.15, 60), evaluation(0.12, 40)], seed=0)
    assert result["comparable"]
    (pair,) = result["pairs"]
    assert (pair["first"], pair["second"], pair["points"], pair["differing_questions"]) == (0.12, 0.15, pytest.approx(20.0), 20)
    # 20 of 100 questions differ, each by 100 points: standard error 100 * sqrt(0.2 * 0.8 / 100) = 4
    assert pair["low"] == pytest.approx(20 - 1.96 * 4, abs=1.0)
    assert pair["high"] == pytest.approx(20 + 1.96 * 4, abs=1.0)
    assert result["verdict"] == (
        "Betas 0.12, 0.15: comparable; 0.15 better than 0.12 at 2 shots by 20.00 points (paired, corrected for 1 comparisons)."
    )


def test_the_better_one_is_named_whichever_it_is():
    assert (
        "0.12 better than 0.15 at 2 shots by 20.00" in compare([evaluation(0.12, 60), evaluation(0.15, 40)], seed=0)["verdict"]
    )


def test_a_small_difference_is_no_finding():
    verdict = compare([evaluation(0.12, 50), evaluation(0.15, 51)], seed=0)["verdict"]
    assert verdict == "Betas 0.12, 0.15: comparable; no difference at any shot count that these 100 questions can show."


@pytest.mark.parametrize("field", ["rl_data_digest", "start_digest"])
def test_a_confounder_makes_runs_not_comparable(field):
    result = compare([evaluation(0.12, 40), evaluation(0.15, 60, **{field: "other"})], seed=0)
    assert not result["comparable"]
    assert [item["field"] for item in result["confounders"]] == [f"inputs.{field}"]
    assert result["verdict"] == f"Betas 0.12, 0.15 are not comparable: the runs also differ in inputs.{field}."
    assert result["pairs"][0]["points"] == pytest.approx(20.0)  # the numbers are still there


def test_training_settings_count_as_confounders_and_beta_does_not():
    other = evaluation(0.15, 40)
    other.result["training"]["lr"] = 1e-4
    assert [item["field"] for item in compare([evaluation(0.12, 40), other], seed=0)["confounders"]] == ["training.lr"]


def test_what_was_measured_of_the_baselines_is_no_confounder():
    first, second = evaluation(0.12, 40), evaluation(0.15, 60)
    for result, n_oracle in ((first.result, 0), (second.result, 50)):
        result["settings"] |= {"n_oracle": n_oracle, "random_draws": 1 + n_oracle}
    first.result["best_single"] = None
    comparison = compare([first, second], seed=0)
    assert comparison["comparable"]
    assert "oracle: 90.00" in report.summary(comparison)


def test_the_same_beta_twice_is_an_error_and_one_alone_has_no_verdict():
    with pytest.raises(ParameterError, match="different betas"):
        compare([evaluation(0.12, 40), evaluation(0.12, 50)], seed=0)
    assert compare([evaluation(0.12, 40)], seed=0)["verdict"] == "Beta 0.12 alone: nothing to compare it with."


@pytest.mark.parametrize(("differing", "p_value"), [(1, 1.0), (6, 2 / 2**6), (8, 2 / 2**8)])
def test_p_value_of_few_questions_that_all_differ_one_way_is_exact(differing, p_value):
    points = np.zeros(800)
    points[:differing] = 100.0
    assert paired_p_value(points, 0) == pytest.approx(p_value)


def test_six_questions_that_all_differ_one_way_are_no_finding_among_four_comparisons():
    points = np.zeros(800)
    points[:6] = 100.0
    assert paired_interval(points, 1 - 0.05 / 4, 0)[0] > 0.0  # the bootstrap alone would call it one
    assert paired_p_value(points, 0) * 4 >= 0.05


def test_equal_answers_have_an_interval_of_nothing():
    assert paired_interval(np.zeros(50), 0.95, 0) == (0.0, 0.0)


def test_report_has_every_cell_and_the_reproducing_commands():
    comparison = compare([evaluation(0.12, 40), evaluation(0.15, 60)], seed=0)
    page = report.markdown(copy.deepcopy(comparison))
    assert "| epoch 1 (registered) | 2 | 60.00 |" in page
    assert "| zero-shot | 0 | 25.00 |" in page
    assert "| 0.15 - 0.12 | 2 | +20.00 |" in page
    assert "No field but beta differs." in page
    assert "mlflow run . -e grpo -P kl_beta=0.12 -P lr=5e-06 -P init=models:/m-1 -P seed=0 -P reward_mode=hard_only" in page
    evaluated = "mlflow run . -e evaluate -P kl_beta=0.12 -P grpo_run=r0.12 -P seed=0 -P sizes=100 -P shots=2"
    assert f"{evaluated} -P checkpoints=old.pt,models:/m@champion" in page
    assert "mlflow run . -e compare -P kl_betas=0.12,0.15" in page
    assert "| start | epoch 1 | 2 | 100.0 | 100.0 |" in page
    assert "- start and epoch 1 pick the same for every question at 2 shots: equal weights." in page
    assert "| beta 0.12 | beta 0.15 | 2 | 80.0 | 80.0 |" in page  # 20 of 100 questions have another second pick
    assert "The VLM's profile (p): name='mini', num_beams=1" in page
    assert "?" not in page


@pytest.mark.parametrize(("digest", "reason"), [("c40", "the weights are equal"), ("x", "the weights differ, but too little")])
def test_best_epochs_that_pick_the_same_are_called_out(digest, reason):
    other = evaluation(0.15, 40)
    other.result["registration"]["checkpoint_digest"] = digest
    (row,) = compare([evaluation(0.12, 40), other], seed=0)["overlap"]
    assert (row["ordered"], row["unordered"]) == (1.0, 1.0)
    assert row["reason"].startswith(reason)


def test_summary_marks_the_registered_epochs():
    text = report.summary(compare([evaluation(0.12, 40), evaluation(0.15, 60)], seed=0))
    lines = [line.split() for line in text.splitlines()]
    assert ["zero-shot", "25.00", "-"] in lines
    assert ["beta", "0.15", "epoch", "1", "*", "-", "60.00"] in lines
    assert (
        "oracle: 90.00 with the best single demonstration of each pool, on the first 50 questions (40.00 with the mean one; "
        "it matters on 62 % of them)"
    ) in text
