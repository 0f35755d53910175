import numpy as np
import pytest
import torch

from lever_mlflow.data.features import fused_features
from lever_mlflow.evaluation.policies import BASELINES
from lever_mlflow.evaluation.question_set import QuestionSet
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import EvalSettings


def unit(rng, count):
    features = rng.standard_normal((count, 8)).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.fixture
def questions(samples):
    """Six questions about the images of the first training items, with pools of 5 of 30."""
    rng = np.random.default_rng(0)
    train = fused_features(unit(rng, 30), unit(rng, 30), "train")
    question_features = fused_features(unit(rng, 30), unit(rng, 30), "val")
    settings = EvalSettings(sizes=(6,), shots=(1, 2), n_selection=2, pool_size=5, random_draws=2)
    return QuestionSet(samples[:6], samples, question_features, train, settings, seed=0)


def selector(seed):
    torch.manual_seed(seed)
    return PointerSelector(feature_dim=8, hidden_dim=4).eval()


def test_every_baseline_picks_for_every_question(questions):
    picks = questions.baselines()
    assert tuple(picks) == BASELINES
    shapes = {name: array.shape for name, array in picks.items()}
    assert shapes.pop("zero-shot") == (6, 0)
    assert shapes.pop("random") == (2, 6, 2)
    assert set(shapes.values()) == {(6, 2)}


def test_no_pick_shows_the_image_of_the_question(questions, samples):
    for name, picks in questions.baselines().items():
        for rows in picks if picks.ndim == 3 else picks[None]:
            for question, row in zip(questions.samples, rows, strict=True):
                assert all(samples[i].image_id != question.image_id for i in row), name


def test_whole_set_search_takes_the_nearest_of_all_items(questions):
    scores_QS = questions.question_features.fused_SD[:6] @ questions.train_features.fused_SD.T
    for q, question in enumerate(questions.samples):
        for i, item in enumerate(questions.train):
            if item.image_id == question.image_id:
                scores_QS[q, i] = -np.inf
    expected = np.argsort(-scores_QS, axis=1)[:, :2]
    assert questions.baselines()["fused-similarity (full training set)"].tolist() == expected.tolist()


def test_selectors_pick_from_the_pools(questions):
    picks = questions.learned({"a": selector(1)})["a"]
    assert picks.shape == (6, 2)
    assert all(set(row) <= set(pool) for row, pool in zip(picks.tolist(), questions.pools_QN.tolist(), strict=True))


def test_the_reason_is_given_where_all_picks_are_the_same(questions):
    checkpoints = {"start": selector(1), "epoch 1": selector(1), "epoch 2": selector(2)}
    rows = questions.overlap(checkpoints, questions.learned(checkpoints))
    same = [row for row in rows if (row.first, row.second) == ("start", "epoch 1")]
    assert [(row.shots, row.ordered, row.reason.rule) for row in same] == [(1, 1.0, "equal_weights"), (2, 1.0, "equal_weights")]
    others = [row for row in rows if row.second == "epoch 2"]
    assert len(others) == 4
    assert all(row.reason is None for row in others if row.ordered < 1.0)
    assert any(row.ordered < 1.0 for row in others)
