"""Has the VLM answer evaluation questions behind the demonstrations that policies picked, and scores the answers.

All policies are answered on the same questions, with the same pools, at every shot count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from lever_mlflow.data.samples import Sample
from lever_mlflow.evaluation.policies import in_prompt_order
from lever_mlflow.evaluation.records import EvaluationRecords
from lever_mlflow.settings import Order
from lever_mlflow.vlm.prompt import Prompt, clean_generation

__all__ = ["Answering", "BestSingle"]


class BestSingle(BaseModel):
    """Says how much a single demonstration can win, from every candidate of each question's pool tried alone.

    Attributes:
        questions: how many were tried.
        oracle: mean accuracy of the best candidate, which no 1-shot policy on these pools exceeds.
        random: mean accuracy of the mean candidate, which uniform picks come to in the long run.
        winnable: share of questions whose candidates differ in accuracy at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    questions: int
    oracle: float
    random: float
    winnable: float


@dataclass(frozen=True)
class Answering:
    """Answers questions with one VLM and demonstrations from one training set.

    Attributes:
        train: the training items, whose indices the picks are.
        answer: returns the raw generations for prompts, in their order; it removes duplicates itself.
        key: names a prompt by all that its answer depends on.
        order: whether the first pick stands first in the prompt, or last.
    """

    train: Sequence[Sample]
    answer: Callable[[Sequence[Prompt]], list[str]]
    key: Callable[[Prompt], str]
    order: Order = "similar-first"

    def records(
        self, questions: Sequence[Sample], part: str, picks: Mapping[str, np.ndarray], shots: Sequence[int]
    ) -> EvaluationRecords:
        """Makes one record per policy, draw, shot count and question; it names the demonstrations in the order of the prompt.

        Args:
            part: ``report`` or ``selection``.
            picks: policy name -> train indices [Q, K], or [draws, Q, K] of a policy that draws lots, the first pick first; K is
                at least the largest shot count. A policy without demonstrations (zero-shot) has [Q, 0], and is evaluated once
                at 0 shots.
        """
        rows, prompts = [], []
        for policy, indices in picks.items():
            for draw, picks_QK in enumerate(indices if indices.ndim == 3 else indices[None]):
                for k in shots if picks_QK.shape[1] else (0,):
                    for position, query in enumerate(questions):
                        demonstrations = tuple(self.train[i] for i in in_prompt_order(picks_QK[position, :k], self.order))
                        prompts.append(Prompt(demonstrations, query))
                        ids = [sample.question_id for sample in demonstrations]
                        rows.append((policy, draw, part, position, query.question_id, query.picture, k, ids))
        columns = ["policy", "draw", "part", "position", "question_id", "image_id", "shots", "picks"]
        frame = pd.DataFrame(rows, columns=columns)
        answers = self._answers(prompts)
        frame["prompt"] = [self.key(prompt) for prompt in prompts]
        frame["answer"] = answers
        frame["accuracy"] = _accuracies(answers, prompts)
        return EvaluationRecords(frame)

    def best_single(self, questions: Sequence[Sample], pools_QN: np.ndarray) -> BestSingle:
        """Tries every candidate of each question's pool alone; ``pools_QN`` holds train indices."""
        prompts = [Prompt((self.train[i],), query) for query, pool in zip(questions, pools_QN, strict=True) for i in pool]
        accuracies_QN = np.array(_accuracies(self._answers(prompts), prompts)).reshape(pools_QN.shape)
        return BestSingle(
            questions=len(questions),
            oracle=float(accuracies_QN.max(1).mean()),
            random=float(accuracies_QN.mean()),
            winnable=float((np.ptp(accuracies_QN, axis=1) > 0).mean()),
        )

    def _answers(self, prompts: Sequence[Prompt]) -> list[str]:
        return [clean_generation(text) for text in self.answer(prompts)]


def _accuracies(answers: Sequence[str], prompts: Sequence[Prompt]) -> list[float]:
    return [prompt.query.accuracy(text) for text, prompt in zip(answers, prompts, strict=True)]
