"""Names the policies that an evaluation compares, which no other module does, and says what those without a selector pick."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from lever_mlflow.data.candidate_pools import top_k
from lever_mlflow.data.samples import Sample
from lever_mlflow.random_streams import QueryStream
from lever_mlflow.settings import Order

__all__ = [
    "BASELINES",
    "CHAMPION",
    "RANDOM",
    "SIMILARITIES",
    "SIMILARITY_BASELINES",
    "START",
    "ZERO_SHOT",
    "checkpoint_policy",
    "epoch_policy",
    "in_prompt_order",
    "is_baseline",
    "metric_name",
    "random_picks",
    "similarity_picks",
    "similarity_policy",
    "whole_set_policy",
]

ZERO_SHOT, RANDOM = "zero-shot", "random"
START = "start"  # the checkpoint that GRPO started from
CHAMPION = "champion"  # a registered version that is evaluated for a promotion
_CHECKPOINT = "checkpoint "  # how the names of further checkpoints begin
_EPOCH = "epoch "  # how the names of epochs begin
SIMILARITIES = ("image", "text", "fused")  # the features by which a similarity policy searches


def similarity_policy(feature: str) -> str:
    """Names the policy that picks the nearest candidates of the pool by a feature."""
    return f"{feature}-similarity"


def whole_set_policy(feature: str) -> str:
    """Names the policy that picks the nearest items of the whole training set by a feature."""
    return f"{similarity_policy(feature)} (full training set)"


SIMILARITY_BASELINES = tuple(
    policy for feature in SIMILARITIES for policy in (similarity_policy(feature), whole_set_policy(feature))
)
BASELINES = (ZERO_SHOT, RANDOM, *SIMILARITY_BASELINES)


def epoch_policy(epoch: int) -> str:
    """Names the policy of an epoch's checkpoint."""
    return f"{_EPOCH}{epoch}"


def checkpoint_policy(number: int, reference: str) -> str:
    """Names the policy of a further checkpoint (numbered from 1), which the user gave as ``reference``."""
    return f"{_CHECKPOINT}{number} ({reference})"


def is_baseline(policy: str) -> bool:
    """Says whether a policy picks without training, as all do but epochs, the start, a champion and further checkpoints.

    Results from elsewhere may have baselines of other names than ``BASELINES``.
    """
    trained = policy in (START, CHAMPION) or policy.startswith(_CHECKPOINT) or re.fullmatch(rf"{_EPOCH}\d+", policy)
    return not trained


def metric_name(policy: str) -> str:
    """Writes a policy's name with the letters, digits and underscores that tags and metrics may hold."""
    return re.sub(r"[^a-z0-9]+", "_", policy.lower()).strip("_")


def in_prompt_order(picks_QK: np.ndarray, order: Order) -> np.ndarray:
    """Puts picks, of which the first or most similar one stands first, in the order of the prompt; the last axis is K."""
    return picks_QK[..., ::-1] if order == "similar-last" else picks_QK


def similarity_picks(queries_QD: np.ndarray, pools_QN: np.ndarray, train_SD: np.ndarray, shots: int) -> np.ndarray:
    """Picks the most similar candidates of each pool, most similar first: train indices [Q, K]."""
    return np.stack([pool[top_k(query, train_SD[pool], shots)] for query, pool in zip(queries_QD, pools_QN, strict=True)])


def random_picks(queries: Sequence[Sample], pools_QN: np.ndarray, shots: int, seed: int, draw: int = 0) -> np.ndarray:
    """Draws from each pool uniformly without replacement: train indices [Q, K], by seed, question id and draw alone."""
    states = [[seed, query.question_id, QueryStream.RANDOM_POLICY, *([draw] if draw else [])] for query in queries]
    generators = zip(map(np.random.default_rng, states), pools_QN, strict=True)
    return np.stack([rng.choice(pool, shots, replace=False) for rng, pool in generators])
