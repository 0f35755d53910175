"""RL data: the recorded trials that the selector learns from. Reads three vintages of the file format, writes the newest.

Vintages, told apart by what a query and its trials hold:

* ``pools``: the query has ``candidate_pool_ids``; a trial's ``pointer`` holds positions in it, ``pointer_global`` train
  indices;
* ``pointers``: no pool; ``pointer`` holds train indices;
* ``pointer_pos``: no pool; ``pointer_pos`` holds train indices.

Where there is no pool, it is the sorted set of all indices that the query's pointers name.

A file is read query by query, and what is kept of a trial is what training needs: about 0.2 kB, where the file has 0.5.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError
from lever_mlflow.files.strict_json import iterate_object
from lever_mlflow.settings import RewardMode
from lever_mlflow.trials.rewards import rewards

__all__ = ["Group", "RLData", "Trial", "check_fits", "load_rl_data", "save_rl_data"]

_TRAIN_INDEX = re.compile("0|[1-9][0-9]{0,17}")  # one spelling per index, and it fits 64 bits
_LARGEST_INDEX = 10**18 - 1
_EVAL_MODES = ("vqaEval", "fallback", "error")
_DIGEST_CHARS = 32  # MLflow accepts at most 36
_KEPT_OF_QUERY = ("question_id", "image_id")
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))

_Value = TypeVar("_Value", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Trial:
    """One recorded pointer and how the VLM's answer scored; ``pointer`` holds positions in the group's pool.

    ``record`` holds the file's other fields; None where they were not kept on reading.
    """

    pointer: tuple[int, ...]
    correct: float
    accuracy: float
    gen_method: str
    eval_mode: str = "vqaEval"
    eval_failed: bool = False
    gt_prob: float | None = None
    record: Mapping[str, Any] | None = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Group:
    """All usable trials of one query; ``query_id`` and ``pool`` are train indices.

    ``query`` describes the query; without records only its ``question_id`` and ``image_id``.
    """

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
        digest: content digest of all queries and trials, 32 hex characters; independent of key order, whitespace and
            ``_meta``. Where fallback trials are used, another one.
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


def load_rl_data(
    path: str | Path, *, use_fallback: bool = False, keep_records: bool = False, source: str | None = None
) -> RLData:
    """Reads one RL data file.

    Trials with ``eval_failed``, mode ``error`` or, unless ``use_fallback``, mode ``fallback`` are left out and counted.
    With ``keep_records`` every trial and query keeps all fields of the file, to be saved again, at several times the memory.
    ``source`` names the data where ``path`` is only a local copy of it.

    Raises:
        DataError: the file is missing, truncated or not in one of the three vintages; the message names the place.
    """
    path = Path(path)
    remedy = {"missing": "give rl_data=FILE or run the rollout step", "damaged": "copy it again or run the rollout step"}
    reader = _Reader(path, use_fallback, keep_records)
    for key, entry in iterate_object(path, **remedy):
        reader.read(key, entry)
    if not reader.groups:
        raise DataError(f"{path}: no queries; run the rollout step to make RL data")
    groups = tuple(sorted(reader.groups, key=lambda group: group.query_id))
    vintage = reader.vintage or "pointers"
    return RLData(groups, reader.digest(), vintage, dict(reader.dropped), reader.meta, source or str(path))


def check_fits(data: RLData, train: Sequence[Sample]) -> None:
    """Holds RL data against the training items that its indices should name.

    Where a query records its question id, the data gate knows that the items are these, and searches its pool for
    its image; where it does not, that is done here.

    Raises:
        DataError: an index without item, a query that is another question than recorded, or, where none is recorded, a
            pool item that shares the query's image and so gives it away.
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
        if shared and "question_id" not in group.query:
            raise DataError(f"{place}: pool item {shared[0]} shows the query's own image; make the RL data again")


def save_rl_data(path: str | Path, groups: Iterable[Group], meta: Mapping[str, Any]) -> None:
    """Writes groups in the newest vintage, whole or not at all.

    Raises:
        ValueError: a score is NaN or infinite, or a trial was read without its record, which would be lost.
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


class _Reader:
    """Turns a file's queries into groups, one by one. Equal values are kept once: a file has few different ones."""

    def __init__(self, path: Path, use_fallback: bool, keep_records: bool) -> None:
        self.path, self.use_fallback, self.keep_records = path, use_fallback, keep_records
        self.meta: dict[str, Any] = {}
        self.vintage: str | None = None
        self.groups: list[Group] = []
        self.dropped: Counter[str] = Counter()
        self._digests: dict[str, bytes] = {}
        self._fallback_used = False
        self._shared: defaultdict[type, dict[Any, Any]] = defaultdict(dict)  # by type: 1 and 1.0 are equal

    def digest(self) -> str:
        """Of every query's canonical JSON, in the order of their keys."""
        total = hashlib.sha256(b"fallback used" if self._fallback_used else b"")
        for key in sorted(self._digests):
            total.update(key.encode() + b"\0" + self._digests[key])
        return total.hexdigest()[:_DIGEST_CHARS]

    def read(self, key: str, entry: Any) -> None:
        """Adds one entry of the file.

        Raises:
            DataError: it is not a query in the file's vintage; the message names the place.
        """
        if key == "_meta":
            if not isinstance(entry, dict):
                kind = type(entry).__name__
                raise DataError(f"{self.path}: _meta holds a JSON {kind}, expected an object; mend or remove it")
            self.meta = entry
            return
        try:
            self.groups.append(self._group(key, entry))
        except DataError as error:
            raise DataError(f"{self.path}: query {key[:40]!r}: {error}") from None
        self._digests[key] = hashlib.sha256(_CANONICAL.encode(entry).encode()).digest()

    def _group(self, key: str, entry: Any) -> Group:
        records = entry.get("pointer_candidates") if isinstance(entry, dict) else None
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise DataError("pointer_candidates is not a list of trials; run the rollout step again")
        if not _TRAIN_INDEX.fullmatch(key):
            raise DataError("the key is not a train index; use the item's position in the questions file")
        query = entry.get("query", {})
        if not isinstance(query, dict):
            raise DataError("query is not an object")
        for name in _KEPT_OF_QUERY:
            if name in query and type(query[name]) is not int:
                raise DataError(f"{name} is {_shown(query[name])}, expected a whole number")
        pointers, pool = self._pointers(entry, records)
        if min(pool, default=0) < 0:
            raise DataError(f"the pool holds {min(pool)}, which is not a train index; run the rollout step again")
        trials = []
        for i, (record, pointer) in enumerate(zip(records, pointers, strict=True)):
            try:
                trial = self._trial(record, pointer)
            except DataError as error:
                raise DataError(f"trial {i}: {error}") from None
            if trial is not None:
                trials.append(trial)
        kept = query if self.keep_records else {name: query[name] for name in _KEPT_OF_QUERY if name in query}
        return Group(int(key), pool, tuple(trials), kept)

    def _pointers(self, entry: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[int, ...]], tuple]:
        """All pointers as positions, and the pool."""
        has_pool = "candidate_pool_ids" in entry
        if self.vintage is None and (has_pool or records):
            self.vintage = "pools" if has_pool else "pointers" if "pointer" in records[0] else "pointer_pos"
        if has_pool != (self.vintage == "pools"):
            raise DataError("candidate_pool_ids on some queries only; one file holds one vintage")
        name = "pointer_pos" if self.vintage == "pointer_pos" else "pointer"
        pool = self._pool(_indices("candidate_pool_ids", entry["candidate_pool_ids"])) if has_pool else ()
        pointers = []
        for i, record in enumerate(records):
            try:
                pointer = _indices(name, record.get(name))
                if not pointer:
                    raise DataError(f"{name} is empty; take the trial out, or record it again")
                if has_pool:
                    _check_global(pool, pointer, record)
                else:
                    _check_old_names(record)
            except DataError as error:
                raise DataError(f"trial {i}: {error}") from None
            pointers.append(pointer)
        if not has_pool:
            pool = tuple(sorted({index for pointer in pointers for index in pointer}))
            position = {index: i for i, index in enumerate(pool)}
            pointers = [tuple(position[index] for index in pointer) for pointer in pointers]
        return [self._once(pointer) for pointer in pointers], pool

    def _trial(self, record: Mapping[str, Any], pointer: tuple[int, ...]) -> Trial | None:
        """The trial, or None where it is dropped, which is decided first: a failed evaluation need not have any scores."""
        failed, mode = record.get("eval_failed", False), record.get("vqa_eval_mode", "vqaEval")
        if not isinstance(failed, bool):
            raise DataError(f"eval_failed is {_shown(failed)}, expected true or false")
        if mode not in _EVAL_MODES:
            raise DataError(f"vqa_eval_mode is {_shown(mode)}, expected one of {', '.join(_EVAL_MODES)}")
        if failed or mode == "error" or (mode == "fallback" and not self.use_fallback):
            self.dropped["eval_failed" if failed else mode] += 1
            return None
        self._fallback_used |= mode == "fallback"
        method = record.get("gen_method")
        if not isinstance(method, str | None):
            raise DataError(f"gen_method is {_shown(method)}, expected a name")
        gt_prob = record.get("vqa_gt_prob")
        return Trial(
            pointer=pointer,
            correct=self._once(_number("vqa_correct", record.get("vqa_correct"))),
            accuracy=self._once(_number("vqa_acc_score", record.get("vqa_acc_score"))),
            gen_method=self._once(method or "unknown"),
            eval_mode=self._once(mode),
            gt_prob=None if gt_prob is None else _number("vqa_gt_prob", gt_prob),
            record=record if self.keep_records else None,
        )

    def _pool(self, indices: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(map(self._shared[int].setdefault, indices, indices))

    def _once(self, value: _Value) -> _Value:
        return self._shared[type(value)].setdefault(value, value)


def _check_global(pool: tuple[int, ...], pointer: tuple[int, ...], record: Mapping[str, Any]) -> None:
    """``pointer_global`` must name the items at ``pointer``; positions outside the pool are left to the data gate."""
    named = _indices("pointer_global", record.get("pointer_global"))
    inside = all(0 <= position < len(pool) for position in pointer)
    if inside and named != tuple([pool[position] for position in pointer]):
        raise DataError(f"pointer_global {list(named)} does not match pointer {list(pointer)} in the pool")


def _check_old_names(record: Mapping[str, Any]) -> None:
    """Without a pool, ``pointer`` must hold train indices; these fields would mean that it holds positions."""
    if "pointer_global" in record:
        raise DataError("has pointer_global, but the query has no candidate_pool_ids; add the pool")
    if "pointer_pos" in record and record.get("pointer", record["pointer_pos"]) != record["pointer_pos"]:
        raise DataError("pointer and pointer_pos differ; keep the one that holds train indices")


def _indices(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        raise DataError(f"{name} is {_shown(value)}, expected a list of whole numbers")
    if value and (max(value) > _LARGEST_INDEX or min(value) < -_LARGEST_INDEX):
        raise DataError(f"{name} is {_shown(value)}, which holds a number of more than 18 digits")
    return tuple(value)


def _number(name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{name} is {_shown(value)}, expected a finite number")
    return number


def _shown(value: Any) -> str:
    """The value as JSON, cut; whole numbers of thousands of digits cannot be written."""
    try:
        return json.dumps(value)[:80]
    except ValueError:
        return "too long a number"


def _trial_record(pool: tuple[int, ...], trial: Trial) -> dict[str, Any]:
    if trial.record is None:
        raise ValueError("a trial was read without its record; load the data with keep_records=True to save them again")
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
