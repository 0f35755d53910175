import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lever_mlflow.data.candidate_pools import random_pool
from lever_mlflow.data.okvqa import load_split
from lever_mlflow.mini.dataset import digit_images, ensure_dataset
from lever_mlflow.mini.families import FAMILIES, dataset_families

FAMILY = {phrasing: family for family in FAMILIES for phrasing in family.phrasings}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    root = ensure_dataset(tmp_path_factory.mktemp("cache"))
    return {split: load_split(root, split) for split in ("train", "val")}


def cell(sample, digit_of_image):
    """Returns family and digit of a question."""
    return FAMILY[sample.question].name, digit_of_image[sample.image_id]


def digits(split):
    first = {"train": 1, "val": 100_001}[split]
    return {first + i: int(digit) for i, digit in enumerate(digit_images(split)[1])}


def test_families():
    assert all(len(set(family.phrasings)) == 3 for family in FAMILIES)
    assert len(FAMILY) == 3 * len(FAMILIES)
    assert len(dataset_families()) == 12
    assert all(family.known <= family.answers.keys() for family in FAMILIES)
    german = next(family for family in FAMILIES if family.name == "german")
    assert [german.answers[d] for d in (0, 5, 9)] == ["null", "fuenf", "neun"]


def test_sizes_and_disjoint_image_sets(splits):
    assert len(splits["train"]) == 1564
    assert len(splits["val"]) == 1380
    assert not {s.image_id for s in splits["train"]} & {s.image_id for s in splits["val"]}
    pixels = {part: {image.tobytes() for image in digit_images(part)[0]} for part in ("model", "train", "val")}
    assert sum(len(images) for images in pixels.values()) == len(set().union(*pixels.values()))
    assert sum(len(digit_images(part)[0]) for part in pixels) == 1797


def test_images_are_the_digits(splits):
    sample = splits["val"][0]
    stored = np.asarray(Image.open(sample.image_path), dtype=float)
    drawn = np.asarray(digit_images("val")[0][sample.image_id - 100_001], dtype=float)
    assert stored.shape == (56, 56, 3)
    assert np.abs(stored - drawn).mean() < 4.0  # JPEG


def test_annotators_mostly_agree_on_the_truth(splits):
    for split, samples in splits.items():
        digit = digits(split)
        right = [s.answer == FAMILY[s.question].answers[digit[s.image_id]] for s in samples]
        assert np.mean(right) > 0.99
        agreement = [Counter(s.answers).most_common(1)[0][1] for s in samples]
        assert 0.5 < np.mean(np.array(agreement) == 10) < 0.8


def test_half_of_the_queries_find_a_match_in_a_pool(splits):
    train, digit = splits["train"], digits("train")
    hits = [any(cell(train[i], digit) == cell(query, digit) for i in random_pool(train, query, 64, seed=0)) for query in train]
    assert np.mean(hits) >= 0.5


def test_one_image_is_asked_each_family_once(splits):
    counts = Counter((s.image_id, FAMILY[s.question].name) for s in splits["train"])
    assert set(counts.values()) == {1}


def test_written_once_and_the_same_again(tmp_path):
    first, second = ensure_dataset(tmp_path / "a"), ensure_dataset(tmp_path / "b")
    assert ensure_dataset(tmp_path / "a") == first
    name = "mscoco_val2014_annotations.json"
    assert json.loads((first / name).read_text()) == json.loads((second / name).read_text())
    assert [path.name for path in (tmp_path / "a").iterdir()] == [first.name]
