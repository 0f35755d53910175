from pathlib import Path

import pytest

from lever_mlflow.data.samples import Sample


@pytest.mark.parametrize(
    ("scoring", "of_racing", "of_race", "of_races"),
    # 3 of 10 annotators give an accuracy of 0.9, and 7 of 10 one of 1
    [("raw", 0.9, 0.0, 0.0), ("stem", 1.0, 1.0, 1.0), ("plain", 0.0, 1.0, 0.0)],
)
def test_accuracy_by_way_of_scoring(scoring, of_racing, of_race, of_races):
    raw = ("racing",) * 3 + ("raced",) * 4 + ("sailing",) * 3
    stemmed = ("race",) * 7 + ("sail",) * 3
    sample = Sample(0, 1, 1, "what sport?", Path("1.jpg"), raw, stemmed, scoring)
    assert [sample.accuracy(text) for text in ("racing", "race", "races")] == pytest.approx([of_racing, of_race, of_races])
    assert sample.answer == "raced"  # what most annotators wrote, however answers are scored


@pytest.mark.parametrize("scoring", ["raw", "stem", "plain"])
def test_answers_without_another_form_are_scored_as_they_were_written(scoring):
    sample = Sample(0, 1, 1, "what colour?", Path("1.jpg"), ("red",) * 10, scoring=scoring)
    assert (sample.accuracy("Red."), sample.accuracy("blue")) == (1.0, 0.0)
