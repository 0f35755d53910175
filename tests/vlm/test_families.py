"""Other families than the embedded VLM's, by tiny models of the official classes with random weights."""

import json
import shutil
from dataclasses import replace

import pytest
from helpers import tiny_vlms
from helpers.prompts import mini_prompts

from lever_mlflow import mini
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.vlm.asking import Asker, AskerSettings
from lever_mlflow.vlm.generic import GenericVLM
from lever_mlflow.vlm.language_model import VlmName, check_language_model, open_language_model
from lever_mlflow.vlm.profiles import PROFILES
from lever_mlflow.vlm.prompt import Prompt, plain_text
from lever_mlflow.vlm.qwen import QwenVLM

SMALL = replace(PROFILES["generic"], min_pixels=56 * 56, max_pixels=64 * 64)


@pytest.fixture(scope="module")
def prompts(cache_dir):
    """Twelve prompts of 0 to 2 demonstrations."""
    return mini_prompts(cache_dir, [0, 1, 2] * 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(family) holds a tiny model of the family."""
    root, makers = tmp_path_factory.mktemp("tiny"), tiny_vlms.FAST | tiny_vlms.GENERIC

    def write(family):
        path = root / family
        return path if path.is_dir() else makers[family](path)

    return write


def opened(folder, digest_dir, **changes):
    model = open_language_model(VlmName(str(folder)), digest_dir)
    model.profile = replace(SMALL, **changes)
    return model


def texts(model, prompts):
    return [text for _, text in sorted(item for batch in model.generate(prompts) for item in batch)]


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", tiny_vlms.FAST)
def test_the_fast_path_answers_as_the_generic_one(folder, prompts, tmp_path, family, num_beams):
    model = opened(folder(family), tmp_path, num_beams=num_beams)
    assert isinstance(model, QwenVLM)
    check_language_model(model)
    answers = texts(model, prompts)
    assert answers == texts(GenericVLM(model.folder, "digest", model.profile), prompts)
    assert len(set(answers)) > 2


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_embedded_vlm_answers_the_same_on_the_generic_path(prompts, num_beams):
    profile = replace(PROFILES["mini"], num_beams=num_beams)
    fast, generic = (kind(mini.VLM_PATH, "digest", profile) for kind in (QwenVLM, GenericVLM))
    assert texts(fast, prompts) == texts(generic, prompts)


@pytest.mark.parametrize("family", tiny_vlms.GENERIC)
def test_answers_of_other_families_do_not_depend_on_batches(folder, prompts, tmp_path, family):
    model = opened(folder(family), tmp_path)
    assert isinstance(model, GenericVLM)
    check_language_model(model)
    together = texts(model, prompts)
    model.batch_tokens = 1
    assert texts(model, prompts) == together
    assert len(set(together)) > 1
    counts = model.token_counts(prompts)
    assert all(counts[i] == counts[i % 3] for i in range(12))  # estimated by the first prompt with as many images
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("family", ["qwen2_vl", *tiny_vlms.GENERIC])
def test_special_tokens_in_the_data_are_text(folder, prompts, tmp_path, family):
    model = opened(folder(family), tmp_path)
    words = model.loaded.processor.tokenizer
    added = [token.content for token in words.added_tokens_decoder.values()]
    assert len(added) >= 8
    assert all(plain_text(token) != token for token in added)
    assert not set(words(plain_text(" ".join(added)), add_special_tokens=False)["input_ids"]) & set(words.added_tokens_decoder)
    odd = replace(prompts[0].query, question=" ".join(added), answers=(" ".join(added),) * 10)
    assert len(texts(model, [Prompt((odd,), odd)])) == 1  # or the processor would miss images for the tokens


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_another_type_are_other_results(prompts, tmp_path, dtype):
    half = open_language_model(VlmName(str(mini.VLM_PATH), profile="mini", dtype=dtype), tmp_path)
    full = open_language_model(VlmName(str(mini.VLM_PATH), profile="mini"), tmp_path)
    assert (half.recorded["vlm_dtype"], full.recorded["vlm_dtype"]) == (dtype, "float32")
    assert half.digest == full.digest.replace("-float32", f"-{dtype}-rotary-float32")
    answers = texts(half, prompts)
    assert str(half.loaded.model.dtype) == f"torch.{dtype}"
    assert sum(ours == theirs for ours, theirs in zip(answers, texts(full, prompts), strict=True)) >= 10


def test_gt_prob_takes_a_qwen_vl(folder, prompts, tmp_path):
    asker = Asker(AskerSettings(VlmName(str(folder("gemma3"))), tmp_path))
    with pytest.raises(
        ParameterError, match=r"gemma3 does not tell how probable answers are; use a local Qwen-VL or gt_prob=false"
    ):
        asker.score(prompts, "test")


def damaged(folder, tmp_path, **config):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return copy


def test_a_model_that_is_no_vlm_is_refused(tmp_path):
    copy = damaged(mini.CLIP_PATH, tmp_path)
    with pytest.raises(DataError, match=r"copy: config\.json says model_type 'clip', which is no image-text-to-text model"):
        check_language_model(open_language_model(VlmName(str(copy)), tmp_path))


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3"])
def test_a_model_without_a_chat_template_is_refused(folder, tmp_path, family):
    copy = damaged(folder(family), tmp_path)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match="copy: the model has no chat template; give an instruction-tuned model of the family"):
        check_language_model(open_language_model(VlmName(str(copy)), tmp_path))


def test_a_template_that_takes_one_image_is_refused(folder, tmp_path):
    copy = damaged(folder("gemma3"), tmp_path)
    path = copy / "chat_template.jinja"
    path.write_text(
        path.read_text().replace(
            "{% for message in messages %}", "{% for message in messages %}{{ raise_exception('one image only') }}", 1
        )
    )
    with pytest.raises(DataError, match=r"makes no prompt of several images .*one image only.*; give another model"):
        check_language_model(open_language_model(VlmName(str(copy)), tmp_path))
