"""Evaluation: selectors and baselines answered on the same questions, with the same pools, at every shot count.

Sizes are nested prefixes of one seeded order of the evaluation questions. The questions that choose an epoch come from the
end of that order; neither they nor their images are among those reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.pools import check_pool_size, top_k
from lever_mlflow.prompt import clean_generation
from lever_mlflow.selector import PointerSelector
from lever_mlflow.types import EvalSettings, Prompt, Sample
from lever_mlflow.vqa_accuracy import vqa_accuracy

__all__ = [
    "RANDOM",
    "START",
    "ZERO_SHOT",
    "Questions",
    "accuracy_table",
    "best_single",
    "choose_epoch",
    "evaluate",
    "first_logits",
    "greedy_picks",
    "random_picks",
    "similarity_picks",
    "split_questions",
]

ZERO_SHOT, RANDOM, START = "zero-shot", "random", "start"
_BATCH = 256


class Questions(NamedTuple):
    """Evaluation questions: ``report`` in the seeded order whose prefixes are the sizes, ``selection`` about other images."""

    report: list[Sample]
    selection: list[Sample]


def split_questions(val: Sequence[Sample], settings: EvalSettings, seed: int) -> Questions:
    """The report and selection questions of the evaluation split.

    Raises:
        ParameterError: the split has fewer questions than the largest size and the selection need together, or the
            pool is not larger than the shots.
    """
    check_pool_size(settings.pool_size, max(settings.shots))
    order = [val[i] for i in np.random.default_rng([seed, 2]).permutation(len(val))]
    by_image: dict[int, list[Sample]] = {}
    for sample in order:
        by_image.setdefault(sample.image_id, []).append(sample)
    selection_images: set[int] = set()
    selection: list[Sample] = []
    for sample in reversed(order):
        if len(selection) < settings.n_selection and sample.image_id not in selection_images:
            selection_images.add(sample.image_id)
            selection += by_image[sample.image_id]
    report = [sample for sample in order if sample.image_id not in selection_images]
    largest = max(settings.sizes)
    if len(selection) < settings.n_selection or len(report) < largest:
        raise ParameterError(
            f"sizes up to {largest} plus n_selection={settings.n_selection}: the split has {len(val)} questions, of which "
            f"{len(report)} are left beside the images of the selection; choose smaller sizes or a smaller n_selection"
        )
    return Questions(report[:largest], selection[: settings.n_selection])


@torch.no_grad()
def greedy_picks(
    selector: PointerSelector, queries_QD: np.ndarray, pools_QN: np.ndarray, train_SD: np.ndarray, shots: int
) -> np.ndarray:
    """Train indices of the selector's greedy picks, [Q, K]; the first k of a row are the picks at k shots."""
    rows = []
    for start in range(0, len(queries_QD), _BATCH):
        pool_BN = pools_QN[start : start + _BATCH]
        query_BD = torch.from_numpy(np.asarray(queries_QD[start : start + _BATCH]))
        picks_BK = selector.greedy(query_BD, torch.from_numpy(train_SD[pool_BN]), shots).numpy()
        rows.append(np.take_along_axis(pool_BN, picks_BK, axis=1))
    return np.concatenate(rows)


@torch.no_grad()
def first_logits(selector: PointerSelector, queries_QD: np.ndarray, pools_QN: np.ndarray, train_SD: np.ndarray) -> np.ndarray:
    """The selector's logits for the first pick, [Q, N]."""
    rows = []
    for start in range(0, len(queries_QD), _BATCH):
        query_BD = torch.from_numpy(np.asarray(queries_QD[start : start + _BATCH]))
        encoding = selector.encode(query_BD, torch.from_numpy(train_SD[pools_QN[start : start + _BATCH]]))
        rows.append(selector.pick_logits(encoding, torch.empty(len(query_BD), 1, 0, dtype=torch.long))[:, 0].numpy())
    return np.concatenate(rows)


def similarity_picks(queries_QD: np.ndarray, pools_QN: np.ndarray, train_SD: np.ndarray, shots: int) -> np.ndarray:
    """Train indices of the most similar candidates of each pool, most similar first, [Q, K]."""
    return np.stack([pool[top_k(query, train_SD[pool], shots)] for query, pool in zip(queries_QD, pools_QN, strict=True)])


def random_picks(queries: Sequence[Sample], pools_QN: np.ndarray, shots: int, seed: int, draw: int = 0) -> np.ndarray:
    """Train indices drawn uniformly from each pool without replacement, [Q, K]; by seed, question id and draw alone."""
    states = [[seed, query.question_id, 3, *([draw] if draw else [])] for query in queries]
    drawn = zip(map(np.random.default_rng, states), pools_QN, strict=True)
    return np.stack([rng.choice(pool, shots, replace=False) for rng, pool in drawn])


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


def accuracy_table(records: pd.DataFrame, sizes: Sequence[int]) -> pd.DataFrame:
    """Mean accuracy on the report questions: columns ``policy``, ``size``, ``shots``, ``accuracy`` (in [0, 1]), ``spread``.

    ``spread``: unbiased standard deviation of that mean between the policy's draws, 0 where there is one.
    """
    report = records[records.part == "report"]
    parts = []
    for size in sizes:
        of_draws = report[report.position < size].groupby(["policy", "shots", "draw"], sort=False).accuracy.mean()
        means = of_draws.groupby(["policy", "shots"], sort=False)
        parts.append(
            pd.DataFrame({"accuracy": means.mean(), "spread": means.std().fillna(0.0)}).reset_index().assign(size=size)
        )
    return pd.concat(parts, ignore_index=True)[["policy", "size", "shots", "accuracy", "spread"]]


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


def choose_epoch(records: pd.DataFrame, epochs: Mapping[int, str]) -> tuple[int, dict[int, float]]:
    """The epoch with the best mean accuracy over shots on the selection questions, the earliest among equals; and all means.

    Args:
        epochs: epoch number -> policy name in ``records``.
    """
    selection = records[records.part == "selection"]
    means = {epoch: float(selection[selection.policy == name].accuracy.mean()) for epoch, name in epochs.items()}
    best = max(means, key=lambda epoch: (round(means[epoch], 12), -epoch))
    return best, means
