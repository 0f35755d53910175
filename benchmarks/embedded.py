"""Provides what the embedded experiments share: RL data, questions with their pools, choice of an epoch, result files."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from lever_mlflow.data.candidate_pools import candidate_pools
from lever_mlflow.data.samples import Sample
from lever_mlflow.evaluation.answering import Answering
from lever_mlflow.evaluation.policies import random_picks, similarity_picks
from lever_mlflow.evaluation.records import REPORT
from lever_mlflow.evaluation.selector_picks import greedy_picks
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import EvalSettings, RolloutSettings, preset_of
from lever_mlflow.training.loop import Epoch
from lever_mlflow.trials.rl_data import Group, RLData
from lever_mlflow.trials.rollout import choose_queries, rollout

DATA_SEED = 0  # of rollout and evaluation pools
RANDOM_DRAWS = 5  # the random baseline is the mean of these
SIMILARITY = "fused-similarity"
# the experiments of one round of training on random pools, as docs/experiments.md has them
ROLLOUT, EVALUATION = preset_of(RolloutSettings, "predecessor"), preset_of(EvalSettings, "predecessor")


@dataclass(frozen=True)
class Bench:
    """Holds the demo's RL data, as the pipeline's rollout step records it, and the selector that training starts from."""

    resources: Resources
    n_queries: int

    @cached_property
    def groups(self) -> list[Group]:
        """Returns one group per query, proposed by the untrained selector of ``DATA_SEED``."""
        train, table = self.resources.train, self.resources.features("train")
        queries = choose_queries(train, self.n_queries, DATA_SEED)
        selector = self.untrained(DATA_SEED)
        answer = self.resources.answer
        return rollout(queries, train, table, selector, lambda p: answer(p, "rollout"), ROLLOUT, seed=DATA_SEED)

    @cached_property
    def train_SD(self) -> np.ndarray:
        return np.asarray(self.resources.features("train").fused_SD)

    def untrained(self, seed: int) -> PointerSelector:
        """Returns the selector that training with this seed starts from."""
        torch.manual_seed(seed)
        return PointerSelector(feature_dim=self.train_SD.shape[1]).eval()

    def questions(self, samples: Sequence[Sample], shots: Sequence[int]) -> QuestionSet:
        """Returns the evaluation questions to be answered at these shot counts."""
        return QuestionSet(self, tuple(samples), tuple(shots))


@dataclass(frozen=True, eq=False)
class QuestionSet:
    """Holds questions of the evaluation split, each with the same pool for every policy, as the pipeline makes them."""

    bench: Bench
    samples: tuple[Sample, ...]
    shots: tuple[int, ...]
    _known: dict[bytes, np.ndarray] = field(default_factory=dict, repr=False)

    @cached_property
    def queries_QD(self) -> np.ndarray:
        return np.asarray(self.bench.resources.features("val").fused_SD)[[sample.index for sample in self.samples]]

    @cached_property
    def pools_QN(self) -> np.ndarray:
        resources, settings = self.bench.resources, EVALUATION
        features = resources.features("val"), resources.features("train")
        sampler, size = settings.pool_sampler, settings.pool_size
        return candidate_pools(self.samples, resources.train, sampler, size, DATA_SEED, *features)

    def greedy_QK(self, selector: PointerSelector) -> np.ndarray:
        """Returns a selector's picks at the largest shot count."""
        return greedy_picks(selector, self.queries_QD, self.pools_QN, self.bench.train_SD, max(self.shots))

    def similarity_QK(self) -> np.ndarray:
        """Returns the most similar candidates."""
        return similarity_picks(self.queries_QD, self.pools_QN, self.bench.train_SD, max(self.shots))

    def random_QK(self, seed: int) -> np.ndarray:
        """Returns one draw of random candidates."""
        return random_picks(self.samples, self.pools_QN, max(self.shots), seed)

    def accuracy_QS(self, picks_QK: np.ndarray) -> np.ndarray:
        """Returns the accuracy on each question at each shot count; picks that were answered before cost nothing."""
        key = picks_QK.tobytes()
        if key not in self._known:
            resources = self.bench.resources
            answering = Answering(
                resources.train, lambda prompts: resources.answer(prompts, "evaluation"), resources.language_model.key
            )
            records = answering.records(self.samples, REPORT, {"policy": picks_QK}, self.shots)
            by_shots = records.frame.pivot(index="position", columns="shots", values="accuracy")
            self._known[key] = by_shots[list(self.shots)].to_numpy(dtype=float)
        return self._known[key]


def as_rl_data(groups: Sequence[Group]) -> RLData:
    """Groups as the trainers take them."""
    return RLData(tuple(groups), digest="", vintage="pools", dropped={}, meta={}, source="benchmark")


def best_epoch(epochs: Iterable[Epoch]) -> tuple[int, PointerSelector]:
    """Returns the epoch with the highest expected reward, the earliest among equals, and its selector."""
    number, selector, highest = 0, None, -math.inf
    for epoch in epochs:
        if epoch.metrics["val/expected_reward"] > highest:
            number, highest = epoch.epoch, epoch.metrics["val/expected_reward"]
            selector = copy.deepcopy(epoch.selector)
    assert selector is not None
    return number, selector


def read_rows(path: Path, n_queries: int) -> list[dict[str, Any]]:
    """Returns the finished measurements with that many RL queries; a line cut off by a killed run is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            click.echo(f"{path}: left out a damaged line", err=True)
    return [row for row in rows if row["n_queries"] == n_queries]


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a finished measurement, on a line of its own also behind one that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + json.dumps(row) + "\n")
