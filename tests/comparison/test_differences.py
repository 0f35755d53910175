import math

import numpy as np
import pandas as pd
import pytest
from helpers.comparison_samples import PREDECESSOR, compared, epoch, policy, results, right, run
from scipy.stats import binomtest, norm

from lever_mlflow.comparison.comparing import compare
from lever_mlflow.comparison.results import read_results
from lever_mlflow.evaluation.records import EvaluationRecords


def test_a_clear_difference_is_paired_and_named():
    facts = compared(run(0.15, right(40)), run(0.12, right(60)))
    assert facts.comparable
    (row,) = [row for row in facts.differences if row.label == "best"]
    assert (row.run, row.reference, row.points, row.kind) == ("0.12", "0.15", pytest.approx(20.0), "paired")
    assert row.accuracies == (pytest.approx(60.0), pytest.approx(40.0))
    # 20 of 100 questions differ, each by 100 points: standard error 100 * sqrt(0.2 * 0.8 / 100) = 4
    assert row.interval == (pytest.approx(20 - 1.96 * 4, abs=1.0), pytest.approx(20 + 1.96 * 4, abs=1.0))
    assert row.p == pytest.approx(2 / 2**20)
    assert row.primary
    assert row.significant
    # (1.95996 + 0.84162) ** 2 * (deviation / 20) ** 2 with the unbiased deviation of 20 ones and 80 zeros
    assert row.questions_needed == math.ceil(7.84888 * np.std(np.repeat([100.0, 0.0], [20, 80]), ddof=1) ** 2 / 400)
    assert (facts.choice.run, facts.choice.rule) == ("0.12", "better")


def test_differences_are_minus_the_larger_beta_whatever_the_order():
    facts = compared(run(0.12, right(40)), run(0.15, right(60)))
    assert [row.points for row in facts.differences] == [pytest.approx(-20.0)] * 2
    assert (facts.choice.run, facts.choice.rule) == ("0.15", "better")


@pytest.mark.parametrize(("points", "direction"), [(0.25, "tie"), (-0.25, "tie"), (0.26, "up"), (-0.26, "down")])
def test_a_quarter_of_a_point_is_a_tie(points, direction):
    first, second = run(0.12, right(50)), run(0.15, right(50))
    first[0].epochs[0].accuracy[100][2] += points
    (row, _) = compared(first, second).differences
    assert row.direction == direction


def test_many_questions_that_differ_a_little_are_a_tie_however_sure():
    first = np.tile([1.0, 0.0], 2000)
    second = first.copy()
    second[:20:2] = 0.0  # 10 of 4,000 questions, all one way: p = 2 / 2 ** 10
    pairs = [run(beta, values, sizes=(4_000,)) for beta, values in ((0.12, first), (0.15, second))]
    (row, _) = compared(*pairs).differences
    assert row.p == pytest.approx(2 / 2**10)
    assert (row.direction, row.significant) == ("tie", False)


def test_holm_within_the_primary_cells_and_within_the_others():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 2, 100).astype(float) for _ in range(2))
    pairs = [run(beta, values, values, sizes=(50, 100)) for beta, values in ((0.12, first), (0.15, second))]
    rows = compared(*pairs).differences
    assert [(row.label, row.size, row.primary) for row in rows] == [
        (1, 50, False), (1, 100, False), (2, 50, False), (2, 100, False), ("best", 50, False), ("best", 100, True),
    ]  # fmt: skip
    wins, losses = int((first > second).sum()), int((first < second).sum())
    p_value = binomtest(wins, wins + losses).pvalue  # the sign-flip test of right or wrong answers
    assert rows[-1].p == rows[-1].p_holm == pytest.approx(p_value)
    others = sorted(row.p for row in rows[:-1])
    assert min(row.p_holm for row in rows[:-1]) == pytest.approx(min(1.0, 5 * others[0]))


def test_six_questions_that_all_differ_one_way_are_no_finding_among_four_comparisons():
    """The bootstrap alone would call each of them one: no resample of the six has a mean below 0."""
    pairs = []
    for beta, count in ((0.12, 6), (0.15, 0)):
        frames = [policy("epoch 1", right(count), shots=k) for k in (1, 2, 3, 4)]
        epochs = [epoch(1, {100: dict.fromkeys((1, 2, 3, 4), float(count))})]
        pairs.append((run(beta, right(count))[0].model_copy(update={"epochs": epochs}), EvaluationRecords(pd.concat(frames))))
    rows = [row for row in compared(*pairs).differences if row.primary]
    assert len(rows) == 4
    assert all(row.interval[0] > 0.0 for row in rows)
    assert all(row.p_holm == pytest.approx(4 * 2 / 2**6) for row in rows)
    assert not any(row.significant for row in rows)


def test_records_of_other_questions_are_not_paired():
    (first, records), second = run(0.12, right(60)), run(0.15, right(40))
    shifted = records.frame.assign(question_id=records.frame.question_id + 1)
    (row, _) = compared((first, EvaluationRecords(shifted)), second).differences
    assert row.kind == "bound"


def test_without_records_the_bound_by_hand():
    """Accuracies 58.8 and 57.0 on 200 questions: error sqrt((58.8 * 41.2 + 57 * 43) / 200) = 4.94 points."""
    facts = compare(read_results(PREDECESSOR), {}, seed=0)
    row = next(row for row in facts.differences if (row.label, row.size, row.shots) == (1, 200, 1))
    error = math.sqrt((58.8 * 41.2 + 57.0 * 43.0) / 200)
    assert (row.kind, row.points) == ("bound", pytest.approx(-1.8))
    assert row.interval == (pytest.approx(-1.8 - 1.959964 * error), pytest.approx(-1.8 + 1.959964 * error))
    assert row.p == pytest.approx(2 * norm.sf(1.8 / error))
    assert row.p_holm == 1.0
    assert not row.significant


def test_a_cell_that_one_run_lacks_is_missing():
    rows = compared(run(0.12, right(60), sizes=(50,)), run(0.15, right(40), sizes=(50, 100))).differences
    assert [(row.size, row.direction, row.accuracies, row.primary) for row in rows if row.label == "best"] == [
        (50, "up", (100.0, 80.0), True),
        (100, "missing", (None, 40.0), False),
    ]


def test_best_epochs_against_baselines_by_hand():
    facts = compared(run(0.12, right(60)), run(0.15, right(60)))
    random, zero_shot = [row for row in facts.against_baselines if row.run == "0.12"]
    assert (random.baseline, random.points, random.accuracies) == ("random", pytest.approx(40.0), (60.0, 20.0))
    assert random.p == pytest.approx(2 / 2**40)
    assert random.p_holm == pytest.approx(4 * 2 / 2**40)  # two betas, two baselines
    assert (zero_shot.baseline, zero_shot.points) == ("zero-shot", pytest.approx(30.0))
    assert [finding.rule for finding in facts.findings].count("baseline_up") == 4


def test_the_strongest_baseline_of_each_shot_count_by_hand():
    baselines = {
        "random": {50: {2: 99.0}, 100: {2: 20.0}},
        "zero-shot": {100: {0: 30.0}},
        "start": {100: {2: 70.0}},
        "checkpoint 1 (old.pt)": {100: {2: 80.0}},
    }
    first, second = compared(run(0.12, right(60), baselines=baselines), run(0.15, right(10))).against_strongest
    assert (first.run, first.shots, first.size) == ("0.12", 2, 100)
    assert (first.baseline, first.accuracies, first.points) == ("zero-shot", (60.0, 30.0), pytest.approx(30.0))
    assert (first.kind, first.p, first.p_holm) == ("paired", pytest.approx(2 / 2**30), pytest.approx(2 * 2 / 2**30))
    assert first.interval[0] == pytest.approx(21.0, abs=1.0)  # 30 of 100 questions differ: 30 +/- 1.96 * 4.6
    assert (second.baseline, second.points, second.direction) == ("zero-shot", pytest.approx(-20.0), "down")


def test_of_equal_baselines_the_first_in_the_fixed_order_is_the_strongest():
    baselines = {"fused-similarity": {100: {2: 30.0}}, "zero-shot": {100: {0: 20.0}}, "random": {100: {2: 30.0}}}
    (row,) = compared(run(0.12, right(60), baselines=baselines)).against_strongest
    assert (row.baseline, row.accuracies) == ("random", (60.0, 30.0))


def test_the_strongest_baseline_without_records():
    result, _ = run(0.12, right(60))
    (row,) = compare(results((result, None))[0], {}, seed=0).against_strongest
    assert (row.baseline, row.kind, row.points) == ("zero-shot", "bound", 30.0)
    error = 100 * np.sqrt((0.6 * 0.4 + 0.3 * 0.7) / 100)
    assert row.interval == (pytest.approx(30 - 1.959964 * error), pytest.approx(30 + 1.959964 * error))


def test_no_baseline_is_the_strongest_where_there_is_none():
    assert compared(run(0.12, right(60), baselines={})).against_strongest == ()
    assert compared(run(0.12, right(60), baselines={"start": {100: {2: 70.0}}})).against_strongest == ()


def test_statistics_by_hand():
    first, second = right(60), right(60)
    first[:10], second[50:60] = 0.0, 0.0  # at 50 questions 40 against 50, at 100 equal
    pairs = [run(beta, values, sizes=(50, 100)) for beta, values in ((0.12, first), (0.15, second))]
    (pair,) = compared(*pairs).statistics
    assert pair.by_label["1"].model_dump() == {
        "cells": 2, "up": 0, "tie": 1, "down": 1, "missing": 0,
        "mean": pytest.approx(-10.0),
        "largest_gain": None,
        "largest_drop": {"points": pytest.approx(-20.0), "size": 50, "shots": 2},
        "by_shots": {2: pytest.approx(-10.0)},
        "by_size": {50: pytest.approx(-20.0), 100: 0.0},
    }  # fmt: skip


def test_results_of_the_samples_are_in_the_order_of_betas():
    all_results, records = results(run(0.15, right(1)), run(0.12, right(2)))
    assert [result.kl_beta for result in all_results.runs] == [0.12, 0.15]
    assert records.keys() == {"evaluation 0.12", "evaluation 0.15"}
