from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from lever_mlflow.data.candidate_pools import Block, candidate_pools, items_by_image, nearest, random_pool, top_k
from lever_mlflow.data.features import FeatureTable, longest_item
from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.settings import PoolSampler

SAMPLERS = get_args(PoolSampler)


def table(image_SD, text_SD):
    return FeatureTable(image_SD, text_SD, image_SD + text_SD, np.concatenate([image_SD, text_SD], axis=1), "digest")


@pytest.fixture
def features(samples):
    """Equal images have equal features, and questions are of five kinds, so that there are ties."""
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((15, 8)).astype(np.float32), rng.standard_normal((5, 8)).astype(np.float32)
    return table(image[[s.image_id for s in samples]], text[[s.index % 5 for s in samples]])


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


def test_random_pools_stay_as_they_were_in_the_first_recordings(samples, features):
    def pool(query, size, seed):
        return candidate_pools([samples[query]], samples, "random", size, seed, features, features)[0].tolist()

    assert pool(0, 8, 0) == [23, 3, 28, 19, 25, 10, 14, 29]
    assert pool(3, 8, 1) == [29, 25, 12, 16, 28, 22, 17, 9]
    assert pool(17, 20, 7) == [7, 23, 29, 20, 0, 2, 3, 14, 28, 6, 18, 8, 12, 27, 5, 1, 11, 24, 4, 22]
    many = [Sample(i, 1000 + i, i // 3, "q", Path("x"), ("a",) * 10) for i in range(9009)]
    assert random_pool(many, many[5000], 8, 0).tolist() == [5350, 64, 1700, 1440, 7479, 7362, 6984, 1758]


def test_pool_is_uniform(samples):
    counts = np.zeros(30)
    for seed in range(3000):
        counts[random_pool(samples, samples[0], 7, seed)] += 1
    assert counts[:2].tolist() == [0, 0]  # items 0 and 1 are of the query's image
    np.testing.assert_allclose(counts[2:], 3000 * 7 / 28, atol=5 * np.sqrt(3000 * 0.25 * 0.75))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("size", [1, 7, 16, 28])
def test_every_sampler_gives_different_items_of_other_images(samples, features, sampler, size):
    pools_QN = candidate_pools(samples, samples, sampler, size, 3, features, features)
    assert pools_QN.shape == (30, size)
    for query, pool in zip(samples, pools_QN.tolist(), strict=True):
        assert len(set(pool)) == size
        assert query.image_id not in {samples[i].image_id for i in pool}
    assert np.array_equal(candidate_pools(samples[4:5], samples, sampler, size, 3, features, features)[0], pools_QN[4])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_eligible_items_can_be_asked_for_but_no_more(samples, features, sampler):
    pool = candidate_pools(samples[:1], samples, sampler, 28, 0, features, features)[0]
    assert sorted(pool.tolist()) == list(range(2, 30))
    with pytest.raises(ParameterError, match="pool_size=29, but only 28 training items are eligible for question 100"):
        candidate_pools(samples[:1], samples, sampler, 29, 0, features, features)


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [("image-similarity", "image_SD"), ("text-similarity", "text_SD"), ("fused-similarity", "fused_SD")],
)
def test_similarity_pools_are_the_most_similar_first(samples, features, sampler, kind):
    items = getattr(features, kind)
    expected = []
    for query in samples:
        order = np.argsort(-(items @ items[query.index]), kind="stable").tolist()
        expected.append([i for i in order if samples[i].image_id != query.image_id][:9])
    assert candidate_pools(samples, samples, sampler, 9, 0, features, features).tolist() == expected
    assert candidate_pools(samples, samples, sampler, 9, 1, features, features).tolist() == expected


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_items_by_image_may_be_handed_over(samples, features, sampler):
    by_image = items_by_image(samples)
    assert {image_id: indices.tolist() for image_id, indices in by_image.items()} == {
        image_id: [i for i in range(30) if samples[i].image_id == image_id] for image_id in {s.image_id for s in samples}
    }
    queries = [*samples[:6], Sample(6, 900, -1, "of no item's image?", Path("900.jpg"), ("answer",) * 10)]
    expected = candidate_pools(queries, samples, sampler, 9, 2, features, features)
    assert np.array_equal(candidate_pools(queries, samples, sampler, 9, 2, features, features, by_image), expected)
    if sampler != "random":  # what is handed over is what is used
        one = {samples[0].image_id: np.arange(2, 12)}
        pool = candidate_pools(queries[:1], samples, sampler, 9, 2, features, features, one)[0].tolist()
        assert pool != expected[0].tolist()


def test_a_query_of_the_other_split_is_found_by_its_own_features(samples, features):
    other = table(features.image_SD[::-1].copy(), features.text_SD)
    query = Sample(2, 900, 900, "another question?", Path("900.jpg"), ("answer",) * 10)
    pool = candidate_pools([query], samples, "image-similarity", 2, 0, other, features)[0]
    assert pool.tolist() == [26, 27]  # row 2 of the other split is item 27's image


def test_a_mixed_pool_is_half_random_a_quarter_by_image_a_quarter_by_text(samples, features):
    for query in samples:
        pool = candidate_pools([query], samples, "mixed", 11, 5, features, features)[0].tolist()
        expected = random_pool(samples, query, 7, 5).tolist()  # 11 - 2 * 2
        for items in (features.image_SD, features.text_SD):
            order = np.argsort(-(items @ items[query.index]), kind="stable").tolist()
            expected += [i for i in order if samples[i].image_id != query.image_id and i not in expected][:2]
        assert pool == expected


def test_a_fixed_pool_has_the_first_items_without_those_about_the_own_image(samples, features):
    pools_QN = candidate_pools(samples, samples, "fixed", 5, 0, features, features)
    for query, pool in zip(samples, pools_QN.tolist(), strict=True):
        others = [index for index in range(30) if samples[index].image_id != query.image_id]
        assert pool == others[:5]
    assert pools_QN[0].tolist() == [2, 3, 4, 5, 6]  # items 0 and 1 are of the query's image
    assert pools_QN[29].tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(pools_QN, candidate_pools(samples, samples, "fixed", 5, 9, features, features))


def test_top_k_best_first_and_earlier_among_equals():
    candidates = np.array([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    assert top_k(np.array([1.0, 0.0]), candidates, 3).tolist() == [1, 3, 2]
    with pytest.raises(ParameterError, match="k=5 with 4 candidates"):
        top_k(np.array([1.0, 0.0]), candidates, 5)


def plain_nearest(queries_QD, items_SD, k, excluded):
    """All scores in float64, and a stable sort of each row."""
    scores_QS = queries_QD.astype(np.float64) @ items_SD.astype(np.float64).T
    for scores_S, indices in zip(scores_QS, excluded, strict=True):
        scores_S[indices] = -np.inf
    return np.argsort(-scores_QS, axis=1, kind="stable")[:, :k]


SMALL = Block(queries=4, items=50, pairs=7)  # a few hundred items fill many blocks, the last one in part


@pytest.mark.parametrize("k", [1, 20, 60, 301])
@pytest.mark.parametrize("largest", [0, 1, 3])
def test_nearest_is_a_full_sort_with_many_ties(k, largest):
    rng = np.random.default_rng(k)
    queries, items = (rng.integers(-largest, largest + 1, (n, 6)).astype(np.float32) for n in (9, 311))
    excluded = [rng.choice(311, rng.integers(0, 11), replace=False) for _ in range(9)]
    indices = nearest(queries, items, k, excluded, SMALL)
    assert indices.dtype == np.int64
    assert np.array_equal(indices, plain_nearest(queries, items, k, excluded))
    assert np.array_equal(nearest(queries, items, k, excluded, SMALL, longest_item(items)), indices)


def test_nearest_does_not_mind_how_a_product_of_matrices_rounds():
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(96)
    items = (direction + 1e-7 * rng.standard_normal((400, 96))).astype(np.float32)  # scores differ by less than float32 tells
    items[[11, 77, 301]] = items[200]
    queries = rng.standard_normal((6, 96)).astype(np.float32)
    exact_QS = [[sum(float(a) * float(b) for a, b in zip(q, i, strict=True)) for i in items] for q in queries]
    expected = np.argsort(-np.array(exact_QS), axis=1, kind="stable")[:, :30]
    for longest in (None, longest_item(items)):
        assert np.array_equal(nearest(queries, items, 30, [np.array([], dtype=np.int64)] * 6, SMALL, longest), expected)
    rough = np.argsort(-(queries @ items.T), axis=1, kind="stable")[:, :30]
    assert not np.array_equal(rough, expected)


def test_nearest_reads_a_table_on_disk_in_slices(tmp_path):
    class Sliced:
        """Records how many rows of a table are read at a time."""

        def __init__(self, table):
            self.table, self.largest = table, 0

        def __len__(self):
            return len(self.table)

        def __getitem__(self, rows):
            self.largest = max(self.largest, len(self.table[rows]))
            return self.table[rows]

    np.save(tmp_path / "items.npy", np.random.default_rng(0).standard_normal((333, 5)).astype(np.float32))
    items = np.load(tmp_path / "items.npy", mmap_mode="r")
    sliced, none = Sliced(items), [np.array([], dtype=np.int64)] * 3
    assert np.array_equal(nearest(items[:3], sliced, 4, none, SMALL), plain_nearest(items[:3], np.array(items), 4, none))
    assert sliced.largest == 50


def test_nearest_of_too_many_or_of_damaged_features():
    items = np.eye(4, dtype=np.float32)
    assert nearest(items[:0], items, 2, []).shape == (0, 2)
    with pytest.raises(ParameterError, match="k=3 with 2 candidates; choose 1 to 2"):
        nearest(items[:2], items, 3, [np.array([0, 1]), np.array([1])])
    items[3, 3] = np.nan
    with pytest.raises(DataError, match="a feature is NaN or infinite"):
        nearest(items[:2], items, 1, [np.array([0]), np.array([1])])
    with pytest.raises(DataError, match="a feature is NaN or infinite"):
        nearest(items[:2], items, 1, [np.array([0]), np.array([1])], longest=longest_item(items))
