"""Splits groups of RL data into training and validation queries, and leaves out what is not to be trained on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lever_mlflow.exceptions import DataError
from lever_mlflow.random_streams import SeedStream
from lever_mlflow.settings import GrpoSettings, RceSettings
from lever_mlflow.trials.columns import GroupColumns, as_columns
from lever_mlflow.trials.rl_data import Group, RLData

__all__ = ["filter_summary", "filtered", "split_groups"]


def split_groups(groups: Iterable[Group], val_share: float, seed: int) -> tuple[GroupColumns, GroupColumns]:
    """Splits the groups that have trials into training and validation queries, shuffled by ``seed``.

    At least one query goes to each side.

    Raises:
        DataError: fewer than two queries have usable trials.
    """
    columns = as_columns(groups)
    usable = np.flatnonzero(columns.sizes_Q)
    if len(usable) < 2:
        raise DataError(f"{len(usable)} queries have usable trials, but training needs at least 2; record more in a rollout")
    order = np.random.default_rng([seed, SeedStream.VALIDATION]).permutation(len(usable))
    n_val = min(max(1, round(val_share * len(usable))), len(usable) - 1)
    return columns.selected(usable[order[n_val:]]), columns.selected(usable[order[:n_val]])


def filtered(groups: Iterable[Group], settings: RceSettings | GrpoSettings) -> GroupColumns:
    """Returns groups with those trials that ``filter_gen_methods`` keeps, without groups that have none of them.

    With ``require_positive_query``, groups without a positive trial among them are left out too.

    Raises:
        DataError: no trial is of one of the methods, or no group is left.
    """
    columns, methods, positive = as_columns(groups), settings.filter_gen_methods, settings.require_positive_query
    present = {columns.method_names[code]: code for code in np.unique(columns.methods_T).tolist()}
    for method in methods:
        if method not in present:
            raise DataError(
                f"filter_gen_methods: no trial of the training queries has the gen_method {method!r}; "
                f"their methods are {', '.join(sorted(present))}"
            )
    kept_T = np.isin(columns.methods_T, [present[method] for method in methods or present])
    needed_T = kept_T & (columns.correct_T == 1.0) if positive else kept_T
    rows = np.flatnonzero(np.bincount(columns.owners_T[needed_T], minlength=len(columns)))
    if not len(rows):
        raise DataError(
            f"require_positive_query=true leaves no training query{' with filter_gen_methods' if methods else ''}; leave the "
            "filters out, or record trials with mine_positives or search_positives"
        )
    return columns.selected(rows, kept_T)


def filter_summary(data: RLData, settings: RceSettings | GrpoSettings, seed: int) -> str:
    """Says how many queries and trials the filters leave to train on; an empty text where there is no filter.

    Raises:
        DataError: as ``split_groups`` and ``filtered``; the message names the data.
    """
    if not (settings.filter_gen_methods or settings.require_positive_query):
        return ""
    try:
        all_groups, _ = split_groups(data.groups, settings.val_share, seed)
        groups = filtered(all_groups, settings)
    except DataError as error:
        raise DataError(f"{data.source}: {error}") from None
    trials = f"{groups.n_trials:,} of {all_groups.n_trials:,} trials"
    return f"{len(groups):,} of {len(all_groups):,} training queries with {trials}"
