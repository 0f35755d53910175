"""Checks parts of the tiny models' training: batched vision equals the library's tower, and episodes hide unknown answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lever_mlflow.mini.dataset import digit_images
from lever_mlflow.mini.families import FAMILIES
from lever_mlflow.mini.making.augment import gray_images
from lever_mlflow.mini.making.episodes import draw_episode
from lever_mlflow.mini.making.vlm_parts import build_model, build_processor, encode_images


def test_batched_vision_equals_the_librarys_vision_tower() -> None:
    torch.manual_seed(0)
    processor = build_processor()
    model = build_model(processor).eval()
    library_inputs = processor.image_processor(digit_images("val")[0][:3], return_tensors="pt")
    with torch.inference_mode():
        expected = model.model.visual(library_inputs["pixel_values"], grid_thw=library_inputs["image_grid_thw"]).pooler_output
        batched = encode_images(model, processor, gray_images("val")[0][:3])
    torch.testing.assert_close(batched.flatten(0, 1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shots", [0, 1, 4])
def test_an_answer_weighs_fully_only_if_something_predicts_it(shots: int) -> None:
    rng = np.random.default_rng(0)
    rows_by_digit = [np.array([digit]) for digit in range(10)]
    for _ in range(200):
        items = draw_episode(rng, shots, rows_by_digit).items
        assert len(items) == shots + 1
        for position, item in enumerate(items):
            family = FAMILIES[item.family]
            earlier = [i for i in items[:position] if (i.family, i.digit) == (item.family, item.digit)]
            assert all(match.answer == item.answer for match in earlier)
            is_true = item.digit in family.known and item.answer == family.answers[item.digit]
            assert (item.weight == 1.0) == (bool(earlier) or is_true)


def test_a_known_query_without_a_match_keeps_its_true_answer() -> None:
    rng = np.random.default_rng(1)
    rows_by_digit = [np.array([digit]) for digit in range(10)]
    for _ in range(300):
        *demonstrations, query = draw_episode(rng, 2, rows_by_digit).items
        is_shown = any((d.family, d.digit) == (query.family, query.digit) for d in demonstrations)
        family = FAMILIES[query.family]
        if query.digit in family.known and not is_shown:
            assert query.answer == family.answers[query.digit]
