"""Holds the questions of an evaluation, and finds what its policies pick for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lever_mlflow.data.candidate_pools import candidate_pools, items_by_image, nearest
from lever_mlflow.data.features import FeatureTable
from lever_mlflow.data.pool_answers import answers_in_pools
from lever_mlflow.data.samples import Sample
from lever_mlflow.evaluation.overlap import PickOverlap, overlaps, why_identical
from lever_mlflow.evaluation.policies import (
    RANDOM,
    SIMILARITIES,
    ZERO_SHOT,
    random_picks,
    similarity_picks,
    similarity_policy,
    whole_set_policy,
)
from lever_mlflow.evaluation.selector_picks import first_logits, greedy_picks
from lever_mlflow.selector.checkpoint import selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import EvalSettings

__all__ = ["QuestionSet"]


@dataclass(frozen=True, eq=False)
class QuestionSet:
    """Holds evaluation questions with what is needed to pick demonstrations for them.

    Picks are train indices [Q, K] at the largest shot count; the first k of a row are the picks at k shots.

    Attributes:
        samples: the questions; their ``index`` is their row in ``question_features``.
        train: the training items; their features are ``train_features``, in the same order.
    """

    samples: Sequence[Sample]
    train: Sequence[Sample]
    question_features: FeatureTable
    train_features: FeatureTable
    settings: EvalSettings
    seed: int

    @cached_property
    def pools_QN(self) -> np.ndarray:
        """Returns the candidates of each question as train indices."""
        sampler, size = self.settings.pool_sampler, self.settings.pool_size
        return candidate_pools(self.samples, self.train, sampler, size, self.seed, self.question_features, self.train_features)

    @property
    def answer_rate(self) -> float:
        """Returns the share of questions with a candidate that shows a right answer, in [0, 1]."""
        return float(answers_in_pools(self.samples, self.train, self.pools_QN.tolist()).mean())

    def learned(self, selectors: Mapping[str, PointerSelector]) -> dict[str, np.ndarray]:
        """Returns what each selector picks."""
        return {name: greedy_picks(selector, *self._inputs(selector), self._most) for name, selector in selectors.items()}

    def baselines(self) -> dict[str, np.ndarray]:
        """Returns what each baseline picks: [draws, Q, K] for the random one, [Q, 0] for zero-shot.

        There are similarity baselines for the features that the encoder gives.
        """
        draws = range(self.settings.random_draws)
        picks = {
            ZERO_SHOT: self.pools_QN[:, :0],
            RANDOM: np.stack([random_picks(self.samples, self.pools_QN, self._most, self.seed, draw) for draw in draws]),
        }
        same_image = self._items_of_the_same_image()
        for feature in SIMILARITIES:
            tables = self.question_features, self.train_features
            questions_SD, train_SD = (getattr(table, f"{feature}_SD") for table in tables)
            if not train_SD.shape[1]:  # the encoder does not give this feature
                continue
            questions_QD = questions_SD[self._rows]
            picks[similarity_policy(feature)] = similarity_picks(questions_QD, self.pools_QN, train_SD, self._most)
            picks[whole_set_policy(feature)] = nearest(questions_QD, train_SD, self._most, same_image)
        return picks

    def overlap(self, checkpoints: Mapping[str, PointerSelector], picks: Mapping[str, np.ndarray]) -> list[PickOverlap]:
        """Compares the picks of every pair of checkpoints, and says why where a pair picks the same for every question."""
        return [self._explained(row, checkpoints) for row in overlaps(picks, self.settings.shots)]

    def _explained(self, overlap: PickOverlap, checkpoints: Mapping[str, PointerSelector]) -> PickOverlap:
        if overlap.ordered < 1.0:
            return overlap
        pair = [checkpoints[name] for name in (overlap.first, overlap.second)]
        logits = [first_logits(selector, *self._inputs(selector)) for selector in pair]
        equal_weights = selector_digest(pair[0]) == selector_digest(pair[1])
        reason = why_identical(logits[0], logits[1], overlap.shots, equal_weights=equal_weights)
        return overlap.model_copy(update={"reason": reason})

    def _items_of_the_same_image(self) -> list[np.ndarray]:
        """Returns the training items about the picture of each question, int64."""
        by_image, none = items_by_image(self.train), np.empty(0, dtype=np.int64)
        return [by_image.get(sample.picture, none) for sample in self.samples]

    @property
    def _most(self) -> int:
        return max(self.settings.shots)

    @property
    def _rows(self) -> list[int]:
        return [sample.index for sample in self.samples]

    def _inputs(self, selector: PointerSelector) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns features of the questions, their pools, and features of the training items, as a selector takes them."""
        questions_SD, train_SD = (table.of(selector.fusion) for table in (self.question_features, self.train_features))
        return questions_SD[self._rows], self.pools_QN, train_SD
