"""Rollout: pointers for each RL query from several generators, answered by the VLM and scored, as RL data.

Generators per query: beam search, sampling at several temperatures, similarity retrieval (the most similar candidates by
fused, image and text feature) and random. A pointer that several generators propose is kept once, under the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.features import FeatureTable
from lever_mlflow.pools import check_pool_size, random_pool, top_k
from lever_mlflow.prompt import clean_generation
from lever_mlflow.rl_data import Group, Trial
from lever_mlflow.selector import PointerSelector
from lever_mlflow.types import Prompt, RolloutSettings, Sample
from lever_mlflow.vqa_accuracy import normalize_answer, vqa_accuracy

__all__ = ["CORRECT_FROM", "choose_queries", "rollout"]

CORRECT_FROM = 0.5  # vqa_correct = 1 from this accuracy on: at least two annotators gave the answer


class _Proposal(NamedTuple):
    pointer: tuple[int, ...]
    record: dict[str, Any]  # gen_method and the scores of its generator


def choose_queries(train: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """``count`` training items, uniform without replacement, the queries of the rollout.

    Raises:
        ParameterError: there are fewer training items.
    """
    if not 1 <= count <= len(train):
        raise ParameterError(f"n_queries={count}, but the training split has {len(train)} items; choose 1 to {len(train)}")
    order = np.random.default_rng([seed, 1]).permutation(len(train))[:count]
    return [train[i] for i in sorted(order.tolist())]


def rollout(
    queries: Sequence[Sample],
    train: Sequence[Sample],
    features: FeatureTable,
    selector: PointerSelector,
    answer: Callable[[Sequence[Prompt]], list[str]],
    settings: RolloutSettings,
    *,
    seed: int,
) -> list[Group]:
    """One group per query.

    Args:
        features: of ``train``, in its order.
        selector: the policy that beam search and sampling draw from.
        answer: raw generations for prompts, in their order.

    Raises:
        ParameterError: a pool smaller than the shots, or fewer training items than the pool needs.
    """
    check_pool_size(settings.pool_size, settings.shots)
    pools = [random_pool(train, query, settings.pool_size, seed) for query in queries]
    proposals = [_propose(query, pool, features, selector, settings, seed) for query, pool in zip(queries, pools, strict=True)]
    prompts = [
        Prompt(tuple(train[pool[position]] for position in proposal.pointer), query)
        for query, pool, group in zip(queries, pools, proposals, strict=True)
        for proposal in group
    ]
    texts = iter(answer(prompts))
    return [
        Group(
            query_id=query.index,
            pool=tuple(pool.tolist()),
            trials=tuple(_trial(proposal, next(texts), query) for proposal in group),
            query=_query_record(query),
        )
        for query, pool, group in zip(queries, pools, proposals, strict=True)
    ]


def _propose(
    query: Sample,
    pool_N: np.ndarray,
    features: FeatureTable,
    selector: PointerSelector,
    settings: RolloutSettings,
    seed: int,
) -> list[_Proposal]:
    by_pointer: dict[tuple[int, ...], _Proposal] = {}
    for proposal in _generate(query, pool_N, features, selector, settings, seed):
        by_pointer.setdefault(proposal.pointer, proposal)
    return list(by_pointer.values())


def _generate(
    query: Sample,
    pool_N: np.ndarray,
    features: FeatureTable,
    selector: PointerSelector,
    settings: RolloutSettings,
    seed: int,
) -> Iterator[_Proposal]:
    shots = settings.shots
    fed_SD = features.of(selector.fusion)
    inputs = torch.from_numpy(fed_SD[[query.index]]), torch.from_numpy(fed_SD[pool_N])[None]
    beam = selector.beam(*inputs, shots, settings.beam_width)
    for rank, (pointer, score) in enumerate(zip(beam.pointers_BWK[0].tolist(), beam.logprobs_BW[0].tolist(), strict=True)):
        yield _Proposal(tuple(pointer), {"gen_method": "beam", "beam_rank": rank, "beam_score": score})
    state = np.random.SeedSequence([seed, query.question_id, 4]).generate_state(1)
    generator = torch.Generator().manual_seed(int(state[0]))
    for temperature in settings.temperatures:
        pointers_BGK = selector.sample(*inputs, shots, settings.samples_per_temperature, temperature, generator)
        logprobs_BG = selector.logprobs(*inputs, pointers_BGK).detach()
        for pointer, score in zip(pointers_BGK[0].tolist(), logprobs_BG[0].tolist(), strict=True):
            yield _Proposal(tuple(pointer), {"gen_method": "sample", "temperature": temperature, "logprob_score": score})
    for table in (features.fused_SD, features.image_SD, features.text_SD):
        yield _Proposal(tuple(top_k(table[query.index], table[pool_N], shots).tolist()), {"gen_method": "retrieval"})
    rng = np.random.default_rng([seed, query.question_id, 2])
    for _ in range(settings.random_pointers):
        yield _Proposal(tuple(rng.choice(len(pool_N), shots, replace=False).tolist()), {"gen_method": "random"})


def _trial(proposal: _Proposal, raw: str, query: Sample) -> Trial:
    prediction = clean_generation(raw)
    accuracy = vqa_accuracy(prediction, query.answers)
    return Trial(
        pointer=proposal.pointer,
        correct=float(accuracy >= CORRECT_FROM),
        accuracy=accuracy,
        gen_method=proposal.record["gen_method"],
        record={**proposal.record, "vqa_raw_generation": raw, "vqa_pred_answer": prediction},
    )


def _query_record(query: Sample) -> dict[str, Any]:
    return {
        "query_id": query.index,
        "question_id": query.question_id,
        "image_id": query.image_id,
        "question": query.question,
        "gt_answers_raw": list(query.answers),
        "gt_answers_norm": [normalize_answer(answer) for answer in query.answers],
    }
