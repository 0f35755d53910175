import json

import pytest
from helpers.comparison_samples import compared, right, run, sample

from lever_mlflow.comparison.comparing import compare
from lever_mlflow.comparison.facts import Comparison
from lever_mlflow.comparison.picks import Items
from lever_mlflow.comparison.results import read_results
from lever_mlflow.exceptions import DataError


@pytest.fixture
def facts():
    overlap = {"first": "epoch 1", "second": "epoch 2", "shots": 2, "ordered": 1.0, "unordered": 1.0}
    reason = {"rule": "same_order", "leading": 3, "moved": 0.044, "median": 0.19, "tightest": 0.0014}
    best_single = {"questions": 50, "oracle": 0.9, "random": 0.4, "winnable": 0.62}
    first = run(0.12, right(60), right(55), sizes=(50,), overlap=[{**overlap, "reason": reason}], best_single=best_single)
    return compared(
        first, run(0.15, right(40), right(45), sizes=(50, 100)), items=Items({1050: sample(1050, "what?", "a")}, {})
    )


def test_what_is_written_is_read_again(facts, tmp_path):
    path = tmp_path / "comparison.json"
    facts = facts.model_copy(update={"verdict": "Betas 0.12、0.15"})
    facts.write(path)
    again = Comparison.read(path)
    assert again == facts.model_copy(update={"complete": False})  # which is not written
    assert json.loads(path.read_text(encoding="utf-8"))["verdict"] == "Betas 0.12、0.15"


def test_a_comparison_is_a_results_file(facts, tmp_path):
    path = tmp_path / "comparison.json"
    facts.write(path)
    again = compare(read_results(path), {}, seed=0)
    for name in ("runs", "curves", "sizes", "shots", "statistics", "missing", "reference"):
        assert getattr(again, name) == getattr(facts, name)
    assert {row.kind for row in again.known_differences} == {"bound"}


def test_a_file_that_is_no_comparison(tmp_path):
    path = tmp_path / "comparison.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"not a comparison of this version .*; run the compare step again with rerun=true"):
        Comparison.read(path)
