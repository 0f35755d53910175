"""What the policies of an evaluation pick for its questions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lever_mlflow.comparison.page import explain
from lever_mlflow.data.candidate_pools import nearest
from lever_mlflow.data.samples import Sample
from lever_mlflow.evaluation.overlap import overlaps, why_identical
from lever_mlflow.evaluation.policies import RANDOM, ZERO_SHOT, first_logits, greedy_picks, random_picks, similarity_picks
from lever_mlflow.pipeline.context import Context
from lever_mlflow.selector.checkpoint import selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import EvalSettings

__all__ = ["QuestionSet"]

SIMILARITIES, OF_ALL = ("image", "text", "fused"), " of all"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuestionSet:
    """Evaluation questions with their candidate pools; picks are train indices [Q, K] at the largest shot count."""

    context: Context
    samples: list[Sample]
    settings: EvalSettings

    @cached_property
    def pools_QN(self) -> np.ndarray:
        """Candidates of each question, train indices."""
        settings = self.settings
        return self.context.resources.pools(self.samples, settings.pool_size, self.context.seed, settings.pool_sampler)

    def learned(self, selectors: Mapping[str, PointerSelector]) -> dict[str, np.ndarray]:
        """What each selector picks."""
        return {name: greedy_picks(selector, *self._inputs(selector), self._most) for name, selector in selectors.items()}

    def baselines(self) -> dict[str, np.ndarray]:
        """What each baseline picks; [draws, Q, K] of the random one, [Q, 0] of zero-shot."""
        resources, seed = self.context.resources, self.context.seed
        images = np.array([sample.image_id for sample in resources.train])
        own_images = [np.flatnonzero(images == sample.image_id) for sample in self.samples]
        draws = range(self.settings.random_draws)
        picks = {
            ZERO_SHOT: self.pools_QN[:, :0],
            RANDOM: np.stack([random_picks(self.samples, self.pools_QN, self._most, seed, draw) for draw in draws]),
        }
        for kind in SIMILARITIES:
            val_SD, items_SD = (getattr(resources.features(split), f"{kind}_SD") for split in ("val", "train"))
            queries_QD = val_SD[self._rows]
            picks[f"{kind}-similarity"] = similarity_picks(queries_QD, self.pools_QN, items_SD, self._most)
            picks[f"{kind}-similarity{OF_ALL}"] = nearest(queries_QD, items_SD, self._most, own_images)
        return picks

    def overlap(self, checkpoints: Mapping[str, PointerSelector], picks: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """How far each two checkpoints pick the same, with a ``reason`` where they do for every question, which is logged."""
        rows = []
        for overlap in overlaps(picks, self.settings.shots):
            row: dict[str, Any] = overlap._asdict()
            if overlap.ordered == 1.0:
                pair = [checkpoints[name] for name in (overlap.first, overlap.second)]
                logits = [first_logits(selector, *self._inputs(selector)) for selector in pair]
                equal = selector_digest(pair[0]) == selector_digest(pair[1])
                row["reason"] = why_identical(logits[0], logits[1], overlap.shots, equal_weights=equal)
                names, why = f"{overlap.first} and {overlap.second}", explain(row["reason"], "en")
                log.info("%s pick the same at %d shots for every question: %s", names, overlap.shots, why)
            rows.append(row)
        return rows

    @property
    def _most(self) -> int:
        return max(self.settings.shots)

    @property
    def _rows(self) -> list[int]:
        return [sample.index for sample in self.samples]

    def _inputs(self, selector: PointerSelector) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features of the questions, pools, and features of the training items, as a selector is fed them."""
        val, train = (self.context.resources.features(split).of(selector.fusion) for split in ("val", "train"))
        return val[self._rows], self.pools_QN, train
