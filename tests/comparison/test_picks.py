import io

import pytest
from helpers.comparison_samples import compared, right, run, sample
from PIL import Image

from lever_mlflow.comparison.picks import Items
from lever_mlflow.comparison.pictures import pictures


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
    first[5], second[:2] = 1.0, 0.0  # 1000, 1001 and 1005 are won by the first run
    second[7] = 1.0
    samples = {number: sample(number, f"what is {number}?", "a") for number in (1000, 1005, 1007)}
    items = Items(samples, {10: sample(10, "which?", "b"), 11: sample(11, "who?", "c")})
    facts = compared(run(0.12, first), run(0.15, second), items=items)
    rows = [(row.query.question_id, row.query.question, row.points, row.query.answers) for row in facts.examples]
    assert rows == [
        (1000, "what is 1000?", 100.0, {"a": 9, "z": 1}),
        (1005, "what is 1005?", 100.0, {"a": 9, "z": 1}),
        (1007, "what is 1007?", -100.0, {"a": 9, "z": 1}),
    ]
    sides = facts.examples[2].sides
    assert [(side.run, side.answer, side.accuracy) for side in sides] == [("0.12", "a", 0.0), ("0.15", "a", 100.0)]
    assert [[item.question_id for item in side.demonstrations] for side in sides] == [[10, 12], [10, 11]]
    assert [item.question for item in sides[0].demonstrations] == ["which?", ""]  # 12 is not among the items


def test_of_more_than_two_betas_the_pair_that_differs_most_gives_the_examples():
    betas = ((0.05, 55, 70.0), (0.12, 60, 90.0), (0.3, 30, 50.0))
    samples = {1000 + i: sample(1000 + i, "what?", "a") for i in range(100)}
    facts = compared(*(run(beta, right(n), selection=s) for beta, n, s in betas), items=Items(samples, {}))
    assert {tuple(side.run for side in row.sides) for row in facts.examples} == {("0.3", "0.12")}
    assert [row.query.question_id for row in facts.examples] == [1055, 1056, 1057, 1058, 1059]


def test_pictures_are_small_jpegs_of_the_question_and_of_known_demonstrations(tmp_path):
    Image.new("RGB", (640, 320), "red").save(tmp_path / "red.png")
    samples = {1000 + i: sample(1000 + i, "what?", "a", tmp_path / "red.png") for i in range(100)}
    items = Items(samples, {10: sample(10, "which?", "b", tmp_path / "red.png")})
    images = pictures(compared(run(0.12, right(1)), run(0.15, right(0)), items=items).examples, items)
    assert set(images) == {"query-1000.jpg", "demonstration-10.jpg"}
    image = Image.open(io.BytesIO(images["query-1000.jpg"]))
    assert (image.format, image.size) == ("JPEG", (160, 80))
    assert pictures(compared(run(0.12, right(1)), run(0.15, right(0))).examples, None) == {}


def test_epochs_of_a_run_are_compared_with_each_other():
    (pair,) = compared(run(0.12, right(40), right(60))).epochs_compared
    assert (pair.epochs, pair.cells, pair.equal, pair.largest) == ((1, 2), 1, 0, pytest.approx(20.0))
    assert (pair.overlap, pair.reason) == ({}, None)


def test_epochs_that_were_not_evaluated_are_in_no_pair():
    result, records = run(0.12, right(40), right(60))
    unevaluated = result.epochs[0].model_copy(update={"epoch": 3, "accuracy": {}})
    facts = compared((result.model_copy(update={"epochs": (*result.epochs, unevaluated)}), records))
    assert facts.unevaluated == {"0.12": [3]}
    assert [pair.epochs for pair in facts.epochs_compared] == [(1, 2)]
    assert facts.missing != ()
    assert {part.epoch for part in facts.missing if "100/2" in part.what} == set()
