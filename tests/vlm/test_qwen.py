"""The fast path against the library's own way: processor, then ``generate`` on everything at once."""

import contextlib
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from lever_mlflow import mini
from lever_mlflow.data.okvqa import load_split
from lever_mlflow.data.vqa_accuracy import vqa_accuracy
from lever_mlflow.exceptions import DataError, LeverError
from lever_mlflow.files.images import fitted_image
from lever_mlflow.files.model_folders import load_pretrained
from lever_mlflow.mini.dataset import ensure_dataset
from lever_mlflow.vlm import local, qwen
from lever_mlflow.vlm.local import token_batches
from lever_mlflow.vlm.profiles import PROFILES
from lever_mlflow.vlm.prompt import Prompt, build_messages
from lever_mlflow.vlm.qwen import QwenVLM

MINI = PROFILES["mini"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """64 prompts of 0 to 4 demonstrations."""
    root = ensure_dataset(tmp_path_factory.mktemp("cache"))
    train, val = load_split(root, "train"), load_split(root, "val")
    return [Prompt(tuple(train[7 * i + j] for j in range(i % 5)), val[i]) for i in range(64)]


@pytest.fixture(scope="module")
def confused(tmp_path_factory):
    """A folder with the tiny model and noise on its weights: it is never sure of an answer, so any mistake changes some."""
    folder = tmp_path_factory.mktemp("confused")
    model, processor = load_pretrained(Qwen2_5_VLForConditionalGeneration, mini.VLM_PATH)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.7 * parameter.std() * torch.randn_like(parameter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def fitted(path, profile):
    return fitted_image(path, profile.min_pixels, profile.max_pixels)


def answers(prompts, batch_tokens=0, folder=mini.VLM_PATH, profile=MINI):
    model = QwenVLM(folder, "digest", profile, batch_tokens=batch_tokens)
    return [text for _, text in sorted(item for batch in model.generate(prompts) for item in batch)]


def plain_answers(prompts, folder, profile):
    """All prompts in one batch through processor and ``generate``, images and prompts read as often as they occur."""
    model, processor = load_pretrained(Qwen2_5_VLForConditionalGeneration, folder, padding_side="left")
    texts = [build_messages(*prompt, profile) for prompt in prompts]
    texts = processor.apply_chat_template(texts, tokenize=False, add_generation_prompt=True)
    images = [fitted(s.image_path, profile) for p in prompts for s in (*p.demonstrations, p.query)]
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    beams = {"num_beams": profile.num_beams, "length_penalty": profile.length_penalty} if profile.num_beams > 1 else {}
    with torch.inference_mode():
        output = model.eval().generate(**inputs, do_sample=False, max_new_tokens=profile.max_new_tokens, **beams)
    return processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_are_those_of_the_librarys_own_way(prompts, confused, num_beams):
    profile = replace(MINI, num_beams=num_beams)
    for folder in (mini.VLM_PATH, confused):
        expected = plain_answers(prompts, folder, profile)
        assert answers(prompts, 1_500, folder, profile) == expected
        assert len(set(expected)) > 20


@pytest.mark.parametrize("batch_tokens", [1, 250, 10_000])
def test_answers_do_not_depend_on_batches_or_order(prompts, confused, batch_tokens):
    whole = answers(prompts, 10**6, confused)
    assert answers(prompts, batch_tokens, confused) == whole
    assert answers(prompts[::-1], batch_tokens, confused) == whole[::-1]


def plain_gt_prob(model, processor, prompt):
    """Each answer behind the prompt in a forward pass of its own."""
    profile, total = MINI, 0.0
    text = processor.apply_chat_template(build_messages(*prompt, profile), tokenize=False, add_generation_prompt=True)
    images = [fitted(s.image_path, profile) for s in (*prompt.demonstrations, prompt.query)]
    for answer in set(prompt.query.answers):
        ending = processor.tokenizer(f" {answer}<|im_end|>")["input_ids"]
        inputs = processor(text=[f"{text} {answer}<|im_end|>"], images=images, return_tensors="pt")
        with torch.inference_mode():
            steps_LV = model(**inputs).logits[0].double().log_softmax(-1)
        assert inputs["input_ids"][0, -len(ending) :].tolist() == ending
        places = range(len(steps_LV) - len(ending) - 1, len(steps_LV) - 1)
        probability = np.exp(sum(float(steps_LV[place, token]) for place, token in zip(places, ending, strict=True)))
        total += probability * vqa_accuracy(answer, prompt.query.answers)
    return total


@pytest.mark.parametrize("batch_tokens", [200, 20_000])
def test_gt_prob_is_that_of_each_answer_alone(prompts, confused, batch_tokens):
    annotators = ("red", "blue wall", "red", "tuesday", "blue wall", "red", "uno", "red", "x", "y")
    items = [Prompt(item.demonstrations, replace(item.query, answers=annotators)) for item in prompts[:12]] + prompts[12:20]
    local = QwenVLM(confused, "digest", MINI, batch_tokens=batch_tokens)
    scores = [float(text) for _, text in sorted(item for batch in local.score(items) for item in batch)]
    model, processor = load_pretrained(Qwen2_5_VLForConditionalGeneration, confused)
    assert scores == pytest.approx([plain_gt_prob(model.eval(), processor, item) for item in items], rel=1e-4, abs=1e-12)
    assert max(scores) > 1e-4
    keys = {local.score_key(item) for item in items} | {local.key(item) for item in items}
    assert len(keys) == 2 * len(items)


def test_gt_prob_of_an_answer_in_the_prompt_is_near_one(prompts):
    query = prompts[0].query
    with_answer, alone = Prompt((query,), query), Prompt((), query)
    local = QwenVLM(mini.VLM_PATH, "digest", MINI)
    scores = dict(item for batch in local.score([alone, with_answer]) for item in batch)
    assert float(scores[1]) > 0.9 > float(scores[0])


@pytest.fixture
def threads():
    """threads(n) lets PyTorch use n threads; their old number is set after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("request_name", ["generate", "score"])
def test_results_do_not_depend_on_the_number_of_threads(prompts, confused, threads, monkeypatch, request_name):
    model = QwenVLM(confused, "digest", MINI, batch_tokens=600)
    threads(1)
    alone = list(getattr(model, request_name)(prompts))
    model.vision.clear()
    read, meeting, readers = model._read, threading.Barrier(2), set()

    def met(part, batch):
        result = read(part, batch)
        with contextlib.suppress(threading.BrokenBarrierError):  # the last batch may be without a partner
            meeting.wait(2)  # now both threads have read: a model that they share has forgotten the first prompts
        readers.add((threading.get_ident(), id(part)))
        return result

    monkeypatch.setattr(model, "_read", met)
    threads(2)
    assert list(getattr(model, request_name)(prompts)) == alone
    assert torch.get_num_threads() == 2
    assert len({thread for thread, _ in readers} - {threading.get_ident()}) == 2
    assert len({part for _, part in readers}) == 2
    assert len(alone) > 8


def test_large_models_and_gpus_keep_their_batches_and_one_model(prompts, threads, monkeypatch):
    threads(3)
    model = QwenVLM(mini.VLM_PATH, "digest", MINI)
    assert len(model._models()) == 3
    assert model._most_tokens == 2_048 < model.batch_tokens
    monkeypatch.setattr(qwen, "_SMALL_MODEL", 1_002_943)
    assert model._models() == [model.loaded.model]
    assert model._most_tokens == 8_192
    monkeypatch.undo()
    model.device = "cuda"
    assert model._models() == [model.loaded.model]


def test_an_error_in_a_thread_is_that_of_one_thread(prompts, threads, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(prompts[0].query.image_path.read_bytes()[:60])
    shortest = Prompt((), replace(prompts[0].query, image_path=damaged))
    for count in (1, 2):
        threads(count)
        batches, results = QwenVLM(mini.VLM_PATH, "digest", MINI, batch_tokens=300).generate([*prompts, shortest]), []
        with pytest.raises(DataError, match=r"damaged\.png: does not decode"):
            results.extend(position for batch in batches for position, _ in batch)
        assert torch.get_num_threads() == count


def test_batches_are_cut_by_tokens_and_the_longest_come_first(prompts, monkeypatch):
    model = QwenVLM(mini.VLM_PATH, "digest", MINI, batch_tokens=400)
    shapes, generate = [], model.loaded.model.generate

    def recorded(input_ids, **inputs):
        shapes.append(tuple(input_ids.shape))
        return generate(input_ids=input_ids, **inputs)

    monkeypatch.setattr(model.loaded.model, "generate", recorded)
    positions = [position for batch in model.generate(prompts) for position, _ in batch]
    assert all(count * length <= 400 for count, length in shapes)
    counts = model.token_counts(prompts)
    assert [counts[position] for position in positions] == sorted(counts, reverse=True)
    firsts = np.cumsum([0, *(count for count, _ in shapes[:-1])])
    assert [length for _, length in shapes] == [counts[positions[first]] for first in firsts]
    assert sum(count for count, _ in shapes) == 64


def test_token_batches_by_hand():
    lengths = [3, 9, 4, 4, 1]
    assert list(token_batches([1, 2, 3, 0, 4], lengths, 12)) == [[1], [2, 3, 0], [4]]
    assert list(token_batches([4, 2], lengths, 2)) == [[4], [2]]
    assert list(token_batches([], lengths, 2)) == []


@pytest.mark.parametrize(
    ("count", "error"),
    [
        (1, torch.OutOfMemoryError("CUDA out of memory")),
        (3, RuntimeError("err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")),
        (1, MemoryError()),
    ],
)
def test_memory_that_does_not_hold_a_batch_halves_it(prompts, monkeypatch, caplog, threads, count, error):
    threads(count)
    expected = answers(prompts)
    model = QwenVLM(mini.VLM_PATH, "digest", MINI, batch_tokens=1_600)
    read, most = model._read, 5

    def small(part, batch):
        if len(batch.prompts) > most:
            raise error
        return read(part, batch)

    monkeypatch.setattr(model, "_read", small)
    positions, texts = zip(*(item for batch in model.generate(prompts) for item in batch), strict=True)
    assert [text for _, text in sorted(zip(positions, texts, strict=True))] == expected
    lengths = model.token_counts(prompts)
    assert list(positions) == sorted(range(64), key=lambda i: (-lengths[i], i))
    assert model.batch_tokens == 200
    logged = [record.args for record in caplog.records if record.message.startswith("out of memory")]
    assert logged == [(10, 800), (6, 400), (7, 200)]
    most = 0
    with pytest.raises(LeverError, match="does not hold a single prompt; use fewer shots, a smaller VLM or a larger device"):
        list(model.generate(prompts))
    assert torch.get_num_threads() == count


def test_a_demonstration_is_followed(prompts):
    query = next(p.query for p in prompts)
    copied = answers([Prompt((query,), query)])[0]
    assert copied.strip() == query.answer


def test_a_folder_that_is_no_model(prompts, tmp_path):
    with pytest.raises(DataError, match="not a readable AutoModelForImageTextToText folder"):
        list(QwenVLM(tmp_path, "digest", MINI).generate(prompts[:1]))


def test_batches_are_larger_on_a_gpu():
    assert QwenVLM(mini.VLM_PATH, "digest", MINI).batch_tokens == local.BATCH_TOKENS["cpu"]
    assert QwenVLM(mini.VLM_PATH, "digest", MINI, "cuda:1").batch_tokens == local.BATCH_TOKENS["cuda"]
