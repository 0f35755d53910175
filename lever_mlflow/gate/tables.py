"""Turns RL data into the tables that the gate's suites check: one row per trial, per query and per recorded evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from lever_mlflow.data.pool_answers import answers_in_pools
from lever_mlflow.data.samples import Sample
from lever_mlflow.trials.columns import GroupColumns, as_columns, blocks, check_scores, looked_up
from lever_mlflow.trials.item_order import LEFT_OUT, OTHER_ITEM
from lever_mlflow.trials.rewards import DEFAULT_REWARD, Reward
from lever_mlflow.trials.rl_data import RLData

__all__ = ["Images", "evaluation_table", "known_images", "query_table", "trial_table"]

_BLOCK = 4096  # queries of which the pools are looked at together; those of a million queries would take gigabytes


class Images(NamedTuple):
    """Holds the training items of which the image is known, ascending, and a number for the image of each."""

    items: np.ndarray
    numbers: np.ndarray


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
    columns = as_columns(data.groups)
    check_scores(columns, reward)
    n_trials = columns.n_trials
    # One entry per pointer position, with the trial that it belongs to.
    owners = np.repeat(np.arange(n_trials), columns.shots_T)
    positions = columns.pointers_X
    outside = (positions < 0) | (positions >= columns.pool_sizes_Q[columns.owners_T][owners])
    return pd.DataFrame(
        {
            "query_id": columns.query_ids_Q[columns.owners_T],
            "shots": columns.shots_T,
            "gen_method": pd.Series(np.array(columns.method_names, dtype=object)[columns.methods_T], dtype=object),
            "vqa_correct": columns.correct_T,
            "vqa_acc_score": columns.accuracy_T,
            "reward": columns.rewards_T(reward),
            "pointer_distinct": ~_marked(_repeating(owners, positions), n_trials),
            "pointer_in_pool": ~_marked(owners[outside], n_trials),
        }
    )


def query_table(
    data: RLData, trials: pd.DataFrame, train: Sequence[Sample] | None = None, images: Images | None = None
) -> pd.DataFrame:
    """Returns a table with one row per query.

    Args:
        data: the RL data.
        trials: the ``trial_table`` of the same data.
        train: the training items with which ``match_items`` has matched the data. They tell which image and which answer each
            item shows; without them, or without a match, only the queries of ``data`` tell images, where the data record
            ``image_id``.
        images: what ``known_images`` returns of all RL data, where ``data`` are only a part of them.

    Returns:
        Columns ``query_id``, ``n_trials``, ``n_positive`` (trials with ``vqa_correct`` 1), ``n_distinct_pointers``,
        ``pool_size``, ``pool_distinct``, ``query_in_pool``, ``image_in_pool`` (number of pool items that show the query's
        image, without the query itself; NaN where none is known to and some images are unknown), ``no_answer_in_pool`` (1 if no
        pool item shows a right answer, 0 if one does, NaN where that is not known), ``positive``, ``reward_mean`` (NaN without
        trials), ``reward_spread`` (largest minus smallest reward) and ``zero_spread``.
    """
    columns = as_columns(data.groups)
    per_trial = trials[["reward"]].assign(positive=trials["vqa_correct"] == 1)
    by_group = per_trial.groupby(columns.owners_T)
    figures = by_group.agg({"reward": ["mean", "min", "max"], "positive": "sum"}).reindex(range(len(columns)))
    spread = (figures["reward", "max"] - figures["reward", "min"]).where(columns.sizes_Q > 0, 0.0)
    n_positive = figures["positive", "sum"].fillna(0).astype(np.int64)
    images = known_images(data, train) if images is None else images
    parts = [_pool_figures(columns[start : start + _BLOCK], images) for start in range(0, max(len(columns), 1), _BLOCK)]
    repeats, leaks, same_image = map(np.concatenate, zip(*parts, strict=True))
    return pd.DataFrame(
        {
            "query_id": columns.query_ids_Q,
            "n_trials": columns.sizes_Q,
            "n_positive": n_positive,
            "n_distinct_pointers": _distinct_pointers(columns),
            "pool_size": columns.pool_sizes_Q,
            "pool_distinct": ~repeats,
            "query_in_pool": leaks,
            "image_in_pool": same_image,
            "no_answer_in_pool": _no_answer(data, columns, train),
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


def _repeating(owners: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the owners that have a value twice."""
    order = np.lexsort((values, owners))
    owners, values = owners[order], values[order]
    return owners[1:][(np.diff(values) == 0) & (np.diff(owners) == 0)]


def _pool_figures(columns: GroupColumns, images: Images) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns whether each pool has an item twice, whether it has the query, and how many others show the query's image."""
    owners_P, pools_P = columns.owners_P, columns.pools_P
    is_query_P = pools_P == columns.query_ids_Q[owners_P]
    repeats = _marked(_repeating(owners_P, pools_P), len(columns))
    leaks = _marked(owners_P[is_query_P], len(columns))
    return repeats, leaks, _same_image(columns, images, owners_P[~is_query_P], pools_P[~is_query_P])


def _distinct_pointers(columns: GroupColumns) -> np.ndarray:
    """Returns the number of different pointers of each query."""
    distinct = np.zeros(len(columns), dtype=np.int64)
    for shots in np.unique(columns.shots_T):  # pointers of different lengths differ
        trials = np.flatnonzero(columns.shots_T == shots)
        places = columns.pointer_starts_T[trials, None] + np.arange(shots)
        keys = [columns.owners_T[trials], *columns.pointers_X[places].T]
        order = np.lexsort(keys[::-1])
        changes = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
        first = order[np.concatenate([[True], changes])]
        distinct += np.bincount(keys[0][first], minlength=len(columns))
    return distinct


def known_images(data: RLData, train: Sequence[Sample] | None = None) -> Images:
    """Returns the picture, or its image id, of every training item for which it is known; arguments as ``query_table``."""
    if train and data.match:
        images = {sample.index: sample.picture for sample in train}
    else:
        images = {
            query_id: query["image_id"]
            for columns in blocks(data.groups)
            for query_id, query in zip(columns.query_ids_Q.tolist(), columns.queries_Q, strict=True)
            if "image_id" in query
        }
    numbers = {image: number for number, image in enumerate(dict.fromkeys(images.values()))}
    items = np.array(sorted(images), dtype=np.int64)
    return Images(items, np.array([numbers[images[item]] for item in items.tolist()], dtype=np.int64))


def _no_answer(data: RLData, columns: GroupColumns, train: Sequence[Sample] | None) -> np.ndarray:
    """Returns 1 for each query in whose pool no item shows a right answer, 0 where one does, NaN where that is not known.

    Files of older vintages name only those items of a pool that were tried.
    """
    if not train or data.vintage != "pools" or not data.match:
        return np.full(len(columns), np.nan)
    queries = [train[query_id] for query_id in columns.query_ids_Q.tolist()]
    return 1.0 - answers_in_pools(queries, train, map(columns.pool, range(len(columns))))


def _same_image(columns: GroupColumns, images: Images, owners_P: np.ndarray, items_P: np.ndarray) -> np.ndarray:
    """Returns how many pool items other than the query show its image; NaN where no known one does, but others may.

    Args:
        columns: the groups.
        images: the images that are known.
        owners_P: the row of the query of each of these pool items.
        items_P: the pool items.
    """
    image_Q, image_P = (looked_up(items, *images) for items in (columns.query_ids_Q, items_P))
    same_P = (image_P >= 0) & (image_P == image_Q[owners_P])
    n_same = np.bincount(owners_P[same_P], minlength=len(columns)).astype(float)
    unknown = (image_Q < 0) | _marked(owners_P[image_P < 0], len(columns))
    n_same[(n_same == 0) & unknown] = np.nan
    return n_same
