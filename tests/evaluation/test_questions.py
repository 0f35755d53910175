import pytest

from lever_mlflow.evaluation.questions import split_questions
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.settings import EvalSettings


def test_report_sizes_are_nested_and_selection_is_apart(samples):
    small = split_questions(samples, EvalSettings(sizes=(5,), n_selection=10), seed=4)
    large = split_questions(samples, EvalSettings(sizes=(5, 20), n_selection=10), seed=4)
    assert [s.index for s in large.report[:5]] == [s.index for s in small.report]
    assert [s.index for s in large.selection] == [s.index for s in small.selection]
    assert [len(part) for part in large] == [20, 10]
    assert not {s.image_id for s in large.report} & {s.image_id for s in large.selection}


def test_too_few_questions(samples):
    with pytest.raises(ParameterError, match="the split has 30 questions, of which 20 are left"):
        split_questions(samples, EvalSettings(sizes=(21,), n_selection=10), seed=0)
