import numpy as np
import pytest

from lever_mlflow.evaluation.policies import (
    BASELINES,
    checkpoint_policy,
    epoch_policy,
    metric_name,
    random_picks,
    similarity_picks,
    whole_set_policy,
)


def test_names_of_the_policies():
    assert BASELINES == (
        "zero-shot",
        "random",
        "image-similarity",
        "image-similarity (full training set)",
        "text-similarity",
        "text-similarity (full training set)",
        "fused-similarity",
        "fused-similarity (full training set)",
    )
    assert (epoch_policy(3), checkpoint_policy(1, "old.pt")) == ("epoch 3", "checkpoint 1 (old.pt)")
    assert metric_name(whole_set_policy("fused")) == "fused_similarity_full_training_set"
    assert metric_name(checkpoint_policy(2, "models:/m@champion")) == "checkpoint_2_models_m_champion"


def test_picks_of_the_baselines(samples):
    pools = np.array([[4, 7, 9, 20], [1, 2, 3, 6]])
    train = np.eye(30, dtype=np.float32)
    queries = np.zeros((2, 30), dtype=np.float32)
    queries[0, 9], queries[0, 4], queries[1, 6] = 1.0, 0.5, 1.0
    assert similarity_picks(queries, pools, train, 2).tolist() == [[9, 4], [6, 1]]
    picks = random_picks(samples[:2], pools, 3, seed=0)
    assert all(set(row) < set(pool) and len(set(row)) == 3 for row, pool in zip(picks.tolist(), pools.tolist(), strict=True))
    assert picks.tolist() == random_picks(samples[:2], pools, 3, seed=0).tolist()
    assert random_picks(samples[1:2], pools[1:], 3, seed=0).tolist() == picks[1:].tolist()
    many = np.stack([random_picks(samples[:2], pools, 3, seed=0, draw=draw) for draw in range(2000)])
    assert (many[0] == picks).all()
    for candidate in pools[0]:  # uniform: each of 4 candidates is the first pick in a quarter of the draws
        assert np.mean(many[:, 0, 0] == candidate) == pytest.approx(0.25, abs=0.04)
