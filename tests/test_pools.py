import numpy as np
import pytest

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.pools import random_pool, top_k


def test_pool_never_holds_the_query_or_its_image(samples):
    for query in samples:
        pool = random_pool(samples, query, 20, seed=1).tolist()
        assert len(set(pool)) == 20
        assert query.image_id not in {samples[i].image_id for i in pool}


def test_pool_depends_on_seed_and_question_alone(samples):
    pool = random_pool(samples, samples[3], 8, seed=1).tolist()
    assert pool == random_pool(samples, samples[3], 8, seed=1).tolist()
    assert pool != random_pool(samples, samples[3], 8, seed=2).tolist()
    assert pool != random_pool(samples, samples[8], 8, seed=1).tolist()


def test_pool_is_uniform(samples):
    counts = np.zeros(30)
    for seed in range(3000):
        counts[random_pool(samples, samples[0], 7, seed)] += 1
    assert counts[:2].tolist() == [0, 0]  # items 0 and 1 are of the query's image
    np.testing.assert_allclose(counts[2:], 3000 * 7 / 28, atol=5 * np.sqrt(3000 * 0.25 * 0.75))


def test_all_eligible_items_can_be_asked_for_but_no_more(samples):
    assert sorted(random_pool(samples, samples[0], 28, seed=0).tolist()) == list(range(2, 30))
    with pytest.raises(ParameterError, match="pool_size=29, but only 28 training items are eligible"):
        random_pool(samples, samples[0], 29, seed=0)


def test_top_k_best_first_and_earlier_among_equals():
    candidates = np.array([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    assert top_k(np.array([1.0, 0.0]), candidates, 3).tolist() == [1, 3, 2]
    with pytest.raises(ParameterError, match="k=5 with 4 candidates"):
        top_k(np.array([1.0, 0.0]), candidates, 5)
