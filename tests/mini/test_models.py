"""Checks the embedded models: the transformers library loads them, they are small, and do what the model card says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lever_mlflow.mini import CLIP_PATH, VLM_PATH
from lever_mlflow.mini.dataset import ensure_dataset
from lever_mlflow.mini.families import FAMILIES
from lever_mlflow.mini.making.augment import gray_images
from lever_mlflow.mini.making.measure import (
    Answerer,
    DigitItem,
    Pool,
    clip_features,
    draw_prompts,
    load_items,
    pool_recall,
    search_recall,
)
from lever_mlflow.mini.making.train_clip import describe_images, draw_questions

_MEGABYTE = 1_000_000


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Runs the models on one thread. They are so small that a second thread only waits, for long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_dataset(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def pool(root: Path) -> Pool:
    return Pool(load_items(root, "train"))


@pytest.fixture(scope="module")
def unknown(root: Path) -> list[DigitItem]:
    """Returns 100 fixed val queries whose answer the VLM was not taught."""
    items = [item for item in load_items(root, "val") if not item.is_known]
    return [items[i] for i in np.random.default_rng(0).permutation(len(items))[:100]]


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer()


def exact_share(answerer: Answerer, condition: str, queries: list[DigitItem], pool: Pool) -> float:
    usable, prompts = draw_prompts(condition, queries, pool, seed=0)
    assert len(usable) >= 0.9 * len(queries)
    return float(np.mean([a == query.truth for a, query in zip(answerer.answer(prompts), usable, strict=True)]))


def test_the_folders_are_small() -> None:
    files = [*VLM_PATH.iterdir(), *CLIP_PATH.iterdir()]
    assert sum(file.stat().st_size for file in files) < 8 * _MEGABYTE


def test_the_vlm_has_about_a_million_parameters(answerer: Answerer) -> None:
    assert type(answerer.model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert 0.8e6 < sum(p.numel() for p in answerer.model.parameters()) < 1.3e6


def test_the_tokenizer_pads_on_the_left(answerer: Answerer) -> None:
    assert answerer.processor.tokenizer.padding_side == "left"


def test_each_answer_and_its_end_fit_in_five_tokens(answerer: Answerer) -> None:
    answers = {answer for family in FAMILIES for answer in family.answers.values()} | {"unknown"}
    assert all(len(answerer.processor.tokenizer(f" {answer}<|im_end|>").input_ids) <= 5 for answer in answers)


def test_a_matching_demonstration_is_copied(answerer: Answerer, unknown: list[DigitItem], pool: Pool) -> None:
    assert exact_share(answerer, "1 match", unknown, pool) >= 0.95


def test_a_match_is_found_among_near_misses(answerer: Answerer, unknown: list[DigitItem], pool: Pool) -> None:
    assert exact_share(answerer, "match anywhere in 4, others near", unknown, pool) >= 0.90


def test_without_a_match_an_unknown_answer_is_a_guess(answerer: Answerer, unknown: list[DigitItem], pool: Pool) -> None:
    assert exact_share(answerer, "no demonstration", unknown, pool) <= 0.30


def test_known_pairs_need_no_demonstration(answerer: Answerer, root: Path, pool: Pool) -> None:
    known_items = [item for item in load_items(root, "val") if item.is_known][:60]
    assert exact_share(answerer, "no demonstration", known_items, pool) >= 0.95


def test_clip_features_are_informative_but_not_an_oracle(root: Path) -> None:
    items = load_items(root, "train")[:400]
    features = clip_features(items)
    assert features["fused"].shape == (len(items), 512)
    np.testing.assert_allclose(np.linalg.norm(features["fused"], axis=1), 1.0, atol=1e-5)
    recall = pool_recall(items, features["fused"], seed=0)
    assert 0.2 < recall["digit"] < 0.5
    assert 0.4 < recall["family"] < 0.8


def test_search_finds_the_match_often_and_a_pool_nearly_always(root: Path) -> None:
    train, val = load_items(root, "train"), load_items(root, "val")[:300]
    features, queries = clip_features(train)["fused"], clip_features(val)["fused"]
    first, any_of = search_recall(val, train, queries, features)
    assert 0.45 < first < 0.7
    assert any_of > 0.92
    assert search_recall(train[:9], train, features[:9], features) == (1.0, 1.0)  # each item finds itself


def test_about_a_third_of_the_captions_name_the_digit_and_the_topic() -> None:
    rng = np.random.default_rng(0)
    gray_NHW, digits_N = gray_images("model")
    captions = describe_images(rng, gray_NHW, digits_N)
    words = [next(family.answers for family in FAMILIES if family.name == "english")[int(digit)] for digit in digits_N]
    named = [word in re.findall(r"\w+", caption) for word, caption in zip(words, captions, strict=True)]
    assert np.mean(named) == pytest.approx(0.35, abs=0.05)
    topics = {family.name.replace("_", " ") for family in FAMILIES}
    _, of_questions = draw_questions(rng, 2000)
    named = [any(f"the {topic}" in caption for topic in topics) for caption in of_questions]
    assert np.mean(named) == pytest.approx(0.35, abs=0.05)
