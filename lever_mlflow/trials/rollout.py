"""Records trials of a starting policy as RL data: draws a pool for each query, tries pointers of it, and scores the answers.

Which pointers are tried is decided in ``generators``, how a trial is recorded in ``recording``, and what is tried in addition
for queries without a correct trial in ``mining`` and ``global_search``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lever_mlflow.data.candidate_pools import candidate_pools, check_pool_size
from lever_mlflow.data.features import FeatureTable
from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.random_streams import SeedStream
from lever_mlflow.settings import RolloutSettings
from lever_mlflow.trials.generators import FEATURES, FIRST_CHOICE, GENERATORS, PooledQueries, RolloutInputs, propose
from lever_mlflow.trials.global_search import searched_trials
from lever_mlflow.trials.mining import is_mined, mined_trials
from lever_mlflow.trials.recording import query_record, try_out, with_gt_prob
from lever_mlflow.trials.rewards import Reward
from lever_mlflow.trials.rl_data import Group, is_positive
from lever_mlflow.vlm.prompt import Prompt

if TYPE_CHECKING:
    from lever_mlflow.selector.network import PointerSelector

__all__ = [
    "check_settings",
    "choose_queries",
    "first_choice_reward",
    "is_mined",
    "most_prompts",
    "positive_query_rate",
    "rollout",
]


def check_settings(settings: RolloutSettings) -> None:
    """Checks that the settings fit together, which takes no data.

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
    if not any(getattr(settings, name) for name in GENERATORS):
        raise ParameterError(f"{', '.join(GENERATORS)}: all 0, which leaves nothing to try; turn one on")


def most_prompts(settings: RolloutSettings) -> int:
    """Returns how many prompts a rollout asks at most: one for each pointer, and another one with ``gt_prob``."""
    pointers = (
        settings.beam_width
        + len(settings.temperatures) * settings.samples_per_temperature
        + len(FEATURES) * settings.retrieval_per_feature
        + settings.random_pointers
        + settings.mine_positives
        + settings.search_positives
    )
    return settings.n_queries * pointers * (2 if settings.gt_prob else 1)


def choose_queries(train: Sequence[Sample], count: int, seed: int, round_number: int = 1) -> list[Sample]:
    """Draws ``count`` training items uniformly without replacement, as queries of the rollout, in the order of ``train``.

    Each round of GRPO goes on in the same random order where the round before it stopped, so that no item is a query twice
    before every item has been one.

    Args:
        train: the training items.
        count: number of queries.
        seed: seed of the order.
        round_number: number of the round, from 1.

    Raises:
        ParameterError: ``count`` is below 1 or above the number of training items.
    """
    if not 1 <= count <= len(train):
        raise ParameterError(f"n_queries={count}, but the training split has {len(train)} items; choose 1 to {len(train)}")
    order = np.random.default_rng([seed, SeedStream.QUERIES]).permutation(len(train))
    rows = np.roll(order, -count * (round_number - 1))[:count]
    return [train[row] for row in sorted(rows.tolist())]


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
    """Records one group of trials per query.

    What is tried for a query depends on ``seed`` and its question id, not on the other queries.

    Args:
        queries: the queries, items of ``train``.
        train: the training items.
        features: features of ``train``, in its order.
        selector: the policy that beam search and sampling draw from.
        answer: returns the raw generations for prompts, in their order; called once, and once more in each round of mining and
            of the search for positive trials.
        settings: pools, generators, mining and search.
        seed: seed of all random draws.
        score: returns the probability of the right answers after each prompt, in order; needed for ``gt_prob``.

    Raises:
        ParameterError: as ``check_settings``; or there are fewer training items than the pool needs.
        ValueError: ``gt_prob`` is set, but ``score`` is not.
    """
    check_settings(settings)
    inputs = RolloutInputs(train, features, selector, answer, settings, seed, score)
    pools_QN = candidate_pools(queries, train, settings.pool_sampler, settings.pool_size, seed, features, features)
    pooled = PooledQueries(queries, pools_QN)
    trials = try_out(inputs, pooled, propose(inputs, pooled))
    if settings.mine_positives:
        trials = mined_trials(inputs, pooled, trials)
    if settings.search_positives:
        pooled, trials = searched_trials(inputs, pooled, trials)
    if settings.gt_prob:
        trials = with_gt_prob(inputs, pooled, trials)
    return [
        Group(query.index, tuple(pool), tuple(recorded), query_record(query), tuple(train[item].question_id for item in pool))
        for query, pool, recorded in zip(queries, pooled.pools_QN.tolist(), trials, strict=True)
    ]


def first_choice_reward(groups: Sequence[Group], reward: Reward) -> float | None:
    """Returns the mean reward of the pointers that the starting policy found best; None where beam search recorded none."""
    best = [next((i for i, trial in enumerate(group.trials) if trial.gen_method == FIRST_CHOICE), None) for group in groups]
    rewards = [group.rewards_G(reward)[i] for group, i in zip(groups, best, strict=True) if i is not None]
    return float(np.mean(rewards)) if rewards else None


def positive_query_rate(groups: Sequence[Group], *, mined: bool = True) -> float:
    """Returns the share of groups that have a positive trial; with ``mined=False``, mined trials do not count."""
    positive = [is_positive(trial for trial in group.trials if mined or not is_mined(trial)) for group in groups]
    return sum(positive) / len(positive)
