import pytest
from helpers.comparison_samples import compared, right, run


def test_best_epochs_that_pick_the_same_are_called_out_with_the_reason():
    for digest, reason in (("weights 0.12", "equal_weights"), ("others", "too_close")):
        facts = compared(run(0.12, right(40)), run(0.15, right(40), best_digest=digest))
        (row,) = facts.overlap_of_best
        assert (row.first, row.second, row.shots, row.ordered, row.reason.rule) == ("0.12", "0.15", 2, 1.0, reason)
        assert "same_picks" in [finding.rule for finding in facts.findings]
    (row,) = compared(run(0.12, right(40)), run(0.15, right(60))).overlap_of_best
    assert row.ordered == pytest.approx(0.8)  # 20 of 100 questions have another second pick
    assert row.reason is None


def test_examples_are_questions_won_and_then_lost():
    first, second = right(3), right(3)
    first[5], second[:2] = 1.0, 0.0  # 1000, 1001 and 1005 are won by the beta
    second[7] = 1.0
    facts = compared(run(0.12, first), run(0.15, second), questions={1000: "what?", 1005: "who?", 1007: "where?"})
    assert [(row.question_id, row.question, row.points, row.picks) for row in facts.examples] == [
        (1000, "what?", 100.0, ((10, 11), (10, 12))),
        (1005, "who?", 100.0, ((10, 11), (10, 12))),
        (1007, "where?", -100.0, ((10, 12), (10, 11))),
    ]


def test_epochs_of_a_run_are_compared_with_each_other():
    (pair,) = compared(run(0.12, right(40), right(60))).epochs_compared
    assert (pair.epochs, pair.cells, pair.equal, pair.largest) == ((1, 2), 1, 0, pytest.approx(20.0))
    assert (pair.overlap, pair.reason) == ({}, None)
