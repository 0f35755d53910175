"""Runs the frozen VLM in this process: a Qwen2.5-VL of any size in a local folder. Prompts go in, answers come out, in batches.

A prompt costs only what is new in it: each image goes through the vision tower once, and a prompt is read once for all beams.

Shapes: P prompts, L tokens of a prompt, R rows (one for each answer that is scored), T tokens of an answer, V words of the
vocabulary, I images.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lever_mlflow.data.samples import Sample
from lever_mlflow.data.vqa_accuracy import vqa_accuracy
from lever_mlflow.exceptions import LeverError
from lever_mlflow.files.images import image_digest
from lever_mlflow.files.model_folders import load_pretrained
from lever_mlflow.vlm.prompt import PROFILES, Prompt, PromptProfile, build_messages, prompt_key
from lever_mlflow.vlm.vision_cache import VisionCache, visual_tokens

__all__ = ["BATCH_TOKENS", "LoadedModel", "LocalVLM", "token_batches"]

BATCH_TOKENS = {"cpu": 8_192, "cuda": 32_768}

log = logging.getLogger(__name__)


class LoadedModel(NamedTuple):
    """Holds a loaded Qwen2_5_VLForConditionalGeneration, its processor, and the features of the images it has seen."""

    model: Any
    processor: Any
    vision: VisionCache


class LocalVLM:
    """Answers prompts with a Qwen2.5-VL. Weights are loaded at the first generation, so that cached answers cost nothing.

    In float32 answers do not depend on how prompts are batched. In bfloat16, where sums are rounded to 8 bits, two answers of
    nearly equal score may change places with the shape of the batch, so ``batch_tokens`` is recorded with the answers.

    Args:
        folder: as written by ``save_pretrained`` (config, safetensors, processor, tokenizer).
        digest: names the folder's content.
        profile: a key of ``lever_mlflow.vlm.prompt.PROFILES``.
        device: ``cpu`` or ``cuda``; the model is in bfloat16 on ``cuda`` and in float32 on ``cpu``.
        batch_tokens: most tokens of a batch, padding and visual tokens included; 0 means 8,192 on ``cpu`` and 32,768 on
            ``cuda``. The number is halved for the rest of the run whenever memory does not hold a batch.
    """

    def __init__(self, folder: Path, digest: str, profile: str, device: str = "cpu", batch_tokens: int = 0) -> None:
        self.folder, self.device = folder, device
        self.batch_tokens = batch_tokens or BATCH_TOKENS[device.split(":")[0]]
        self.dtype = "bfloat16" if device.startswith("cuda") else "float32"
        self.digest = f"{digest}-{self.dtype}"  # answers of different precision are different answers
        self.profile: PromptProfile = PROFILES[profile]

    @property
    def recorded(self) -> dict[str, Any]:
        """Returns what runs log of the model beside its name and digests."""
        return {"vlm_dtype": self.dtype, "vlm_batch_tokens": self.batch_tokens}

    @cached_property
    def loaded(self) -> LoadedModel:
        """Loads the model and its weights on first use.

        Raises:
            DataError: the folder is no Qwen2.5-VL model.
        """
        import torch
        from transformers import Qwen2_5_VLForConditionalGeneration

        # Batches are padded on the left: generation continues at the right end of each prompt.
        model, processor = load_pretrained(Qwen2_5_VLForConditionalGeneration, self.folder, padding_side="left")
        model = model.to(self.device, getattr(torch, self.dtype)).eval()
        return LoadedModel(model, processor, VisionCache(model, processor, self.profile))

    def key(self, prompt: Prompt) -> str:
        """Returns a digest of all that the answer to a prompt depends on."""
        return prompt_key(prompt, self.profile, self.digest, image_digest)

    def score_key(self, prompt: Prompt) -> str:
        """Returns a digest of all that the score of a prompt depends on."""
        return hashlib.sha256(json.dumps(["gt_prob", self.key(prompt), sorted(prompt.query.answers)]).encode()).hexdigest()

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """Yields the raw generations of one batch after another as (position in ``prompts``, text), longest prompts first.

        Raises:
            DataError: an image does not decode, or the folder is no Qwen2.5-VL model.
            LeverError: a single prompt does not fit into memory.
        """
        yield from self._in_batches(prompts, self._answers, [1] * len(prompts))

    def score(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """Yields how probable right answers are after each prompt, the ``gt_prob``; batches, order and errors as ``generate``.

        ``gt_prob``, in [0, 1], is the sum over the annotators' different answers of VQA accuracy times teacher-forced
        probability, end of turn included. It is the VQA accuracy to be expected of an answer drawn from the model, if all other
        answers are wrong. It is given as text, the form in which the answer cache stores it.
        """
        yield from self._in_batches(prompts, self._gt_probs, [len(set(prompt.query.answers)) for prompt in prompts])

    def token_counts(self, prompts: Sequence[Prompt]) -> list[int]:
        """Returns the number of tokens of each prompt, visual tokens included."""
        text_tokens = self.loaded.processor.tokenizer(self._texts(prompts))["input_ids"]
        counts = []
        for tokens, prompt in zip(text_tokens, prompts, strict=True):
            # the text has one placeholder for each image
            image_tokens = [visual_tokens(sample.image_path, self.profile) - 1 for sample in _samples(prompt)]
            counts.append(len(tokens) + sum(image_tokens))
        return counts

    def _in_batches(
        self, prompts: Sequence[Prompt], work: Callable[[Sequence[Prompt]], list[str]], rows: Sequence[int]
    ) -> Iterator[list[tuple[int, str]]]:
        """Yields (position, result) of ``work`` for batches of prompts, each of which takes ``rows`` rows of a batch."""
        if not prompts:
            return
        lengths = [length * row for length, row in zip(self.token_counts(prompts), rows, strict=True)]
        waiting = sorted(range(len(prompts)), key=lambda i: (-lengths[i], i))
        while waiting:
            batch = next(token_batches(waiting, lengths, self.batch_tokens))
            texts = self._within_memory(work, [prompts[i] for i in batch])
            if texts is None:
                continue
            yield list(zip(batch, texts, strict=True))
            waiting = waiting[len(batch) :]

    def _within_memory(self, work: Callable[[Sequence[Prompt]], list[str]], prompts: Sequence[Prompt]) -> list[str] | None:
        """Returns the results of ``work``; or None if memory does not hold the batch, and halves all further batches."""
        import torch

        try:
            return work(prompts)
        except torch.OutOfMemoryError as error:
            if len(prompts) == 1:
                raise LeverError(
                    "the VLM's memory does not hold a single prompt; use fewer shots, a smaller VLM or a larger device"
                ) from error
        torch.cuda.empty_cache()
        self.batch_tokens = max(self.batch_tokens // 2, 1)
        log.warning(
            "out of memory with %d prompts in a batch; from now on a batch has %d tokens", len(prompts), self.batch_tokens
        )
        return None

    def _texts(self, prompts: Sequence[Prompt]) -> list[str]:
        """Returns prompts as text, with one placeholder for each image."""
        conversations = [build_messages(*prompt, self.profile) for prompt in prompts]
        return list(self.loaded.processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True))

    def _answers(self, prompts: Sequence[Prompt]) -> list[str]:
        """Returns the raw generations of one batch."""
        import torch

        model, processor, _ = self.loaded
        profile = self.profile
        settings: dict[str, float] = {"num_beams": profile.num_beams, "max_new_tokens": profile.max_new_tokens}
        if profile.num_beams > 1:
            settings["length_penalty"] = profile.length_penalty
        with torch.inference_mode():
            inputs, key_values = self._read(prompts)
            key_values.batch_repeat_interleave(profile.num_beams)
            output = model.generate(**inputs, past_key_values=key_values, do_sample=False, **settings)
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        return list(processor.batch_decode(new_tokens, skip_special_tokens=True))

    def _gt_probs(self, prompts: Sequence[Prompt]) -> list[str]:
        """Returns the ``gt_prob`` of the prompts of one batch."""
        import torch

        model, processor, _ = self.loaded
        tokenizer = processor.tokenizer
        answers = [list(dict.fromkeys(prompt.query.answers)) for prompt in prompts]
        row_R = torch.tensor([i for i, texts in enumerate(answers) for _ in texts], device=self.device)
        # as in the demonstrations, an answer begins with a space; the turn ends behind it
        texts = [f" {text}{tokenizer.eos_token}" for group in answers for text in group]
        targets = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(self.device)
        with torch.inference_mode():
            inputs, key_values = self._read(prompts)
            key_values.batch_select_indices(row_R)
            before_RL = inputs["attention_mask"][row_R]
            mask = torch.cat([before_RL, targets["attention_mask"][:, :-1]], dim=1)
            ids_RT = torch.cat([inputs["input_ids"][row_R, -1:], targets["input_ids"][:, :-1]], dim=1)
            places_RT = (mask.cumsum(1) - 1)[:, -ids_RT.shape[1] :] + model.model.rope_deltas[row_R]
            places_3RT = places_RT.expand(3, -1, -1)
            output = model(input_ids=ids_RT, attention_mask=mask, past_key_values=key_values, position_ids=places_3RT)
            steps_RTV = output.logits.float().log_softmax(-1)
        logprobs_RT = steps_RTV.gather(2, targets["input_ids"][..., None]).squeeze(2) * targets["attention_mask"]
        probabilities = iter(logprobs_RT.sum(1).double().exp().tolist())
        return [
            repr(sum(next(probabilities) * vqa_accuracy(text, prompt.query.answers) for text in group))
            for prompt, group in zip(prompts, answers, strict=True)
        ]

    def _read(self, prompts: Sequence[Prompt]) -> tuple[dict[str, Any], Any]:
        """Runs the model over all tokens of the prompts but the last one.

        ``generate`` continues from the keys and values, for each beam. On its own it would read the prompt once per beam.

        Returns:
            Token ids and attention mask of the whole prompts [P, L], padded on the left; and the model's keys and values.
        """
        import torch
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        model, processor, vision = self.loaded
        images = vision.features([sample.image_path for prompt in prompts for sample in _samples(prompt)])
        grids_I3 = torch.stack([grid for _, grid in images])
        marks = [processor.replace_image_token({"image_grid_thw": grids_I3}, i) for i in range(len(images))]
        texts, _ = processor.get_text_with_replacements(self._texts(prompts), images_replacements=marks)
        inputs = processor.tokenizer(texts, padding=True, return_tensors="pt")
        types_PL = torch.tensor(processor.create_mm_token_type_ids(inputs["input_ids"].tolist()))
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        features: Any = tuple(part.to(self.device, model.dtype) for part, _ in images)
        output = model(
            **{name: tensor[:, :-1] for name, tensor in inputs.items()},
            mm_token_type_ids=types_PL[:, :-1].to(self.device),
            image_grid_thw=grids_I3.to(self.device),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
            use_cache=True,
            logits_to_keep=1,
        )
        return inputs, output.past_key_values


def token_batches(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yields consecutive items of ``order`` in batches of at most ``batch_tokens``, when padded to the longest, or one item."""
    batch: list[int] = []
    longest = 0
    for item in order:
        longest = max(longest, lengths[item])
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, longest = [], lengths[item]
        batch.append(item)
    if batch:
        yield batch


def _samples(prompt: Prompt) -> tuple[Sample, ...]:
    return (*prompt.demonstrations, prompt.query)
