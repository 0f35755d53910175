"""Generates pointers to try: beam search, sampling, similarity retrieval and random choice, each for a batch of queries.

To add a generator, write a function ``(inputs, batch) -> proposals`` like ``beam_pointers`` below, add a setting that says how
many pointers it makes to ``RolloutSettings``, and name both in ``GENERATORS``. A generator that draws random numbers needs a
stream of its own in ``lever_mlflow.random_streams.QueryStream``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lever_mlflow.data.candidate_pools import top_k
from lever_mlflow.data.features import FeatureTable
from lever_mlflow.data.samples import Sample
from lever_mlflow.random_streams import QueryStream
from lever_mlflow.settings import RolloutSettings
from lever_mlflow.vlm.prompt import Prompt

if TYPE_CHECKING:
    import torch

    from lever_mlflow.selector.network import PointerSelector

__all__ = [
    "BATCH_SIZE",
    "FEATURES",
    "FIRST_CHOICE",
    "GENERATORS",
    "METHODS",
    "Generator",
    "PooledQueries",
    "Proposal",
    "QueryBatch",
    "RolloutInputs",
    "gen_methods",
    "propose",
    "query_batches",
    "random_pointers",
    "sampled_pointers",
    "without_repeats",
]

FIRST_CHOICE = "beam"  # gen_method of beam search, whose first pointer of a query is the most probable one that it found
FEATURES = ("fused_SD", "image_SD", "text_SD")  # the tables of features by which similar candidates are retrieved
BATCH_SIZE = 256  # queries that go through the selector at once


@dataclass(frozen=True)
class RolloutInputs:
    """Holds what all parts of one rollout share.

    Attributes:
        train: the training items, which are the queries and the candidates.
        features: features of ``train``, in its order.
        selector: the policy that beam search and sampling draw from.
        answer: returns the raw generations for prompts, in their order.
        settings: how many pointers each generator makes, and of how many shots.
        seed: seed of all random draws.
        score: returns the probability of the right answers after each prompt, in order; None where it is not recorded.
    """

    train: Sequence[Sample]
    features: FeatureTable
    selector: PointerSelector
    answer: Callable[[Sequence[Prompt]], list[str]]
    settings: RolloutSettings
    seed: int
    score: Callable[[Sequence[Prompt]], list[float]] | None = None


class PooledQueries(NamedTuple):
    """Holds queries with their candidate pools; ``pools_QN`` holds train indices."""

    samples: Sequence[Sample]
    pools_QN: np.ndarray

    def at(self, rows: Sequence[int]) -> PooledQueries:
        """Returns the queries at these rows."""
        return PooledQueries([self.samples[row] for row in rows], self.pools_QN[rows])


class QueryBatch(NamedTuple):
    """Holds some queries with their pools, and the features of both that the selector takes."""

    queries: Sequence[Sample]
    pools_BN: np.ndarray
    query_BD: torch.Tensor
    candidates_BND: torch.Tensor


class Proposal(NamedTuple):
    """Proposes a pointer, as positions in the query's pool; ``record`` holds ``gen_method`` and what its generator knows."""

    pointer: tuple[int, ...]
    record: dict[str, Any]


Generator = Callable[[RolloutInputs, QueryBatch], list[list[Proposal]]]


def beam_pointers(inputs: RolloutInputs, batch: QueryBatch) -> list[list[Proposal]]:
    """Proposes the most probable pointers that beam search finds, best first."""
    settings = inputs.settings
    beam = inputs.selector.beam(batch.query_BD, batch.candidates_BND, settings.shots, settings.beam_width)
    return [
        [
            Proposal(tuple(pointer), {"gen_method": FIRST_CHOICE, "beam_rank": rank, "beam_score": score})
            for rank, (pointer, score) in enumerate(zip(pointers, scores, strict=True))
        ]
        for pointers, scores in zip(beam.pointers_BWK.tolist(), beam.logprobs_BW.tolist(), strict=True)
    ]


def policy_samples(inputs: RolloutInputs, batch: QueryBatch) -> list[list[Proposal]]:
    """Proposes pointers that are sampled from the policy at the temperatures of the settings."""
    settings = inputs.settings
    count = settings.samples_per_temperature
    return sampled_pointers(inputs, batch, QueryStream.SAMPLED_POINTERS, settings.temperatures, count)


def similar_pointers(inputs: RolloutInputs, batch: QueryBatch) -> list[list[Proposal]]:
    """Proposes by each feature the most similar candidates, then the next most similar ones, and so on."""
    count, shots = inputs.settings.retrieval_per_feature, inputs.settings.shots
    tables = [table_SD for name in FEATURES if (table_SD := getattr(inputs.features, name)).shape[1]]  # that the encoder gives
    return [
        [
            Proposal(tuple(pointer), {"gen_method": "retrieval"})
            for table_SD in tables
            for pointer in top_k(table_SD[query.index], table_SD[pool_N], count * shots).reshape(count, shots).tolist()
        ]
        for query, pool_N in zip(batch.queries, batch.pools_BN, strict=True)
    ]


def uniform_pointers(inputs: RolloutInputs, batch: QueryBatch) -> list[list[Proposal]]:
    """Proposes pointers that are drawn uniformly from all pointers of the pool."""
    return random_pointers(inputs, batch, QueryStream.RANDOM_POINTERS, inputs.settings.random_pointers)


# Each generator stands under the setting that says how many pointers it makes; 0 turns it off. The order matters: a pointer
# that several generators propose is recorded under the first of them.
GENERATORS: Mapping[str, Generator] = {
    "beam_width": beam_pointers,
    "samples_per_temperature": policy_samples,
    "retrieval_per_feature": similar_pointers,
    "random_pointers": uniform_pointers,
}


METHODS: Mapping[str, str] = {  # the gen_method of each generator's pointers
    "beam_width": FIRST_CHOICE,
    "samples_per_temperature": "sample",
    "retrieval_per_feature": "retrieval",
    "random_pointers": "random",
}


def gen_methods(settings: RolloutSettings) -> list[str]:
    """Returns the ``gen_method`` of each generator that is on."""
    return [method for setting, method in METHODS.items() if getattr(settings, setting)]


def propose(inputs: RolloutInputs, queries: PooledQueries) -> list[list[Proposal]]:
    """Returns for each query what all generators propose, without repeats."""
    active = [generator for setting, generator in GENERATORS.items() if getattr(inputs.settings, setting)]
    return [
        without_repeats(chain.from_iterable(proposals))
        for batch in query_batches(inputs, queries)
        for proposals in zip(*(generator(inputs, batch) for generator in active), strict=True)
    ]


def query_batches(inputs: RolloutInputs, queries: PooledQueries) -> Iterator[QueryBatch]:
    """Yields the queries in batches, with the features that the selector takes."""
    import torch

    features_SD = inputs.features.of(inputs.selector.fusion)
    for start in range(0, len(queries.samples), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        samples, pools_BN = queries.samples[rows], queries.pools_QN[rows]
        query_BD = torch.from_numpy(features_SD[[sample.index for sample in samples]])
        yield QueryBatch(samples, pools_BN, query_BD, torch.from_numpy(features_SD[pools_BN]))


def without_repeats(proposals: Iterable[Proposal]) -> list[Proposal]:
    """Returns the first proposal of each pointer, in order."""
    by_pointer: dict[tuple[int, ...], Proposal] = {}
    for proposal in proposals:
        by_pointer.setdefault(proposal.pointer, proposal)
    return list(by_pointer.values())


def sampled_pointers(
    inputs: RolloutInputs, batch: QueryBatch, stream: QueryStream, temperatures: Sequence[float], count: int
) -> list[list[Proposal]]:
    """Samples ``count`` pointers for each query and temperature from the policy; each query has random numbers of its own."""
    import torch

    keys = [[inputs.seed, query.question_id, stream] for query in batch.queries]
    states = [np.random.SeedSequence(key).generate_state(1) for key in keys]
    generators = [torch.Generator().manual_seed(int(state[0])) for state in states]
    selector, shots, features = inputs.selector, inputs.settings.shots, (batch.query_BD, batch.candidates_BND)
    with torch.no_grad():
        pointers_BGK = torch.cat([selector.sample(*features, shots, count, t, generators) for t in temperatures], dim=1)
        logprobs_BG = selector.logprobs(*features, pointers_BGK)
    temperatures_G = [temperature for temperature in temperatures for _ in range(count)]
    return [
        [
            Proposal(tuple(pointer), {"gen_method": "sample", "temperature": temperature, "logprob_score": score})
            for pointer, temperature, score in zip(pointers, temperatures_G, scores, strict=True)
        ]
        for pointers, scores in zip(pointers_BGK.tolist(), logprobs_BG.tolist(), strict=True)
    ]


def random_pointers(inputs: RolloutInputs, batch: QueryBatch, stream: QueryStream, count: int) -> list[list[Proposal]]:
    """Draws ``count`` uniform pointers per query, with random numbers for each query alone."""
    size, shots = batch.pools_BN.shape[1], inputs.settings.shots
    generators = [np.random.default_rng([inputs.seed, query.question_id, stream]) for query in batch.queries]
    return [
        [Proposal(tuple(rng.choice(size, shots, replace=False).tolist()), {"gen_method": "random"}) for _ in range(count)]
        for rng in generators
    ]
