"""Images as the VLM sees them: how many tokens they take, and that each is encoded once in bounded memory."""

from types import SimpleNamespace

import psutil
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from lever_mlflow import mini
from lever_mlflow.data.okvqa import load_split
from lever_mlflow.exceptions import DataError
from lever_mlflow.files.images import fitted_image
from lever_mlflow.files.model_folders import load_pretrained
from lever_mlflow.mini.dataset import ensure_dataset
from lever_mlflow.vlm.profiles import PROFILES
from lever_mlflow.vlm.vision_cache import VisionCache, visual_tokens


@pytest.fixture(scope="module")
def paths(cache_dir):
    """100 image files, some of them equal."""
    samples = load_split(ensure_dataset(cache_dir), "train")
    return [samples[3 * i % 60].image_path for i in range(100)]


@pytest.fixture(scope="module")
def model_and_processor():
    """The embedded VLM and its processor."""
    return load_pretrained(Qwen2_5_VLForConditionalGeneration, mini.VLM_PATH)


def fitted(path, profile):
    return fitted_image(path, profile.min_pixels, profile.max_pixels)


def test_each_image_is_encoded_once_within_bounded_memory(paths, model_and_processor):
    model, processor = model_and_processor
    large = VisionCache(model, processor, PROFILES["mini"], 28)
    first, again = large.features(paths), large.features(paths)
    distinct = len({path.read_bytes() for path in paths})
    assert large.encoded == distinct < len(paths)
    small = VisionCache(model, processor, PROFILES["mini"], 28, max_bytes=3 * first[0][0].nbytes)
    pixels = processor.image_processor(images=[fitted(path, PROFILES["mini"]) for path in paths], return_tensors="pt")
    with torch.inference_mode():
        at_once = model.get_image_features(**pixels, return_dict=True).pooler_output
    for cached, repeated, recomputed, expected in zip(first, again, small.features(paths), at_once, strict=True):
        assert torch.equal(cached[0], repeated[0])
        torch.testing.assert_close(cached[0], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(recomputed[0], expected, atol=1e-5, rtol=1e-5)


def test_processes_that_were_launched_together_share_half_of_the_memory(model_and_processor, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=800))
    assert VisionCache(*model_and_processor, PROFILES["mini"], 28)._features.maxsize == 400
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert VisionCache(*model_and_processor, PROFILES["mini"], 28)._features.maxsize == 50


def test_the_least_recently_used_image_is_dropped(paths, model_and_processor):
    one, two, three, four = list({path.read_bytes(): path for path in paths}.values())[:4]
    model, processor = model_and_processor
    size = VisionCache(model, processor, PROFILES["mini"], 28).features([one])[0][0].nbytes
    small = VisionCache(model, processor, PROFILES["mini"], 28, max_bytes=3 * size)
    encoded = []
    for path in (one, two, three, one, four, one, three, two):
        small.features([path])
        encoded.append(small.encoded)
    assert encoded == [1, 2, 3, 3, 4, 4, 4, 5]
    small.clear()
    small.features([one])
    assert small.encoded == 6


@pytest.mark.parametrize("name", ["mini", "qwen2.5-vl"])
@pytest.mark.parametrize("size", [(56, 56), (640, 480), (333, 500), (60, 80), (4000, 3000)])
def test_visual_tokens_are_those_of_the_resized_image(tmp_path, name, size):
    path = tmp_path / "image.png"
    Image.new("RGB", size).save(path)
    width, height = fitted(path, PROFILES[name]).size
    assert visual_tokens(path, PROFILES[name], 28) == (width // 28) * (height // 28)


def test_an_image_too_long_for_the_model_is_named(tmp_path):
    path = tmp_path / "long.png"
    Image.new("RGB", (2010, 10)).save(path)
    for read in (visual_tokens, fitted):
        with pytest.raises(DataError, match=r"long\.png: cannot be shown to the VLM \(absolute aspect ratio"):
            read(path, PROFILES["mini"])
