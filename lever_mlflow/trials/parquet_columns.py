"""Reads ordinary tables of RL data column by column; whatever is out of the ordinary is left to be read query by query.

Both ways give the same groups and the same digest. Shapes are those of ``columns``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lever_mlflow.trials.canonical import UnfitError, json_lists, json_objects, json_values, parsed_fields
from lever_mlflow.trials.columns import GroupColumns
from lever_mlflow.trials.fields import LARGEST_INDEX
from lever_mlflow.trials.ordinary import EVAL_MODES
from lever_mlflow.trials.parquet import ENTRY_FIELDS, KEY, QUERY_FIELDS, TRIAL_FIELDS
from lever_mlflow.trials.rl_data import POOL_IDS, POOL_QUESTION_IDS

__all__ = ["OrdinaryTable", "ordinary_table"]

_READ = {"pointer", "pointer_global", "pointer_pos", "gen_method", "vqa_correct", "vqa_acc_score", "vqa_eval_mode"}
_READ |= {"eval_failed", "vqa_gt_prob", "vqa_rel_score", "question_id", "image_id"}
_OPTIONAL = {"vqa_correct", "vqa_acc_score", "vqa_gt_prob", "vqa_rel_score"}


class OrdinaryTable(NamedTuple):
    """Holds what a table tells.

    Attributes:
        columns: the queries with their usable trials.
        digests: digest of the content of each query.
        n_trials: number of trials, dropped ones included.
        dropped: number of trials that are not used, by reason.
        fallback_used: whether trials of mode ``fallback`` are among the usable ones.
    """

    columns: GroupColumns
    digests: list[bytes]
    n_trials: int
    dropped: Counter[str]
    fallback_used: bool


def ordinary_table(table: pa.Table, use_fallback: bool, digests: bool = True) -> OrdinaryTable | None:
    """Returns what a table of ``parquet.tables`` tells, or None where anything in it is out of the ordinary.

    In an ordinary table every query has a pool and trials, its fields stand in its first row, all pointers are positions in the
    pool whose items ``pointer_global`` names, and all fields that are read have the types of their columns.

    Args:
        table: whole queries.
        use_fallback: whether trials of mode ``fallback`` are used.
        digests: whether the digests are computed, which takes most of the time; otherwise there are none.
    """
    try:
        return _read({name: table[name].combine_chunks() for name in table.column_names}, use_fallback, digests)
    except UnfitError:
        return None


def _read(column: Mapping[str, Any], use_fallback: bool, with_digests: bool) -> OrdinaryTable:
    keys_T = _indices(column[KEY])
    starts_Q = np.flatnonzero(np.concatenate([[True], np.diff(keys_T) != 0]))
    sizes_Q = np.diff(starts_Q, append=len(keys_T))
    head = _heads(column, starts_Q)
    pools_P, pool_sizes_Q = _indices(head[POOL_IDS].flatten()), head[POOL_IDS].value_lengths().to_numpy()
    named = head[POOL_QUESTION_IDS]
    has_question_ids_Q = named.is_valid().to_numpy(zero_copy_only=False)
    recorded_sizes_Q = named.value_lengths().fill_null(0).to_numpy()
    _require((recorded_sizes_Q == np.where(has_question_ids_Q, pool_sizes_Q, 0)).all())
    question_ids_R = named.flatten().to_numpy()
    _require((np.abs(question_ids_R) <= LARGEST_INDEX).all())
    shots_T, pointers_X = _pointers(column, sizes_Q, pool_sizes_Q, pools_P)
    methods = column["gen_method"].dictionary_encode()
    modes = column["vqa_eval_mode"].fill_null(EVAL_MODES[0])
    modes_T = pc.index_in(modes, pa.array(EVAL_MODES)).fill_null(-1).to_numpy()
    failed_T = column["eval_failed"].fill_null(False).to_numpy(zero_copy_only=False)
    _require((modes_T >= 0).all() and not methods.indices.null_count and "" not in methods.dictionary.to_pylist())
    fallback_T = modes_T == EVAL_MODES.index("fallback")
    usable_T = ~failed_T & (modes_T != EVAL_MODES.index("error")) & (use_fallback | ~fallback_T)
    columns = GroupColumns(
        query_ids_Q=keys_T[starts_Q],
        queries_Q=_queries(head),
        pool_sizes_Q=pool_sizes_Q,
        pools_P=pools_P,
        has_question_ids_Q=has_question_ids_Q,
        question_ids_R=question_ids_R,
        sizes_Q=sizes_Q,
        shots_T=shots_T,
        pointers_X=pointers_X,
        correct_T=_scores(column["vqa_correct"], usable_T),
        accuracy_T=_scores(column["vqa_acc_score"], usable_T),
        gt_prob_T=_scores(column["vqa_gt_prob"]),
        rel_score_T=_scores(column["vqa_rel_score"]),
        methods_T=methods.indices.to_numpy(),
        method_names=methods.dictionary.to_pylist(),
        modes_T=modes_T,
        mode_names=EVAL_MODES,
        failed_T=failed_T,
        records_T=None,
    )
    digests = _digests(column, head, sizes_Q) if with_digests else []
    if not usable_T.all():
        columns = columns.selected(np.arange(len(columns)), usable_T)
    reasons = np.where(failed_T, "eval_failed", np.array(EVAL_MODES)[modes_T])[~usable_T]
    fallback_used = bool((fallback_T & usable_T).any())
    return OrdinaryTable(columns, digests, len(keys_T), Counter(reasons.tolist()), fallback_used)


def _require(holds: bool | np.bool_) -> None:
    if not holds:
        raise UnfitError


def _indices(column: Any) -> np.ndarray:
    """Returns a column of train indices as an array."""
    _require(not column.null_count)
    indices = column.to_numpy()
    _require(not len(indices) or (indices.min() >= 0 and indices.max() <= LARGEST_INDEX))
    return indices


def _heads(column: Mapping[str, Any], starts_Q: np.ndarray) -> dict[str, Any]:
    """Returns the fields of the queries, which must stand in the first row of each query alone."""
    rows = pa.array(starts_Q)
    names = [*QUERY_FIELDS, "query_as_written", *ENTRY_FIELDS, "entry_as_written"]
    heads = {name: column[name].take(rows) for name in names}
    for name, head in heads.items():
        _require(len(head) - head.null_count == len(column[name]) - column[name].null_count)
    _require(not heads[POOL_IDS].null_count and heads["entry_as_written"].null_count == len(rows))
    return heads


def _pointers(
    column: Mapping[str, Any], sizes_Q: np.ndarray, pool_sizes_Q: np.ndarray, pools_P: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lengths of the pointers and their positions, which must be in the pool and agree with the named items."""
    pointers, named = column["pointer"], column["pointer_global"]
    _require(not pointers.null_count and not named.null_count and column["pointer_pos"].null_count == len(pointers))
    shots_T, positions, items = pointers.value_lengths().to_numpy(), pointers.flatten(), named.flatten()
    _require(not positions.null_count and not items.null_count and (shots_T > 0).all())
    _require(np.array_equal(shots_T, named.value_lengths().to_numpy()))
    positions_X = positions.to_numpy()
    owners_X = np.repeat(np.repeat(np.arange(len(sizes_Q)), sizes_Q), shots_T)
    _require(((positions_X >= 0) & (positions_X < pool_sizes_Q[owners_X])).all())
    pool_starts_Q = np.cumsum(pool_sizes_Q, dtype=np.int64) - pool_sizes_Q
    _require(np.array_equal(pools_P[pool_starts_Q[owners_X] + positions_X], items.to_numpy()))
    return shots_T.astype(np.int64), positions_X


def _scores(column: Any, needed: np.ndarray | None = None) -> np.ndarray:
    """Returns a column of scores, NaN where one is null; none may be null where it is needed."""
    scores = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    _require(needed is None or not np.isnan(scores[needed]).any())
    return scores


def _queries(head: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the ids of each query that are recorded."""
    ids = {name: head[name].to_pylist() for name in ("question_id", "image_id")}
    rows = zip(*ids.values(), strict=True)
    return [{name: value for name, value in zip(ids, row, strict=True) if value is not None} for row in rows]


def _digests(column: Mapping[str, Any], head: Mapping[str, Any], sizes_Q: np.ndarray) -> list[bytes]:
    """Returns the digest of each query's canonical JSON."""
    trials = json_objects(_texts(column, TRIAL_FIELDS, "trial_as_written"), int(sizes_Q.sum()))
    entry = {name: json_values(head[name]) for name in ENTRY_FIELDS} | {"pointer_candidates": json_lists(trials, sizes_Q)}
    query = _texts(head, QUERY_FIELDS, "query_as_written")
    present = pc.is_valid(head["query_as_written"])
    for name in QUERY_FIELDS:
        present = pc.or_(present, pc.is_valid(head[name]))
    entry["query"] = pc.if_else(present, json_objects(query, len(sizes_Q)), None)
    return [hashlib.sha256(text).digest() for text in json_objects(entry, len(sizes_Q)).cast(pa.binary()).to_pylist()]


def _texts(column: Mapping[str, Any], names: Mapping[str, Any], others: str) -> dict[str, Any]:
    """Returns the JSON texts of all fields by name, those of columns and those that stand in a JSON object."""
    texts = {name: json_values(column[name]) for name in names if column[name].null_count < len(column[name])}
    for name, written in parsed_fields(column[others]).items():
        null = name in _OPTIONAL and pc.all(pc.equal(written, "null")).as_py()  # null is the same as none to the reader
        _require(name not in _READ or null)
        if name in texts:
            _require(not pc.any(pc.and_(pc.is_valid(texts[name]), pc.is_valid(written))).as_py())
        texts[name] = pc.coalesce(texts[name], written) if name in texts else written
    return texts
