"""Runs the frozen VLM in this process: a Qwen2.5-VL of any size in a local folder. Prompts go in, answers come out, in batches.

A prompt costs only what is new in it: each image goes through the vision tower once, and a prompt is read once for all beams.
On a CPU, a small model answers several batches at a time, one on each core.

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

import numpy as np

from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import LeverError
from lever_mlflow.files.images import image_digest
from lever_mlflow.files.model_folders import load_pretrained
from lever_mlflow.vlm.prompt import PROFILES, Prompt, PromptProfile, build_messages, prompt_key
from lever_mlflow.vlm.threads import copies, in_threads
from lever_mlflow.vlm.vision_cache import VisionCache, visual_tokens

__all__ = ["BATCH_TOKENS", "LoadedModel", "LocalVLM", "token_batches"]

BATCH_TOKENS = {"cpu": 8_192, "cuda": 32_768}

# On a CPU, up to this size a model answers a batch on each core. A larger one keeps all cores busy by itself, and several
# batches at a time would only take more memory. The embedded VLM has 1,002,944 parameters, the smallest Qwen2.5-VL 3 billion.
_SMALL_MODEL = 20_000_000
_SMALL_MODEL_TOKENS = 2_048  # most tokens of its batches: enough that the cores get equal shares, and not slower on one core

log = logging.getLogger(__name__)


class LoadedModel(NamedTuple):
    """Holds a loaded Qwen2_5_VLForConditionalGeneration, its processor, and the features of the images it has seen."""

    model: Any
    processor: Any
    vision: VisionCache


class _Batch(NamedTuple):
    """Holds prompts of one batch as the model takes them.

    Attributes:
        prompts: the prompts.
        ids_PL, mask_PL: token ids and attention mask, int64, padded on the left.
        grids_I3: grid of patches of each image, in the order of the prompts.
        features: features of each image, [visual tokens, hidden size].
    """

    prompts: list[Prompt]
    ids_PL: Any
    mask_PL: Any
    grids_I3: Any
    features: tuple[Any, ...]


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
            ``cuda``. A small model on ``cpu`` has batches of at most 2,048, for any larger number. The number is halved for
            the rest of the run whenever memory does not hold a batch.
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

        model, processor = load_pretrained(Qwen2_5_VLForConditionalGeneration, self.folder)
        model = model.to(self.device, getattr(torch, self.dtype)).eval()
        return LoadedModel(model, processor, VisionCache(model, processor, self.profile))

    def key(self, prompt: Prompt) -> str:
        """Returns a digest of all that the answer to a prompt depends on."""
        return prompt_key(prompt, self.profile, self.digest, image_digest)

    def score_key(self, prompt: Prompt) -> str:
        """Returns a digest of all that the score of a prompt depends on."""
        query = prompt.query
        scored = [] if query.scoring == "raw" else [query.scoring, sorted(query.stemmed_answers)]
        content = ["gt_prob", self.key(prompt), sorted(query.answers), *scored]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

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
        return self._lengths(prompts, self._tokens(prompts))

    def _in_batches(
        self, prompts: Sequence[Prompt], work: Callable[[Any, _Batch], list[str]], rows: Sequence[int]
    ) -> Iterator[list[tuple[int, str]]]:
        """Yields (position, result) of ``work`` for batches of prompts, each of which takes ``rows`` rows of a batch."""
        import torch

        if not prompts:
            return
        tokens = self._tokens(prompts)
        lengths = [length * row for length, row in zip(self._lengths(prompts, tokens), rows, strict=True)]
        waiting = sorted(range(len(prompts)), key=lambda i: (-lengths[i], i))
        while waiting:
            limit, done = self._most_tokens, 0
            batches = list(token_batches(waiting, lengths, limit))
            inputs = (self._batch([prompts[i] for i in batch], [tokens[i] for i in batch]) for batch in batches)
            try:
                for batch, texts in zip(batches, in_threads(work, inputs, self._models()), strict=True):
                    yield list(zip(batch, texts, strict=True))
                    done += len(batch)
            except torch.OutOfMemoryError as error:
                failed = len(next(token_batches(waiting[done:], lengths, limit)))
                if failed == 1:
                    raise LeverError(
                        "the VLM's memory does not hold a single prompt; use fewer shots, a smaller VLM or a larger device"
                    ) from error
            else:
                return
            waiting = waiting[done:]
            self._halve(limit, failed)

    def _halve(self, limit: int, prompts: int) -> None:
        """Halves all further batches, after memory did not hold a batch of so many prompts within the limit of tokens."""
        import torch

        torch.cuda.empty_cache()
        self.batch_tokens = max(limit // 2, 1)
        log.warning("out of memory with %d prompts in a batch; from now on a batch has %d tokens", prompts, self.batch_tokens)

    @property
    def _small(self) -> bool:
        """Returns whether batches are answered in threads, if PyTorch may use several."""
        return self.device == "cpu" and sum(part.numel() for part in self.loaded.model.parameters()) <= _SMALL_MODEL

    @property
    def _most_tokens(self) -> int:
        """Returns the limit of tokens for the next batches.

        It does not depend on the number of threads, so that the digits of scores do not either.
        """
        return min(self.batch_tokens, _SMALL_MODEL_TOKENS) if self._small else self.batch_tokens

    def _models(self) -> list[Any]:
        """Returns a model for each thread. Threads cannot share one, as it keeps ``rope_deltas`` of the prompts last read."""
        import torch

        return copies(self.loaded.model, torch.get_num_threads() if self._small else 1)

    def _tokens(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """Returns the token ids of each prompt, with one placeholder for each image."""
        processor = self.loaded.processor
        conversations = [build_messages(*prompt, self.profile) for prompt in prompts]
        texts = processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
        return [np.array(ids) for ids in processor.tokenizer(texts)["input_ids"]]

    def _lengths(self, prompts: Sequence[Prompt], tokens: Sequence[np.ndarray]) -> list[int]:
        """Returns the number of tokens of each prompt for the model: an image's placeholder counts once per visual token."""
        images = [sum(visual_tokens(sample.image_path, self.profile) - 1 for sample in _samples(prompt)) for prompt in prompts]
        return [len(tokens_L) + more for tokens_L, more in zip(tokens, images, strict=True)]

    def _batch(self, prompts: list[Prompt], tokens: list[np.ndarray]) -> _Batch:
        """Returns prompts as the model takes them.

        Only the calling thread of ``generate`` comes here: the vision cache is not made for several threads. Nothing pads by
        the tokenizer, which would change the state of the one tokenizer; without padding, threads may share it.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        _, processor, vision = self.loaded
        images = vision.features([sample.image_path for prompt in prompts for sample in _samples(prompt)])
        sizes, rows = iter([len(part) for part, _ in images]), []
        for prompt, tokens_L in zip(prompts, tokens, strict=True):
            repeats_L = np.ones_like(tokens_L)
            repeats_L[tokens_L == processor.image_token_id] = [next(sizes) for _ in _samples(prompt)]
            rows.append(torch.from_numpy(np.repeat(tokens_L, repeats_L)))
        # Generation continues at the right end of each prompt.
        ids_PL = pad_sequence(rows, batch_first=True, padding_value=processor.tokenizer.pad_token_id, padding_side="left")
        mask_PL = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
        return _Batch(
            prompts,
            ids_PL.to(self.device),
            mask_PL.to(self.device),
            torch.stack([grid for _, grid in images]).to(self.device),
            tuple(part.to(self.device, self.loaded.model.dtype) for part, _ in images),
        )

    def _answers(self, model: Any, batch: _Batch) -> list[str]:
        """Returns the raw generations of one batch."""
        import torch

        profile = self.profile
        settings: dict[str, float] = {"num_beams": profile.num_beams, "max_new_tokens": profile.max_new_tokens}
        if profile.num_beams > 1:
            settings["length_penalty"] = profile.length_penalty
        with torch.inference_mode():
            key_values = self._read(model, batch)
            key_values.batch_repeat_interleave(profile.num_beams)
            inputs = {"input_ids": batch.ids_PL, "attention_mask": batch.mask_PL, "past_key_values": key_values}
            output = model.generate(**inputs, do_sample=False, **settings)
        new_tokens = output[:, batch.ids_PL.shape[1] :]
        return list(self.loaded.processor.batch_decode(new_tokens, skip_special_tokens=True))

    def _gt_probs(self, model: Any, batch: _Batch) -> list[str]:
        """Returns the ``gt_prob`` of the prompts of one batch."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        tokenizer = self.loaded.processor.tokenizer
        answers = [list(dict.fromkeys(prompt.query.answers)) for prompt in batch.prompts]
        row_R = torch.tensor([i for i, texts in enumerate(answers) for _ in texts], device=self.device)
        # as in the demonstrations, an answer begins with a space; the turn ends behind it
        texts = [f" {text}{tokenizer.eos_token}" for group in answers for text in group]
        targets = [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]]
        targets_RT = pad_sequence(targets, batch_first=True, padding_value=tokenizer.pad_token_id).to(self.device)
        shown_RT = pad_sequence([torch.ones_like(ids) for ids in targets], batch_first=True).to(self.device)
        with torch.inference_mode():
            key_values = self._read(model, batch)
            key_values.batch_select_indices(row_R)
            mask = torch.cat([batch.mask_PL[row_R], shown_RT[:, :-1]], dim=1)
            ids_RT = torch.cat([batch.ids_PL[row_R, -1:], targets_RT[:, :-1]], dim=1)
            places_RT = (mask.cumsum(1) - 1)[:, -ids_RT.shape[1] :] + model.model.rope_deltas[row_R]
            places_3RT = places_RT.expand(3, -1, -1)
            output = model(input_ids=ids_RT, attention_mask=mask, past_key_values=key_values, position_ids=places_3RT)
            steps_RTV = output.logits.float().log_softmax(-1)
        logprobs_RT = steps_RTV.gather(2, targets_RT[..., None]).squeeze(2) * shown_RT
        probabilities = iter(logprobs_RT.sum(1).double().exp().tolist())
        return [
            repr(sum(next(probabilities) * prompt.query.accuracy(text) for text in group))
            for prompt, group in zip(batch.prompts, answers, strict=True)
        ]

    def _read(self, model: Any, batch: _Batch) -> Any:
        """Runs the model over all tokens of the prompts but the last one, and returns its keys and values.

        ``generate`` continues from them, for each beam. On its own it would read the prompt once per beam.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        features: Any = batch.features
        types_PL = (
            batch.ids_PL == self.loaded.processor.image_token_id
        ).long()  # 1 for an image's tokens, 0 for those of a text
        output = model(
            input_ids=batch.ids_PL[:, :-1],
            attention_mask=batch.mask_PL[:, :-1],
            mm_token_type_ids=types_PL[:, :-1],
            image_grid_thw=batch.grids_I3,
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=features)},
            use_cache=True,
            logits_to_keep=1,
        )
        return output.past_key_values


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
