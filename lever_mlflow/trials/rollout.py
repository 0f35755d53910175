"""Rollout: pointers for each RL query from several generators, answered by the VLM and scored, as RL data.

Generators per query: beam search, sampling at several temperatures, similarity retrieval (the most similar candidates by
fused, image and text feature) and random. A pointer that several generators propose is kept once, under the first.
Then, if asked for, queries without a positive trial are mined: given further pointers until one is positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch

from lever_mlflow.data.candidate_pools import candidate_pools, check_pool_size, top_k
from lever_mlflow.data.features import FeatureTable
from lever_mlflow.data.samples import Sample
from lever_mlflow.data.vqa_accuracy import normalize_answer, vqa_accuracy
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import RolloutSettings
from lever_mlflow.trials.rl_data import Group, Trial
from lever_mlflow.vlm.prompt import Prompt, clean_generation

__all__ = [
    "CORRECT_FROM",
    "MINING_TEMPERATURE",
    "check_settings",
    "choose_queries",
    "is_mined",
    "positive_query_rate",
    "rollout",
]

CORRECT_FROM = 0.5  # vqa_correct = 1 from this accuracy on: at least two annotators gave the answer
MINING_TEMPERATURE = 2.0  # above what an ordinary rollout samples at: those pointers were tried and failed
_BATCH = 256  # queries that go through the selector at once


class _Proposal(NamedTuple):
    pointer: tuple[int, ...]
    record: dict[str, Any]  # gen_method and the scores of its generator


class _Batch(NamedTuple):
    """Queries with their pools, and the features that the selector is fed of both."""

    queries: Sequence[Sample]
    pools_BN: np.ndarray
    query_BD: torch.Tensor
    candidates_BND: torch.Tensor


def check_settings(settings: RolloutSettings) -> None:
    """What can be said of the settings before any work.

    Raises:
        ParameterError: the pool is not larger than the shots or too small for the retrieval, or no generator is on.
    """
    check_pool_size(settings.pool_size, settings.shots)
    retrieved = settings.retrieval_per_feature * settings.shots
    if retrieved > settings.pool_size:
        raise ParameterError(
            f"retrieval_per_feature={settings.retrieval_per_feature} with {settings.shots} shots needs {retrieved} candidates, "
            f"but pool_size={settings.pool_size}; choose fewer or a larger pool"
        )
    generators = ("beam_width", "samples_per_temperature", "retrieval_per_feature", "random_pointers")
    if not any(getattr(settings, name) for name in generators):
        raise ParameterError(f"{', '.join(generators)}: all 0, which leaves nothing to try; turn one on")


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
    score: Callable[[Sequence[Prompt]], list[float]] | None = None,
) -> list[Group]:
    """One group per query. What is tried for a query depends on ``seed`` and its question id, not on the other queries.

    Args:
        features: of ``train``, in its order.
        selector: the policy that beam search and sampling draw from.
        answer: raw generations for prompts, in their order; asked once, and once more in each round of mining.
        score: the probability of right answers after prompts, in their order; needed for ``gt_prob``.

    Raises:
        ParameterError: as ``check_settings``; or fewer training items than the pool needs.
    """
    check_settings(settings)
    pools_QN = candidate_pools(queries, train, settings.pool_sampler, settings.pool_size, seed, features, features)
    proposals = [
        proposed
        for batch in _batches(queries, pools_QN, features, selector)
        for proposed in _propose(batch, features, selector, settings, seed)
    ]
    trials = _try_out(queries, pools_QN, proposals, train, answer)
    if settings.mine_positives:
        _mine(trials, queries, pools_QN, train, features, selector, answer, settings, seed)
    if settings.gt_prob:
        assert score is not None, "gt_prob needs a score"
        trials = _scored(trials, queries, pools_QN, train, score)
    return [
        Group(query_id=query.index, pool=tuple(pool), trials=tuple(recorded), query=_query_record(query))
        for query, pool, recorded in zip(queries, pools_QN.tolist(), trials, strict=True)
    ]


def positive_query_rate(groups: Sequence[Group], *, mined: bool = True) -> float:
    """Share of the groups with a positive trial; without ``mined``, with one that the generators found."""
    found = [_is_positive(trial for trial in group.trials if mined or not is_mined(trial)) for group in groups]
    return sum(found) / len(found)


def is_mined(trial: Trial) -> bool:
    """Whether a trial, if it has its record, comes from mining."""
    return trial.record is not None and bool(trial.record.get("mined", False))


def _is_positive(trials: Iterable[Trial]) -> bool:
    return any(trial.correct == 1.0 for trial in trials)


def _batches(
    queries: Sequence[Sample], pools_QN: np.ndarray, features: FeatureTable, selector: PointerSelector
) -> Iterator[_Batch]:
    fed_SD = features.of(selector.fusion)
    for start in range(0, len(queries), _BATCH):
        samples, pools_BN = queries[start : start + _BATCH], pools_QN[start : start + _BATCH]
        query_BD = torch.from_numpy(fed_SD[[sample.index for sample in samples]])
        yield _Batch(samples, pools_BN, query_BD, torch.from_numpy(fed_SD[pools_BN]))


def _propose(
    batch: _Batch, features: FeatureTable, selector: PointerSelector, settings: RolloutSettings, seed: int
) -> list[list[_Proposal]]:
    """What the generators propose for each query."""
    generated = (
        _by_beam(batch, selector, settings),
        _by_sampling(batch, selector, settings.shots, settings.temperatures, settings.samples_per_temperature, seed, stream=4),
        _by_similarity(batch, features, settings),
        _at_random(batch, settings.shots, settings.random_pointers, seed, stream=2),
    )
    return [_different(chain.from_iterable(parts)) for parts in zip(*generated, strict=True)]


def _different(proposals: Iterable[_Proposal]) -> list[_Proposal]:
    """A pointer that is proposed twice is kept as it came first."""
    by_pointer: dict[tuple[int, ...], _Proposal] = {}
    for proposal in proposals:
        by_pointer.setdefault(proposal.pointer, proposal)
    return list(by_pointer.values())


def _by_beam(batch: _Batch, selector: PointerSelector, settings: RolloutSettings) -> list[list[_Proposal]]:
    if not settings.beam_width:
        return [[] for _ in batch.queries]
    beam = selector.beam(batch.query_BD, batch.candidates_BND, settings.shots, settings.beam_width)
    return [
        [
            _Proposal(tuple(pointer), {"gen_method": "beam", "beam_rank": rank, "beam_score": score})
            for rank, (pointer, score) in enumerate(zip(pointers, scores, strict=True))
        ]
        for pointers, scores in zip(beam.pointers_BWK.tolist(), beam.logprobs_BW.tolist(), strict=True)
    ]


@torch.no_grad()
def _by_sampling(
    batch: _Batch,
    selector: PointerSelector,
    shots: int,
    temperatures: Sequence[float],
    count: int,
    seed: int,
    *,
    stream: int,
) -> list[list[_Proposal]]:
    """``count`` pointers at each temperature, drawn from each query's own ``stream`` of random numbers."""
    if not count:
        return [[] for _ in batch.queries]
    states = [np.random.SeedSequence([seed, query.question_id, stream]).generate_state(1) for query in batch.queries]
    generators = [torch.Generator().manual_seed(int(state[0])) for state in states]
    inputs = batch.query_BD, batch.candidates_BND
    pointers_BGK = torch.cat([selector.sample(*inputs, shots, count, t, generators) for t in temperatures], dim=1)
    logprobs_BG = selector.logprobs(*inputs, pointers_BGK)
    used_G = [temperature for temperature in temperatures for _ in range(count)]
    return [
        [
            _Proposal(tuple(pointer), {"gen_method": "sample", "temperature": temperature, "logprob_score": score})
            for pointer, temperature, score in zip(pointers, used_G, scores, strict=True)
        ]
        for pointers, scores in zip(pointers_BGK.tolist(), logprobs_BG.tolist(), strict=True)
    ]


def _by_similarity(batch: _Batch, features: FeatureTable, settings: RolloutSettings) -> list[list[_Proposal]]:
    """By each feature the most similar candidates, then the next most similar ones, as often as asked for."""
    per_feature, shots = settings.retrieval_per_feature, settings.shots
    tables = (features.fused_SD, features.image_SD, features.text_SD) if per_feature else ()
    return [
        [
            _Proposal(tuple(pointer), {"gen_method": "retrieval"})
            for table in tables
            for pointer in top_k(table[query.index], table[pool_N], per_feature * shots).reshape(per_feature, shots).tolist()
        ]
        for query, pool_N in zip(batch.queries, batch.pools_BN, strict=True)
    ]


def _at_random(batch: _Batch, shots: int, count: int, seed: int, *, stream: int) -> list[list[_Proposal]]:
    """``count`` pointers, uniform, drawn from each query's own ``stream`` of random numbers."""
    size = batch.pools_BN.shape[1]
    generators = [np.random.default_rng([seed, query.question_id, stream]) for query in batch.queries]
    return [
        [_Proposal(tuple(rng.choice(size, shots, replace=False).tolist()), {"gen_method": "random"}) for _ in range(count)]
        for rng in generators
    ]


def _mine(
    trials: list[list[Trial]],
    queries: Sequence[Sample],
    pools_QN: np.ndarray,
    train: Sequence[Sample],
    features: FeatureTable,
    selector: PointerSelector,
    answer: Callable[[Sequence[Prompt]], list[str]],
    settings: RolloutSettings,
    seed: int,
) -> None:
    """Adds to the ``trials`` of queries without a positive one: each round one, until a query's first positive one.

    A query's pointers are decided beforehand: by turns sampled from the policy at ``MINING_TEMPERATURE`` and uniform, none
    twice and none that was tried before, ``mine_positives`` of them.
    """
    rows, budget = [q for q, recorded in enumerate(trials) if not _is_positive(recorded)], settings.mine_positives
    further: list[list[_Proposal]] = []
    for batch in _batches([queries[q] for q in rows], pools_QN[rows], features, selector):
        sampled = _by_sampling(batch, selector, settings.shots, (MINING_TEMPERATURE,), budget, seed, stream=5)
        uniform = _at_random(batch, settings.shots, budget, seed, stream=6)
        further += [_different(chain.from_iterable(zip(*both, strict=True))) for both in zip(sampled, uniform, strict=True)]
    left = {}
    for q, proposals in zip(rows, further, strict=True):
        tried = {trial.pointer for trial in trials[q]}
        left[q] = [proposal for proposal in proposals if proposal.pointer not in tried][:budget]
    for turn in range(budget):
        rows = [q for q in rows if turn < len(left[q]) and not _is_positive(trials[q])]
        if not rows:
            return
        now = [[left[q][turn]._replace(record={**left[q][turn].record, "mined": True})] for q in rows]
        for q, found in zip(rows, _try_out([queries[q] for q in rows], pools_QN[rows], now, train, answer), strict=True):
            trials[q] += found


def _try_out(
    queries: Sequence[Sample],
    pools_QN: np.ndarray,
    proposals: Sequence[Sequence[_Proposal]],
    train: Sequence[Sample],
    answer: Callable[[Sequence[Prompt]], list[str]],
) -> list[list[Trial]]:
    """Each query's proposals, answered in one call for all, and scored."""
    pointers = [[proposal.pointer for proposal in group] for group in proposals]
    texts = iter(answer(_prompts(queries, pools_QN, pointers, train)))
    return [
        [_trial(proposal, next(texts), query) for proposal in group] for query, group in zip(queries, proposals, strict=True)
    ]


def _scored(
    trials: Sequence[Sequence[Trial]],
    queries: Sequence[Sample],
    pools_QN: np.ndarray,
    train: Sequence[Sample],
    score: Callable[[Sequence[Prompt]], list[float]],
) -> list[list[Trial]]:
    """The trials with ``vqa_gt_prob``, and ``vqa_rel_score``: by how much it is above that without any demonstration."""
    pointers = [[trial.pointer for trial in recorded] for recorded in trials]
    scores = iter(score([*(Prompt((), query) for query in queries), *_prompts(queries, pools_QN, pointers, train)]))
    alone = [next(scores) for _ in queries]
    return [
        [_with_score(trial, next(scores), without) for trial in recorded]
        for recorded, without in zip(trials, alone, strict=True)
    ]


def _with_score(trial: Trial, gt_prob: float, without: float) -> Trial:
    return replace(trial, gt_prob=gt_prob, record={**(trial.record or {}), "vqa_rel_score": gt_prob - without})


def _prompts(
    queries: Sequence[Sample], pools_QN: np.ndarray, pointers: Sequence[Sequence[tuple[int, ...]]], train: Sequence[Sample]
) -> list[Prompt]:
    """The prompt of each pointer of each query, one behind the other."""
    return [
        Prompt(tuple(train[pool_N[position]] for position in pointer), query)
        for query, pool_N, group in zip(queries, pools_QN, pointers, strict=True)
        for pointer in group
    ]


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
