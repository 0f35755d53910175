"""Runs the frozen VLM in this process. Prompts go in, answers come out, in batches of tokens that memory holds.

``QwenVLM`` runs the Qwen-VL families on a fast path, and ``GenericVLM`` any other family that transformers knows.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError, LeverError
from lever_mlflow.files.images import image_digest
from lever_mlflow.files.model_folders import check_parts, has_chat_template, load_pretrained, model_type
from lever_mlflow.files.strict_json import read_object
from lever_mlflow.settings import AUTO, VlmDtype
from lever_mlflow.shortages import out_of_memory
from lever_mlflow.vlm.profiles import PromptProfile
from lever_mlflow.vlm.prompt import Prompt, prompt_key
from lever_mlflow.vlm.threads import in_threads

__all__ = ["BATCH_TOKENS", "LoadedModel", "LocalVLM", "model_type", "samples_of", "token_batches"]

BATCH_TOKENS = {"cpu": 8_192, "cuda": 32_768}

# Settings in a model's own generation_config.json that change answers without sampling, beside those of the profile.
_STEERING = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "sequence_bias",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "exponential_decay_length_penalty",
    "early_stopping",
    "guidance_scale",
    "stop_strings",
)

log = logging.getLogger(__name__)


class LoadedModel(NamedTuple):
    """Holds a loaded model and its processor."""

    model: Any
    processor: Any


class LocalVLM(ABC):
    """Answers prompts with a model in this process. Weights are loaded at the first answer, so that known ones cost nothing.

    In float32 answers do not depend on how prompts are batched. In bfloat16, where sums are rounded to 8 bits, two answers of
    nearly equal score may change places with the shape of the batch, so ``batch_tokens`` is recorded with the answers.

    Args:
        folder: as written by ``save_pretrained`` (config, safetensors, processor, tokenizer).
        digest: names the folder's content.
        profile: texts, image sizes and generation settings.
        device: ``cpu`` or ``cuda``.
        batch_tokens: most tokens of a batch, padding and visual tokens included; 0 means 8,192 on ``cpu`` and 32,768 on
            ``cuda``. The number is halved for the rest of the run whenever memory does not hold a batch.
        dtype: type of the weights; ``auto`` is bfloat16 on ``cuda`` and float32 on ``cpu``.
    """

    def __init__(
        self,
        folder: Path,
        digest: str,
        profile: PromptProfile,
        device: str = "cpu",
        batch_tokens: int = 0,
        dtype: VlmDtype = "auto",
    ) -> None:
        self.folder, self.profile, self.device = folder, profile, device
        self.batch_tokens = batch_tokens or BATCH_TOKENS[device.split(":")[0]]
        self.dtype = ("bfloat16" if device.startswith("cuda") else "float32") if dtype == AUTO else dtype
        # Answers of different precision are different answers. So are those that caches may hold from the time when models of
        # half precision had rounded rotary frequencies.
        self.digest = f"{digest}-{self.dtype}" if self.dtype == "float32" else f"{digest}-{self.dtype}-rotary-float32"

    @property
    def recorded(self) -> dict[str, Any]:
        """Returns what runs log of the model beside its name and digests."""
        generation_config = self.own_generation_config
        steered = {"vlm_generation_config": json.dumps(generation_config, sort_keys=True)} if generation_config else {}
        return {"vlm_dtype": self.dtype, "vlm_batch_tokens": self.batch_tokens, **steered}

    @property
    def own_generation_config(self) -> dict[str, Any]:
        """Returns the settings of the model's ``generation_config.json`` that change answers, such as a repetition penalty.

        They hold beside those of the profile, and the file is part of the model's digest.

        Raises:
            DataError: the file cannot be read.
        """
        path = self.folder / "generation_config.json"
        settings = read_object(path, missing="", damaged="copy the model again") if path.is_file() else {}
        return {name: settings[name] for name in _STEERING if settings.get(name) not in (None, False)}

    @property
    @abstractmethod
    def max_aspect(self) -> float:
        """Returns the aspect ratio (longer by shorter side) from which on the VLM takes no image."""

    def check(self) -> None:
        """Looks into the model's folder without loading weights.

        Raises:
            DataError: the folder holds no model that this class can run.
        """
        check_parts(self.folder)
        if not has_chat_template(self.folder):
            raise DataError(f"{self.folder}: the model has no chat template; give an instruction-tuned model of the family")

    @cached_property
    def loaded(self) -> LoadedModel:
        """Loads the model and its processor on first use.

        Raises:
            DataError: the folder is not a readable model.
        """
        from transformers import AutoModelForImageTextToText

        model, processor = load_pretrained(AutoModelForImageTextToText, self.folder, dtype=self.dtype, device=self.device)
        return LoadedModel(model.eval(), processor)

    def key(self, prompt: Prompt) -> str:
        """Returns a digest of all that the answer to a prompt depends on."""
        return prompt_key(prompt, self.profile, self.digest, image_digest)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """Yields the raw generations of one batch after another as (position in ``prompts``, text), longest prompts first.

        Raises:
            DataError: an image does not decode, or the folder is not a readable model.
            LeverError: a single prompt does not fit into memory.
        """
        yield from self._in_batches(prompts, self._answers, [1] * len(prompts))

    def token_counts(self, prompts: Sequence[Prompt]) -> list[int]:
        """Returns the number of tokens of each prompt, visual tokens included, by which batches are formed."""
        return self._lengths(prompts, self._tokens(prompts))

    @abstractmethod
    def _tokens(self, prompts: Sequence[Prompt]) -> Sequence[Any]:
        """Returns what is made of each prompt before batches are formed."""

    @abstractmethod
    def _lengths(self, prompts: Sequence[Prompt], tokens: Sequence[Any]) -> list[int]:
        """Returns the number of tokens of each prompt for the model."""

    @abstractmethod
    def _batch(self, prompts: list[Prompt], tokens: list[Any]) -> Any:
        """Returns prompts as the model takes them. Only the calling thread of ``generate`` comes here."""

    @abstractmethod
    def _answers(self, model: Any, batch: Any) -> list[str]:
        """Returns the raw generations of one batch."""

    @property
    def generation(self) -> dict[str, Any]:
        """Returns the arguments of ``generate`` that the profile asks for, and what batches rely on: one answer, as tokens."""
        beams, penalty = self.profile.num_beams, self.profile.length_penalty
        settings = {"do_sample": False, "num_beams": beams, "max_new_tokens": self.profile.max_new_tokens}
        settings |= {"num_return_sequences": 1, "return_dict_in_generate": False}
        return settings if beams == 1 else {**settings, "length_penalty": penalty}

    @property
    def _most_tokens(self) -> int:
        """Returns the limit of tokens for the next batches."""
        return self.batch_tokens

    def _models(self) -> list[Any]:
        """Returns a model for each thread that answers batches."""
        return [self.loaded.model]

    def _in_batches(
        self, prompts: Sequence[Prompt], work: Callable[[Any, Any], list[str]], rows: Sequence[int]
    ) -> Iterator[list[tuple[int, str]]]:
        """Yields (position, result) of ``work`` for batches of prompts, each of which takes ``rows`` rows of a batch."""
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
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
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


def samples_of(prompt: Prompt) -> tuple[Sample, ...]:
    """Returns the samples whose images a prompt shows, in order."""
    return (*prompt.demonstrations, prompt.query)
