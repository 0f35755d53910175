import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from comparisons import PREDECESSOR, policy, results, right, run
from scipy.stats import binomtest, norm

from lever_mlflow.comparison.facts import Records, compare, read_records
from lever_mlflow.comparison.results import read_results
from lever_mlflow.exceptions import DataError, ParameterError


def compared(*pairs, **options):
    found, records = results(*pairs)
    return compare(found, records, seed=0, **options)


def rules(facts):
    return [finding["rule"] for finding in facts["findings"]]


def test_a_clear_difference_is_paired_and_named():
    facts = compared(run(0.15, right(40)), run(0.12, right(60)))
    assert facts["comparable"]
    (row,) = [row for row in facts["differences"] if row["label"] == "best"]
    assert (row["beta"], row["reference"], row["points"], row["kind"]) == (0.12, 0.15, pytest.approx(20.0), "paired")
    assert row["accuracies"] == [pytest.approx(60.0), pytest.approx(40.0)]
    # 20 of 100 questions differ, each by 100 points: standard error 100 * sqrt(0.2 * 0.8 / 100) = 4
    assert row["interval"] == [pytest.approx(20 - 1.96 * 4, abs=1.0), pytest.approx(20 + 1.96 * 4, abs=1.0)]
    assert row["p"] == pytest.approx(2 / 2**20)
    assert row["primary"]
    assert row["significant"]
    # (1.95996 + 0.84162) ** 2 * (deviation / 20) ** 2 with the unbiased deviation of 20 ones and 80 zeros
    assert row["questions_needed"] == math.ceil(7.84888 * np.std(np.repeat([100.0, 0.0], [20, 80]), ddof=1) ** 2 / 400)
    assert facts["choice"] == {"beta": 0.12, "rule": "better"}


def test_differences_are_minus_the_larger_beta_whatever_the_order():
    facts = compared(run(0.12, right(40)), run(0.15, right(60)))
    assert [row["points"] for row in facts["differences"]] == [pytest.approx(-20.0)] * 2
    assert facts["choice"] == {"beta": 0.15, "rule": "better"}


def test_a_small_difference_is_no_finding_and_the_larger_beta_is_kept():
    facts = compared(run(0.12, right(51)), run(0.15, right(50)))
    (finding,) = [finding for finding in facts["findings"] if finding["rule"] == "no_difference"]
    assert finding["points"] == pytest.approx(1.0)
    assert finding["questions_needed"] == math.ceil(7.84888 * 100.0)  # one of 100 differs: deviation 10, difference 1
    assert facts["choice"] == {"beta": 0.15, "rule": "closest"}


@pytest.mark.parametrize(("points", "direction"), [(0.25, "tie"), (-0.25, "tie"), (0.26, "up"), (-0.26, "down")])
def test_a_quarter_of_a_point_is_a_tie(points, direction):
    first, second = run(0.12, right(50)), run(0.15, right(50))
    first[0].epochs[0].accuracy[100, 2] += points
    (row, _) = compared(first, second)["differences"]
    assert row["direction"] == direction


def test_many_questions_that_differ_a_little_are_a_tie_however_sure():
    first = np.tile([1.0, 0.0], 2000)
    second = first.copy()
    second[:20:2] = 0.0  # 10 of 4,000 questions, all one way: p = 2 / 2 ** 10
    pairs = [run(beta, values, sizes=(4_000,)) for beta, values in ((0.12, first), (0.15, second))]
    (row, _) = compared(*pairs)["differences"]
    assert row["p"] == pytest.approx(2 / 2**10)
    assert (row["direction"], row["significant"]) == ("tie", False)


def test_holm_within_the_primary_cells_and_within_the_others():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 2, 100).astype(float) for _ in range(2))
    pairs = [run(beta, values, values, sizes=(50, 100)) for beta, values in ((0.12, first), (0.15, second))]
    rows = compared(*pairs)["differences"]
    assert [(row["label"], row["size"], row["primary"]) for row in rows] == [
        (1, 50, False), (1, 100, False), (2, 50, False), (2, 100, False), ("best", 50, False), ("best", 100, True),
    ]  # fmt: skip
    wins, losses = int((first > second).sum()), int((first < second).sum())
    p_value = binomtest(wins, wins + losses).pvalue  # the sign-flip test of right or wrong answers
    assert rows[-1]["p"] == rows[-1]["p_holm"] == pytest.approx(p_value)
    others = sorted(row["p"] for row in rows[:-1])
    assert min(row["p_holm"] for row in rows[:-1]) == pytest.approx(min(1.0, 5 * others[0]))


def test_six_questions_that_all_differ_one_way_are_no_finding_among_four_comparisons():
    """The bootstrap alone would call each of them one: no resample of the six has a mean below 0."""
    values = right(6)
    frames = {k: [policy("epoch 1", v, shots=k) for v in (values, right(0))] for k in (1, 2, 3, 4)}
    runs, records = [], {}
    for i, beta in enumerate((0.12, 0.15)):
        found, _ = run(beta, values if i == 0 else right(0))
        found.epochs[0].accuracy.clear()
        found.epochs[0].accuracy.update({(100, k): 6.0 if i == 0 else 0.0 for k in frames})
        runs.append(found)
        records[beta] = Records(pd.concat([frames[k][i] for k in frames], ignore_index=True))
    found = replace(results(*((run, None) for run in runs))[0])
    rows = [row for row in compare(found, records, seed=0)["differences"] if row["primary"]]
    assert len(rows) == 4
    assert all(row["interval"][0] > 0.0 for row in rows)
    assert all(row["p_holm"] == pytest.approx(4 * 2 / 2**6) for row in rows)
    assert not any(row["significant"] for row in rows)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rl_data": {"digest": "other"}}, "rl_data.digest"),
        ({"config": {"lr": 1e-4, "start": "rce epoch 4"}}, "lr"),
        ({"config": {"lr": 5e-6}}, "start"),  # what one run has and the other has not is a difference
    ],
)
def test_a_confounder_makes_runs_not_comparable_and_the_numbers_stay(change, field):
    facts = compared(run(0.12, right(60)), run(0.15, right(40), **change))
    assert not facts["comparable"]
    assert field in [item["field"] for item in facts["fields"] if item["mark"] == "confounding"]
    assert facts["findings"][0]["rule"] == "not_comparable"
    assert facts["choice"] == {"beta": None, "rule": "not_comparable"}
    assert facts["differences"][0]["points"] == pytest.approx(20.0)


def test_beta_itself_is_intended_and_the_same_data_may_be_read_elsewhere():
    pairs = [
        run(beta, right(50), config={"training.kl_beta": beta}, rl_data={"digest": "d", "source": f"{beta}.json"})
        for beta in (0.12, 0.15)
    ]
    facts = compared(*pairs)
    assert facts["comparable"]
    assert {item["field"]: item["mark"] for item in facts["fields"]} == {
        "rl_data.digest": "same",
        "rl_data.source": "same",
        "training.kl_beta": "intended",
        "kl_beta": "intended",
    }
    others = [run(beta, right(50), rl_data={"digest": f"{beta}", "source": f"{beta}.json"}) for beta in (0.12, 0.15)]
    marks = {item["field"]: item["mark"] for item in compared(*others)["fields"]}
    assert (marks["rl_data.digest"], marks["rl_data.source"]) == ("confounding", "confounding")


def test_best_epochs_that_pick_the_same_are_called_out_with_the_reason():
    for digest, reason in (("weights 0.12", "equal_weights"), ("others", "too_close")):
        facts = compared(run(0.12, right(40)), run(0.15, right(40), best_digest=digest))
        (row,) = facts["overlap_of_best"]
        assert (row["first"], row["second"], row["shots"], row["ordered"], row["reason"]["rule"]) == (
            "0.12",
            "0.15",
            2,
            1.0,
            reason,
        )
        assert "same_picks" in rules(facts)
    (row,) = compared(run(0.12, right(40)), run(0.15, right(60)))["overlap_of_best"]
    assert row["ordered"] == pytest.approx(0.8)  # 20 of 100 questions have another second pick
    assert "reason" not in row


def test_best_epochs_against_baselines_by_hand():
    facts = compared(run(0.12, right(60)), run(0.15, right(60)))
    random, zero_shot = [row for row in facts["against_baselines"] if row["beta"] == 0.12]
    assert (random["baseline"], random["points"], random["accuracies"]) == ("random", pytest.approx(40.0), [60.0, 20.0])
    assert random["p"] == pytest.approx(2 / 2**40)
    assert random["p_holm"] == pytest.approx(4 * 2 / 2**40)  # two betas, two baselines
    assert (zero_shot["baseline"], zero_shot["points"]) == ("zero-shot", pytest.approx(30.0))
    assert rules(facts).count("baseline_up") == 4


def test_a_beta_below_its_baselines_is_said():
    facts = compared(run(0.12, right(0)), run(0.15, right(60)))
    assert [(f["beta"], f["rule"]) for f in facts["findings"] if f["rule"].startswith("baseline")] == [
        (0.12, "baseline_down"), (0.12, "baseline_down"), (0.15, "baseline_up"), (0.15, "baseline_up"),
    ]  # fmt: skip


def test_of_the_similarity_baselines_the_strongest_is_named_and_the_start_always():
    found, records = run(0.12, right(60))
    names = {"image-similarity": 50, "fused-similarity": 90, "text-similarity": 70, "start": 80}
    frames = [records._frame, *(policy(name, right(count)) for name, count in names.items())]
    baselines = found.baselines | {name: {(100, 2): float(count)} for name, count in names.items()}
    facts = compared((replace(found, baselines=baselines), Records(pd.concat(frames))))
    named = [finding["baseline"] for finding in facts["findings"] if finding["rule"].startswith("baseline")]
    assert named == ["random", "zero-shot", "fused-similarity", "start"]


def test_three_betas_are_compared_with_the_best_by_selection():
    pairs = [run(b, right(n), selection=s) for b, n, s in ((0.05, 90, 40.0), (0.12, 60, 70.0), (0.3, 30, 50.0))]
    facts = compared(*pairs)
    assert facts["reference"] == 0.12
    assert [(row["beta"], row["points"]) for row in facts["differences"]] == [(0.05, 30.0), (0.3, pytest.approx(-30.0))]
    assert [row["beta"] for row in facts["ranking"]] == [0.12, 0.3, 0.05]
    assert facts["ranking"][0]["accuracy"] == pytest.approx(60.0)
    low, high = facts["ranking"][0]["interval"]
    assert (low, high) == (pytest.approx(60 - 1.96 * 4.9, abs=1.2), pytest.approx(60 + 1.96 * 4.9, abs=1.2))
    assert facts["choice"] == {"beta": 0.05, "rule": "better"}


def test_statistics_by_hand():
    first, second = right(60), right(60)
    first[:10], second[50:60] = 0.0, 0.0  # at 50 questions 40 against 50, at 100 equal
    pairs = [run(beta, values, sizes=(50, 100)) for beta, values in ((0.12, first), (0.15, second))]
    (pair,) = compared(*pairs)["statistics"]
    assert pair["by_label"]["1"] == {
        "cells": 2, "up": 0, "tie": 1, "down": 1, "missing": 0,
        "mean": pytest.approx(-10.0),
        "largest_gain": None,
        "largest_drop": {"points": pytest.approx(-20.0), "size": 50, "shots": 2},
        "by_shots": {"2": pytest.approx(-10.0)},
        "by_size": {"50": pytest.approx(-20.0), "100": 0.0},
    }  # fmt: skip


def test_records_of_other_questions_are_not_paired():
    (first, records), second = run(0.12, right(60)), run(0.15, right(40))
    shifted = records._frame.assign(question_id=records._frame.question_id + 1)
    (row, _) = compared((first, Records(shifted)), second)["differences"]
    assert row["kind"] == "bound"


def test_without_records_the_bound_by_hand():
    """Accuracies 58.8 and 57.0 on 200 questions: error sqrt((58.8 * 41.2 + 57 * 43) / 200) = 4.94 points."""
    facts = compare(read_results(PREDECESSOR), {}, seed=0)
    row = next(row for row in facts["differences"] if (row["label"], row["size"], row["shots"]) == (1, 200, 1))
    error = math.sqrt((58.8 * 41.2 + 57.0 * 43.0) / 200)
    assert (row["kind"], row["points"]) == ("bound", pytest.approx(-1.8))
    assert row["interval"] == [pytest.approx(-1.8 - 1.959964 * error), pytest.approx(-1.8 + 1.959964 * error)]
    assert row["p"] == pytest.approx(2 * norm.sf(1.8 / error))
    assert row["p_holm"] == 1.0
    assert not row["significant"]


def test_the_predecessors_runs():
    facts = compare(read_results(PREDECESSOR), {}, seed=0)
    confounding = [field["field"] for field in facts["fields"] if field["mark"] == "confounding"]
    assert confounding == ["rl_data.n_positive_queries", "rl_data.mean_reward", "start_checkpoint", "rl_data"]
    assert [field["field"] for field in facts["fields"] if field["mark"] == "unknown"] == [
        "rl_data.positive_trial_percent", "start_val_loss",
    ]  # fmt: skip
    assert rules(facts) == [
        "not_comparable", "few_positive", "no_contrast", "kl_falling", "no_difference", "epochs_equal", "missing",
    ]  # fmt: skip
    (pair,) = facts["statistics"]
    # differences at 200 questions: -1.8, -0.5, 1.2, 0
    assert pair["by_label"]["1"] | {"by_shots": 0, "by_size": 0} == {
        "cells": 16, "up": 1, "tie": 1, "down": 2, "missing": 12,
        "mean": pytest.approx(-0.275),
        "largest_gain": {"points": pytest.approx(1.2), "size": 200, "shots": 3},
        "largest_drop": {"points": pytest.approx(-1.8), "size": 200, "shots": 1},
        "by_shots": 0, "by_size": 0,
    }  # fmt: skip
    curves = facts["curves"][0]
    assert curves["changes"]["kl"] == [pytest.approx(-13.5, abs=0.05), pytest.approx(-8.8, abs=0.05)]
    assert curves["trends"] == {
        "train_loss": "falling", "val_loss": "mixed", "ppo_loss": "rising", "kl": "falling", "advantage_std": "not_rising",
        "advantage_max": "not_falling", "beta": "constant",
    }  # fmt: skip
    assert {row["command"] for row in facts["missing"]} == {
        "mlflow run . -e evaluate -P kl_beta=0.12 -P sizes=100,200,400,800 -P shots=1,2,3,4",
        "mlflow run . -e grpo -P kl_beta=0.15",
    }


def test_a_comparison_is_a_results_file(tmp_path):
    found, records = results(run(0.12, right(60), right(55)), run(0.15, right(40), right(45)))
    facts = compare(found, records, seed=0)
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps(facts), encoding="utf-8")
    again = compare(read_results(path), {}, seed=0)
    for name in ("curves", "sizes", "shots", "statistics", "missing", "reference"):
        assert again[name] == facts[name]
    assert [row["kind"] for row in again["differences"]] == ["bound"] * 3


def test_examples_are_the_questions_that_differ_most():
    first, second = right(3), right(0)
    second[50] = 1.0
    texts = {1000 + i: f"question {i}?" for i in range(100) if i != 1}
    facts = compared(run(0.12, first), run(0.15, second), questions=texts)
    assert [(row["question_id"], row["question"], row["points"]) for row in facts["examples"]] == [
        (1000, "question 0?", 100.0), (1002, "question 2?", 100.0), (1050, "question 50?", -100.0),
    ]  # fmt: skip
    assert facts["examples"][0]["picks"] == [[10, 11], [10, 12]]


def test_training_that_had_nothing_to_learn_from_is_said():
    poor = run(0.12, right(50), rl_data={"n_queries": 800, "n_positive_queries": 39})
    for epoch in poor[0].epochs:
        epoch.metrics.update(advantage_std=0.05, frac_reward_zero_std=0.95)
    facts = compared(poor, run(0.15, right(50)))
    assert {"few_positive", "no_contrast", "same_rewards"} <= set(rules(facts))
    fine = run(0.12, right(50), rl_data={"n_queries": 800, "n_positive_queries": 40})
    assert not {"few_positive", "no_contrast", "same_rewards"} & set(rules(compared(fine, run(0.15, right(50)))))


def test_the_same_beta_twice_is_an_error_and_one_alone_is_its_own_choice():
    found, records = results(run(0.12, right(40)))
    with pytest.raises(ParameterError, match="different betas"):
        compare(replace(found, runs=found.runs * 2), records, seed=0)
    facts = compare(found, records, seed=0)
    assert facts["choice"] == {"beta": 0.12, "rule": "alone"}
    assert facts["differences"] == []


def test_files_that_are_no_records(tmp_path):
    (tmp_path / "records.parquet").write_bytes(b"PAR1 rubbish")
    with pytest.raises(DataError, match="not the records of an evaluation"):
        read_records(tmp_path / "records.parquet")
