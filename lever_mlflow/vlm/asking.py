"""Asks the VLM: known answers come from the cache, and all processes of the run share the work of the others."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.settings import CacheMode
from lever_mlflow.vlm.answer_cache import AnswerCache, cached_answers
from lever_mlflow.vlm.language_model import LanguageModel, VlmName, open_language_model
from lever_mlflow.vlm.prompt import Prompt
from lever_mlflow.vlm.qwen import QwenVLM
from lever_mlflow.vlm.server import ServerVLM

__all__ = ["AnswerCounts", "Asker", "AskerSettings"]


_Request = Literal["generate", "score"]  # names of the VLM's methods


@dataclass(frozen=True)
class AskerSettings:
    """Names a VLM and the cache of its answers; following processes are sent these settings.

    Attributes:
        vlm: the VLM.
        cache_dir: the cache folder, which must have the same path on all machines.
        cache: whether answers are looked up and stored.
    """

    vlm: VlmName
    cache_dir: Path
    cache: CacheMode = "on"


class AnswerCounts(NamedTuple):
    """Holds how many answers and scores a VLM gave that were not known yet, and how many seconds that took.

    ``poor`` counts those among the answers that the leading process received from a server that are cut or without text, and
    the replies that failed, by kind (``ServerVLM.counts``).
    """

    answers: int = 0
    seconds: float = 0.0
    poor: Mapping[str, int] = MappingProxyType({})


class Asker:
    """Asks a VLM for answers and scores, each different prompt once.

    The leading process calls ``answer`` and ``score``. The following ones take their share of the prompts
    (``lever_mlflow.distributed``).
    """

    def __init__(self, settings: AskerSettings) -> None:
        self.settings = settings
        self.answer_counts = AnswerCounts()

    @cached_property
    def language_model(self) -> LanguageModel:
        """Opens the VLM on first use; errors as ``open_language_model``."""
        return open_language_model(self.settings.vlm, self.settings.cache_dir / "digests")

    def answer(self, prompts: Sequence[Prompt], description: str) -> list[str]:
        """Returns the raw generation for each prompt, in order.

        Prompts that are equal to another one or were answered before cost nothing.

        Args:
            prompts: may hold duplicates.
            description: says in the log and beside the bar what the answers are for.
        """
        return self._ask("generate", prompts, description)

    def score(self, prompts: Sequence[Prompt], description: str) -> list[float]:
        """Returns how probable right answers are after each prompt, in order: the ``gt_prob`` of ``QwenVLM.score``.

        Arguments and costs are those of ``answer``.

        Raises:
            ParameterError: the VLM does not tell probabilities, as a local one of another family than Qwen-VL, or most servers.
        """
        self._scoring_model.check_scores()
        return [float(text) for text in self._ask("score", prompts, description)]

    def answer_share(self, request: _Request, prompts: Sequence[Prompt]) -> None:
        """Makes a following process's share of the answers or scores, stores them, and sends them to the leader."""
        from lever_mlflow import distributed

        share: list[tuple[int, str]] = []
        with self._answer_cache() as cache:
            for batch in self._share(request, prompts):
                cache.put([(self._key(request, prompts[position]), text) for position, text in batch])
                share += batch
        distributed.collect(distributed.join(self.settings.vlm.device), share)

    def _ask(self, request: _Request, prompts: Sequence[Prompt], description: str) -> list[str]:
        with self._answer_cache() as cache:
            answers = cached_answers(
                prompts,
                lambda prompt: self._key(request, prompt),
                lambda missing: self._together(request, missing),
                cache,
                description,
            )
        return answers.texts

    def _key(self, request: _Request, prompt: Prompt) -> str:
        return self._scoring_model.score_key(prompt) if request == "score" else self.language_model.key(prompt)

    @property
    def _scoring_model(self) -> QwenVLM | ServerVLM:
        """Returns the VLM; raises ParameterError where its kind does not tell how probable answers are."""
        if isinstance(self.language_model, QwenVLM | ServerVLM):
            return self.language_model
        raise ParameterError(
            f"gt_prob: {self.settings.vlm.name} does not tell how probable answers are; use a local Qwen-VL or gt_prob=false"
        )

    def _answer_cache(self) -> AnswerCache:
        """Opens the answer cache of this machine, one per machine as SQLite does not belong on a network share."""
        from lever_mlflow import distributed

        machine = distributed.machine(distributed.join(self.settings.vlm.device))
        name = f"answers-{machine}.sqlite" if machine else "answers.sqlite"
        return AnswerCache(self.settings.cache_dir / name, self.settings.cache)

    def _together(self, request: _Request, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """Has all processes answer the prompts; yields batches of (position, text), the followers' all at the end."""
        if not prompts:
            return
        from lever_mlflow import distributed

        processes, started = distributed.join(self.settings.vlm.device), time.perf_counter()
        distributed.call_followers(processes, _follow, self.settings, request, prompts)
        yield from self._share(request, prompts)
        yield distributed.collect(processes, [])
        seconds = self.answer_counts.seconds + time.perf_counter() - started
        model = self.language_model
        self.answer_counts = AnswerCounts(
            self.answer_counts.answers + len(prompts),
            seconds,
            model.counts if isinstance(model, ServerVLM) else self.answer_counts.poor,
        )

    def _share(self, request: _Request, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """Answers this process's part of the prompts; yields batches of (position in ``prompts``, text)."""
        from lever_mlflow import distributed

        processes = distributed.join(self.settings.vlm.device)
        positions = distributed.share(processes, np.arange(len(prompts))).tolist()
        for batch in getattr(self.language_model, request)([prompts[i] for i in positions]):
            yield [(positions[i], text) for i, text in batch]


def _follow(settings: AskerSettings, request: _Request, prompts: Sequence[Prompt]) -> None:
    _last_asker(settings).answer_share(request, prompts)


@lru_cache(maxsize=1)
def _last_asker(settings: AskerSettings) -> Asker:
    """Returns the asker of the last call when the settings are the same, so that a following process loads the VLM once."""
    return Asker(settings)
