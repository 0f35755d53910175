"""Evaluation: selectors and baselines answered on the same questions, with the same pools, at every shot count.

Sizes are nested prefixes of one seeded order of the evaluation questions. The questions that choose an epoch come from the
end of that order; neither they nor their images are among those reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lever_mlflow.data.samples import Sample
from lever_mlflow.data.vqa_accuracy import vqa_accuracy
from lever_mlflow.vlm.prompt import Prompt, clean_generation

__all__ = ["best_single", "evaluate"]


def evaluate(
    questions: Sequence[Sample],
    part: str,
    picks: Mapping[str, np.ndarray],
    shots: Sequence[int],
    train: Sequence[Sample],
    answer: Callable[[Sequence[Prompt]], list[str]],
    key: Callable[[Prompt], str],
) -> pd.DataFrame:
    """One record per policy, draw, shot count and question.

    Args:
        part: ``report`` or ``selection``.
        picks: policy name -> train indices [Q, K], or [draws, Q, K] of a policy that draws lots; K at least the largest shot
            count; without demonstrations (zero-shot) [Q, 0], evaluated once at 0 shots.
        answer: raw generations for prompts, in their order; equal prompts are its matter.
        key: names a prompt.

    Returns:
        Columns ``policy``, ``draw``, ``part``, ``position`` (0-based, in the seeded order), ``question_id``, ``shots``,
        ``picks`` (question ids of the demonstrations, in prompt order), ``prompt`` (digest), ``answer``, ``accuracy``.
    """
    rows, prompts = [], []
    for policy, found in picks.items():
        for draw, picks_QK in enumerate(found if found.ndim == 3 else found[None]):
            for k in shots if picks_QK.shape[1] else (0,):
                for position, query in enumerate(questions):
                    demonstrations = tuple(train[i] for i in picks_QK[position, :k])
                    prompts.append(Prompt(demonstrations, query))
                    ids = [sample.question_id for sample in demonstrations]
                    rows.append((policy, draw, part, position, query.question_id, k, ids))
    frame = pd.DataFrame(rows, columns=["policy", "draw", "part", "position", "question_id", "shots", "picks"])
    frame["prompt"] = [key(prompt) for prompt in prompts]
    frame["answer"] = [clean_generation(text) for text in answer(prompts)]
    frame["accuracy"] = [
        vqa_accuracy(text, prompt.query.answers) for text, prompt in zip(frame["answer"], prompts, strict=True)
    ]
    return frame


def best_single(
    questions: Sequence[Sample],
    pools_QN: np.ndarray,
    train: Sequence[Sample],
    answer: Callable[[Sequence[Prompt]], list[str]],
) -> dict[str, Any]:
    """How much a single demonstration can win: every candidate of each question's pool tried alone.

    Returns:
        ``questions``; ``oracle``: mean over them of the best candidate's accuracy, which no 1-shot policy on these pools
        exceeds; ``random``: of the mean candidate's, what uniform picks come to in the long run; ``winnable``: share of
        questions whose candidates differ at all.
    """
    prompts = [Prompt((train[i],), query) for query, pool in zip(questions, pools_QN, strict=True) for i in pool]
    accuracies = [vqa_accuracy(clean_generation(t), p.query.answers) for t, p in zip(answer(prompts), prompts, strict=True)]
    accuracies_QN = np.array(accuracies).reshape(pools_QN.shape)
    return {
        "questions": len(questions),
        "oracle": float(accuracies_QN.max(1).mean()),
        "random": float(accuracies_QN.mean()),
        "winnable": float((np.ptp(accuracies_QN, axis=1) > 0).mean()),
    }
