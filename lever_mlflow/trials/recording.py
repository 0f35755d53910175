"""Records trials: has the VLM answer behind the demonstrations that proposed pointers pick, and scores the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lever_mlflow.data.samples import Sample
from lever_mlflow.data.vqa_accuracy import CORRECT_FROM, normalize_answer
from lever_mlflow.trials.generators import PooledQueries, Proposal, RolloutInputs
from lever_mlflow.trials.rl_data import Trial
from lever_mlflow.vlm.prompt import Prompt, clean_generation

__all__ = ["query_record", "try_out", "with_gt_prob"]


def try_out(inputs: RolloutInputs, queries: PooledQueries, proposals: Sequence[Sequence[Proposal]]) -> list[list[Trial]]:
    """Returns a scored trial for each proposal of each query; the VLM is asked once for all of them."""
    prompts = _prompts(inputs.train, queries, [[proposal.pointer for proposal in group] for group in proposals])
    texts = iter(inputs.answer(prompts))
    return [
        [_trial(proposal, next(texts), query) for proposal in group]
        for query, group in zip(queries.samples, proposals, strict=True)
    ]


def with_gt_prob(inputs: RolloutInputs, queries: PooledQueries, trials: Sequence[Sequence[Trial]]) -> list[list[Trial]]:
    """Returns the trials with the probability of the right answers.

    ``vqa_gt_prob`` is the probability behind the trial's demonstrations. ``vqa_rel_score`` is its difference to the
    probability without any demonstration.

    Raises:
        ValueError: the inputs have no ``score``.
    """
    if inputs.score is None:
        raise ValueError("gt_prob=true needs a function that scores prompts; call rollout with score=FUNCTION")
    zero_shot = [Prompt((), query) for query in queries.samples]
    prompts = _prompts(inputs.train, queries, [[trial.pointer for trial in group] for group in trials])
    scores = iter(inputs.score([*zero_shot, *prompts]))
    baselines = [next(scores) for _ in zero_shot]
    return [
        [_with_score(trial, next(scores), baseline) for trial in group]
        for group, baseline in zip(trials, baselines, strict=True)
    ]


def query_record(query: Sample) -> dict[str, Any]:
    """Returns what RL data record of a query."""
    return {
        "query_id": query.index,
        "question_id": query.question_id,
        "image_id": query.image_id,
        "question": query.question,
        "gt_answers_raw": list(query.answers),
        "gt_answers_norm": [normalize_answer(answer) for answer in query.answers],
    }


def _prompts(train: Sequence[Sample], queries: PooledQueries, pointers: Sequence[Sequence[tuple[int, ...]]]) -> list[Prompt]:
    """Returns the prompt of each pointer of each query, all in one list, query by query."""
    return [_prompt(train, query, pool_N, p) for query, pool_N, group in zip(*queries, pointers, strict=True) for p in group]


def _prompt(train: Sequence[Sample], query: Sample, pool_N: np.ndarray, pointer: tuple[int, ...]) -> Prompt:
    return Prompt(tuple(train[pool_N[position]] for position in pointer), query)


def _trial(proposal: Proposal, generation: str, query: Sample) -> Trial:
    prediction = clean_generation(generation)
    accuracy = query.accuracy(prediction)
    return Trial(
        pointer=proposal.pointer,
        correct=float(accuracy >= CORRECT_FROM),
        accuracy=accuracy,
        gen_method=proposal.record["gen_method"],
        record={**proposal.record, "vqa_raw_generation": generation, "vqa_pred_answer": prediction},
    )


def _with_score(trial: Trial, gt_prob: float, baseline: float) -> Trial:
    gain = gt_prob - baseline
    return replace(trial, gt_prob=gt_prob, rel_score=gain, record={**(trial.record or {}), "vqa_rel_score": gain})
