"""RL data: the recorded trials that the selector learns from. Reads three vintages of the file format, writes the newest.

Vintages, told apart by what a query and its trials hold:

* ``pools``: the query has ``candidate_pool_ids``; a trial's ``pointer`` holds positions in it, ``pointer_global`` train
  indices;
* ``pointers``: no pool; ``pointer`` holds train indices;
* ``pointer_pos``: no pool; ``pointer_pos`` holds train indices.

Where there is no pool, it is the sorted set of all indices that the query's pointers name.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lever_mlflow.exceptions import DataError
from lever_mlflow.json_files import read_object
from lever_mlflow.rewards import RewardMode, rewards
from lever_mlflow.types import Sample

__all__ = ["Group", "RLData", "Trial", "check_fits", "load_rl_data", "query_table", "save_rl_data", "trial_table"]

_TRAIN_INDEX = re.compile("0|[1-9][0-9]{0,17}")  # one spelling per index, and it fits 64 bits
_EVAL_MODES = ("vqaEval", "fallback", "error")
_DIGEST_CHARS = 32  # MLflow accepts at most 36


@dataclass(frozen=True)
class Trial:
    """One recorded pointer and how the VLM's answer scored; ``pointer`` holds positions in the group's pool."""

    pointer: tuple[int, ...]
    correct: float
    accuracy: float
    gen_method: str
    eval_mode: str = "vqaEval"
    eval_failed: bool = False
    gt_prob: float | None = None
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Group:
    """All usable trials of one query; ``query_id`` and ``pool`` are train indices."""

    query_id: int
    pool: tuple[int, ...]
    trials: tuple[Trial, ...]
    query: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def pointers_GK(self) -> np.ndarray:
        """Pointers, int64 [trials, shots]."""
        return np.array([trial.pointer for trial in self.trials], dtype=np.int64)

    def rewards_G(self, mode: RewardMode = "hard_plus_soft") -> np.ndarray:
        """Rewards, float64 [trials]."""
        return rewards(
            np.array([trial.correct for trial in self.trials]),
            np.array([trial.accuracy for trial in self.trials]),
            mode,
            gt_prob=np.array([np.nan if t.gt_prob is None else t.gt_prob for t in self.trials]),
        )


@dataclass(frozen=True)
class RLData:
    """The groups of one file.

    Attributes:
        groups: one per query, ordered by train index; only usable trials.
        digest: content digest of all groups, 32 hex characters; independent of key order, whitespace and ``_meta``.
        vintage: ``pools``, ``pointers`` or ``pointer_pos`` (module docstring).
        dropped: reason -> number of trials not used (``eval_failed``, ``error``, ``fallback``).
        meta: the file's ``_meta``.
        source: the file or ``runs:/`` URI that it was read from, as a user can give it again.
    """

    groups: tuple[Group, ...]
    digest: str
    vintage: str
    dropped: Mapping[str, int]
    meta: Mapping[str, Any]
    source: str


def load_rl_data(path: str | Path, *, use_fallback: bool = False, source: str | None = None) -> RLData:
    """Reads one RL data file.

    Trials with ``eval_failed``, mode ``error`` or, unless ``use_fallback``, mode ``fallback`` are left out and counted.
    ``source`` names the data where ``path`` is only a local copy of it.

    Raises:
        DataError: the file is missing, truncated or not in one of the three vintages; the message names the place.
    """
    path = Path(path)
    content = read_object(
        path, missing="give rl_data=FILE or run the rollout step", damaged="copy it again or run the rollout step"
    )
    meta = content.pop("_meta", {})
    if not isinstance(meta, dict):
        raise DataError(f"{path}: _meta holds a JSON {type(meta).__name__}, expected an object; mend or remove it")
    if not content:
        raise DataError(f"{path}: no queries; run the rollout step to make RL data")
    vintage = _vintage(path, content)
    dropped: Counter[str] = Counter()
    groups = [_group(path, key, entry, vintage, use_fallback, dropped) for key, entry in content.items()]
    groups.sort(key=lambda group: group.query_id)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(canonical).hexdigest()[:_DIGEST_CHARS]
    return RLData(tuple(groups), digest, vintage, dict(dropped), meta, source or str(path))


def check_fits(data: RLData, train: Sequence[Sample]) -> None:
    """Holds RL data against the training items that its indices should name.

    Raises:
        DataError: an index without item, a query that is another question than recorded, or a pool item that shares the
            query's image and so gives it away.
    """
    for group in data.groups:
        place = f"{data.source}: query {group.query_id}"
        outside = [index for index in (group.query_id, *group.pool) if index >= len(train)]
        if outside:
            raise DataError(
                f"{place}: item {outside[0]} is not among the {len(train)} training items; was it made from another data set?"
            )
        query = train[group.query_id]
        recorded = group.query.get("question_id", query.question_id)
        if recorded != query.question_id:
            raise DataError(f"{place}: question_id {recorded}, but {query.question_id} in the data set; give dataset=FOLDER")
        shared = [index for index in group.pool if train[index].image_id == query.image_id]
        if shared:
            raise DataError(f"{place}: pool item {shared[0]} shows the query's own image; make the RL data again")


def save_rl_data(path: str | Path, groups: Iterable[Group], meta: Mapping[str, Any]) -> None:
    """Writes groups in the newest vintage, whole or not at all.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    path = Path(path)
    content: dict[str, Any] = {"_meta": dict(meta)}
    for group in groups:
        content[str(group.query_id)] = {
            "query": dict(group.query),
            "candidate_pool_ids": list(group.pool),
            "pointer_candidates": [_trial_record(group.pool, trial) for trial in group.trials],
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder, path.name)
        with part.open("w", encoding="utf-8") as file:
            json.dump(content, file, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


def trial_table(data: RLData, mode: RewardMode = "hard_plus_soft") -> pd.DataFrame:
    """One row per usable trial: the columns that the data gate's ``rl_trials`` suite checks."""
    rows = []
    for group in data.groups:
        group_rewards = group.rewards_G(mode)
        for trial, reward in zip(group.trials, group_rewards, strict=True):
            pointer = trial.pointer
            rows.append(
                {
                    "query_id": group.query_id,
                    "pointer": ",".join(map(str, pointer)),
                    "shots": len(pointer),
                    "gen_method": trial.gen_method,
                    "vqa_correct": trial.correct,
                    "vqa_acc_score": trial.accuracy,
                    "reward": float(reward),
                    "pointer_distinct": len(set(pointer)) == len(pointer),
                    "pointer_in_pool": all(0 <= position < len(group.pool) for position in pointer),
                }
            )
    return pd.DataFrame(rows)


def query_table(data: RLData, mode: RewardMode = "hard_plus_soft") -> pd.DataFrame:
    """One row per query: the columns that the data gate's ``rl_queries`` suite checks."""
    rows = []
    for group in data.groups:
        group_rewards = group.rewards_G(mode)
        spread = float(np.ptp(group_rewards)) if len(group_rewards) else 0.0
        rows.append(
            {
                "query_id": group.query_id,
                "n_trials": len(group.trials),
                "n_distinct_pointers": len({trial.pointer for trial in group.trials}),
                "pool_size": len(group.pool),
                "pool_distinct": len(set(group.pool)) == len(group.pool),
                "query_in_pool": group.query_id in group.pool,
                "positive": int(any(trial.correct == 1 for trial in group.trials)),
                "reward_mean": float(group_rewards.mean()) if len(group_rewards) else float("nan"),
                "reward_spread": spread,
                "zero_spread": int(spread == 0.0),
            }
        )
    return pd.DataFrame(rows)


def _vintage(path: Path, content: Mapping[str, Any]) -> str:
    key, entry = next(iter(content.items()))
    trials = _trial_list(path, key, entry)
    if "candidate_pool_ids" in entry:
        return "pools"
    return "pointer_pos" if trials and "pointer" not in trials[0] else "pointers"


def _trial_list(path: Path, key: str, entry: Any) -> list[Any]:
    trials = entry.get("pointer_candidates") if isinstance(entry, dict) else None
    if not isinstance(trials, list) or not all(isinstance(trial, dict) for trial in trials):
        raise DataError(f"{path}: query {key!r}: pointer_candidates is not a list of trials; run the rollout step again")
    return trials


def _group(path: Path, key: str, entry: Any, vintage: str, use_fallback: bool, dropped: Counter[str]) -> Group:
    place = f"{path}: query {key[:40]!r}"
    records = _trial_list(path, key, entry)
    if not _TRAIN_INDEX.fullmatch(key):
        raise DataError(f"{place}: the key is not a train index; use the item's position in the questions file")
    if ("candidate_pool_ids" in entry) != (vintage == "pools"):
        raise DataError(f"{place}: candidate_pool_ids on some queries only; one file holds one vintage")
    field_name = "pointer_pos" if vintage == "pointer_pos" else "pointer"
    pointers = [_index_list(f"{place}, trial {i}", field_name, record.get(field_name)) for i, record in enumerate(records)]
    if vintage == "pools":
        pool = _index_list(place, "candidate_pool_ids", entry["candidate_pool_ids"])
        for i, (record, pointer) in enumerate(zip(records, pointers, strict=True)):
            _check_global(f"{place}, trial {i}", pool, pointer, record)
    else:
        for i, record in enumerate(records):
            _check_old_names(f"{place}, trial {i}", record)
        pool = tuple(sorted({index for pointer in pointers for index in pointer}))
        position = {index: i for i, index in enumerate(pool)}
        pointers = [tuple(position[index] for index in pointer) for pointer in pointers]
    if min(pool, default=0) < 0:
        raise DataError(f"{place}: the pool holds {min(pool)}, which is not a train index; run the rollout step again")
    trials = []
    for i, (record, pointer) in enumerate(zip(records, pointers, strict=True)):
        reason = _reason_to_drop(f"{place}, trial {i}", record, use_fallback)
        if reason:
            dropped[reason] += 1
        else:
            trials.append(_trial(f"{place}, trial {i}", record, pointer))
    query = entry.get("query", {})
    if not isinstance(query, dict):
        raise DataError(f"{place}: query is not an object")
    return Group(int(key), pool, tuple(trials), query)


def _check_global(place: str, pool: tuple[int, ...], pointer: tuple[int, ...], record: Mapping[str, Any]) -> None:
    """``pointer_global`` must name the items at ``pointer``; positions outside the pool are left to the data gate."""
    named = _index_list(place, "pointer_global", record.get("pointer_global"))
    inside = all(0 <= position < len(pool) for position in pointer)
    if inside and named != tuple(pool[position] for position in pointer):
        raise DataError(f"{place}: pointer_global {list(named)} does not match pointer {list(pointer)} in the pool")


def _check_old_names(place: str, record: Mapping[str, Any]) -> None:
    """Without a pool, ``pointer`` must hold train indices; these fields would mean that it holds positions."""
    if "pointer_global" in record:
        raise DataError(f"{place}: has pointer_global, but the query has no candidate_pool_ids; add the pool")
    if "pointer_pos" in record and record.get("pointer", record["pointer_pos"]) != record["pointer_pos"]:
        raise DataError(f"{place}: pointer and pointer_pos differ; keep the one that holds train indices")


def _trial(place: str, record: Mapping[str, Any], pointer: tuple[int, ...]) -> Trial:
    gt_prob = record.get("vqa_gt_prob")
    return Trial(
        pointer=pointer,
        correct=_number(place, "vqa_correct", record.get("vqa_correct")),
        accuracy=_number(place, "vqa_acc_score", record.get("vqa_acc_score")),
        gen_method=str(record.get("gen_method") or "unknown"),
        eval_mode=record.get("vqa_eval_mode", "vqaEval"),
        gt_prob=None if gt_prob is None else _number(place, "vqa_gt_prob", gt_prob),
        record=record,
    )


def _reason_to_drop(place: str, record: Mapping[str, Any], use_fallback: bool) -> str | None:
    """Decided before the scores are read: a failed evaluation need not have any."""
    failed, mode = record.get("eval_failed", False), record.get("vqa_eval_mode", "vqaEval")
    if not isinstance(failed, bool):
        raise DataError(f"{place}: eval_failed is {json.dumps(failed)[:80]}, expected true or false")
    if mode not in _EVAL_MODES:
        raise DataError(f"{place}: vqa_eval_mode is {json.dumps(mode)[:80]}, expected one of {', '.join(_EVAL_MODES)}")
    if failed:
        return "eval_failed"
    return mode if mode == "error" or (mode == "fallback" and not use_fallback) else None


def _index_list(place: str, name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(index) is int for index in value):
        raise DataError(f"{place}: {name} is {json.dumps(value)[:80]}, expected a list of whole numbers")
    return tuple(value)


def _number(place: str, name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{place}: {name} is {json.dumps(value)[:80]}, expected a finite number")
    return number


def _trial_record(pool: tuple[int, ...], trial: Trial) -> dict[str, Any]:
    return {
        **trial.record,
        "pointer": list(trial.pointer),
        "pointer_global": [pool[position] for position in trial.pointer],
        "gen_method": trial.gen_method,
        "vqa_correct": int(trial.correct) if trial.correct in (0, 1) else trial.correct,
        "vqa_acc_score": trial.accuracy,
        "vqa_gt_prob": trial.gt_prob,
        "vqa_eval_mode": trial.eval_mode,
        "eval_failed": trial.eval_failed,
    }
