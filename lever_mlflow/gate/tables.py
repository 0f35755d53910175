"""Turns RL data into the tables that the gate's suites check: one row per trial, per query and per recorded evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import pandas as pd

from lever_mlflow.data.pool_answers import answers_in_pools
from lever_mlflow.data.samples import Sample
from lever_mlflow.trials.item_order import LEFT_OUT, OTHER_ITEM
from lever_mlflow.trials.rewards import DEFAULT_REWARD, Reward, rewards
from lever_mlflow.trials.rl_data import RLData, check_scores

__all__ = ["evaluation_table", "query_table", "trial_table"]


def trial_table(data: RLData, reward: Reward = DEFAULT_REWARD) -> pd.DataFrame:
    """Returns a table with one row per usable trial, in the order of the groups.

    Args:
        data: the RL data.
        reward: how scores become the column ``reward``.

    Returns:
        Columns ``query_id``, ``shots`` (length of the pointer), ``gen_method``, ``vqa_correct``, ``vqa_acc_score``, ``reward``,
        ``pointer_distinct`` (the pointer has no position twice) and ``pointer_in_pool`` (all its positions are in the pool).

    Raises:
        ParameterError: a trial lacks a score that the reward takes.
    """
    check_scores(data.groups, reward)
    trials = [trial for group in data.groups for trial in group.trials]
    n_trials = len(trials)
    correct = np.fromiter((trial.correct for trial in trials), float, n_trials)
    accuracy = np.fromiter((trial.accuracy for trial in trials), float, n_trials)
    gt_prob = np.fromiter((np.nan if trial.gt_prob is None else trial.gt_prob for trial in trials), float, n_trials)
    rel_score = np.fromiter((np.nan if trial.rel_score is None else trial.rel_score for trial in trials), float, n_trials)
    shots = np.fromiter((len(trial.pointer) for trial in trials), np.int64, n_trials)
    group_sizes = [len(group.trials) for group in data.groups]
    pool_sizes = np.repeat([len(group.pool) for group in data.groups], group_sizes)
    # One entry per pointer position, with the trial that it belongs to.
    positions = np.fromiter(chain.from_iterable(trial.pointer for trial in trials), np.int64, int(shots.sum()))
    owners = np.repeat(np.arange(n_trials), shots)
    outside = (positions < 0) | (positions >= pool_sizes[owners])
    order = np.lexsort((positions, owners))
    repeated = (np.diff(positions[order]) == 0) & (np.diff(owners[order]) == 0)
    return pd.DataFrame(
        {
            "query_id": np.repeat(np.array([group.query_id for group in data.groups], dtype=np.int64), group_sizes),
            "shots": shots,
            "gen_method": pd.Series([trial.gen_method for trial in trials], dtype=object),
            "vqa_correct": correct,
            "vqa_acc_score": accuracy,
            "reward": rewards(correct, accuracy, reward, gt_prob=gt_prob, rel_score=rel_score),
            "pointer_distinct": ~_marked(owners[order][1:][repeated], n_trials),
            "pointer_in_pool": ~_marked(owners[outside], n_trials),
        }
    )


def query_table(data: RLData, trials: pd.DataFrame, train: Sequence[Sample] | None = None) -> pd.DataFrame:
    """Returns a table with one row per query.

    Args:
        data: the RL data.
        trials: the ``trial_table`` of the same data.
        train: the training items with which ``match_items`` has matched the data. They tell which image and which answer each
            item shows; without them, or without a match, only the queries of ``data`` tell images, where the data record
            ``image_id``.

    Returns:
        Columns ``query_id``, ``n_trials``, ``n_positive`` (trials with ``vqa_correct`` 1), ``n_distinct_pointers``,
        ``pool_size``, ``pool_distinct``, ``query_in_pool``, ``image_in_pool`` (number of pool items that show the query's
        image, without the query itself; NaN where none is known to and some images are unknown), ``no_answer_in_pool`` (1 if no
        pool item shows a right answer, 0 if one does, NaN where that is not known), ``positive``, ``reward_mean`` (NaN without
        trials), ``reward_spread`` (largest minus smallest reward) and ``zero_spread``.
    """
    groups = data.groups
    sizes = [len(group.trials) for group in groups]
    per_trial = trials[["reward"]].assign(positive=trials["vqa_correct"] == 1)
    by_group = per_trial.groupby(np.repeat(np.arange(len(groups)), sizes))
    figures = by_group.agg({"reward": ["mean", "min", "max"], "positive": "sum"}).reindex(range(len(groups)))
    spread = (figures["reward", "max"] - figures["reward", "min"]).where(np.array(sizes) > 0, 0.0)
    n_positive = figures["positive", "sum"].fillna(0).astype(np.int64)
    images = _images(data, train)
    return pd.DataFrame(
        {
            "query_id": np.array([group.query_id for group in groups], dtype=np.int64),
            "n_trials": np.array(sizes, dtype=np.int64),
            "n_positive": n_positive,
            "n_distinct_pointers": [len({trial.pointer for trial in group.trials}) for group in groups],
            "pool_size": [len(group.pool) for group in groups],
            "pool_distinct": [len(set(group.pool)) == len(group.pool) for group in groups],
            "query_in_pool": [group.query_id in group.pool for group in groups],
            "image_in_pool": [_same_image(group.query_id, group.pool, images) for group in groups],
            "no_answer_in_pool": _no_answer(data, train),
            "positive": (n_positive > 0).astype(np.int64),
            "reward_mean": figures["reward", "mean"],
            "reward_spread": spread,
            "zero_spread": (spread == 0).astype(np.int64),
        }
    )


def evaluation_table(data: RLData, trials: pd.DataFrame) -> pd.DataFrame:
    """Returns a table with one row per recorded trial, including dropped ones.

    Returns:
        Columns ``outcome``, ``used`` or the reason why the trial was dropped; and ``as_recorded``, whether the items of the
        trial are those that were recorded: false where the data set has others at their indices, None where no question id
        tells it.
    """
    counts = {"used": len(trials), **data.dropped}
    outcome = pd.Series(np.repeat(list(counts), list(counts.values())), dtype=object)
    checked = data.match is not None and data.match.n_checked > 0
    known = {OTHER_ITEM: False, LEFT_OUT: None}
    as_recorded = [known.get(value, True if checked else None) for value in outcome]
    return pd.DataFrame({"outcome": outcome, "as_recorded": pd.Series(as_recorded, dtype=object)})


def _marked(indices: np.ndarray, length: int) -> np.ndarray:
    """Returns truth values that are true at the indices."""
    mask = np.zeros(length, dtype=bool)
    mask[indices] = True
    return mask


def _images(data: RLData, train: Sequence[Sample] | None) -> Mapping[int, int]:
    """Returns the picture, or its image id, of every training item for which it is known, by the item's index."""
    if train and data.match:
        return {sample.index: sample.picture for sample in train}
    return {group.query_id: group.query["image_id"] for group in data.groups if "image_id" in group.query}


def _no_answer(data: RLData, train: Sequence[Sample] | None) -> np.ndarray:
    """Returns 1 for each query in whose pool no item shows a right answer, 0 where one does, NaN where that is not known.

    Files of older vintages name only those items of a pool that were tried.
    """
    if not train or data.vintage != "pools" or not data.match:
        return np.full(len(data.groups), np.nan)
    queries, pools = [train[group.query_id] for group in data.groups], [group.pool for group in data.groups]
    return 1.0 - answers_in_pools(queries, train, pools)


def _same_image(query_id: int, pool: Sequence[int], images: Mapping[int, int]) -> float:
    """Returns how many pool items other than the query show the query's image; NaN where no known one does, but others may."""
    others = [index for index in pool if index != query_id]
    known = [images[index] for index in others if index in images]
    n_same = sum(image == images.get(query_id) for image in known)
    all_known = query_id in images and len(known) == len(others)
    return n_same if n_same or all_known else math.nan
