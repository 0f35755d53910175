"""Reads and writes RL data, the recorded trials that the selector learns from.

There are three vintages of the file format, which the fields of a query and its trials tell apart. All three are read, and the
newest is written:

* ``pools``: the query has ``candidate_pool_ids``; a trial's ``pointer`` holds positions in it, and ``pointer_global`` holds
  train indices;
* ``pointers``: the query has no pool; ``pointer`` holds train indices;
* ``pointer_pos``: the query has no pool; ``pointer_pos`` holds train indices.

A query without a pool gets the sorted set of all indices that its pointers name as its pool.

A file is read query by query. By default a trial keeps only what training needs, which takes about 0.2 kB of memory, where
the file has 0.5 kB.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.files.atomic import whole_file
from lever_mlflow.files.strict_json import iterate_object
from lever_mlflow.trials.fields import check_old_names, check_pointer_global, finite_number, shown, whole_numbers
from lever_mlflow.trials.rewards import DEFAULT_REWARD, Reward, missing_score, rewards

__all__ = [
    "Group",
    "RLData",
    "Trial",
    "check_fits",
    "check_items",
    "check_scores",
    "is_positive",
    "load_rl_data",
    "save_rl_data",
]

_TRAIN_INDEX = re.compile("0|[1-9][0-9]{0,17}")  # an index has one spelling and fits 64 bits
_EVAL_MODES = ("vqaEval", "fallback", "error")
_DIGEST_CHARS = 32  # MLflow accepts at most 36
_QUERY_IDS = ("question_id", "image_id")
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))

_Value = TypeVar("_Value", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Trial:
    """Holds one recorded pointer and how the VLM's answer scored.

    Attributes:
        pointer: positions in the pool of the trial's group, in the order of the prompt.
        correct: ``vqa_correct``, 1 when the answer counts as correct, else 0.
        accuracy: ``vqa_acc_score``, the VQA accuracy of the answer, in [0, 1].
        gen_method: name of the generator that proposed the pointer.
        eval_mode: ``vqa_eval_mode``, the way in which the answer was scored.
        eval_failed: whether the scoring failed; such trials are not read.
        gt_prob: ``vqa_gt_prob``, the probability of the right answers; None where it was not recorded.
        rel_score: ``vqa_rel_score``, in [-1, 1]; None where it was not recorded. In trials that ``with_gt_prob`` recorded it is
            the gain of ``gt_prob`` over no demonstration. In the predecessor's files it is the similarity of the answer to
            the nearest right answer.
        record: all fields of the trial in the file; None where they were dropped on reading.
    """

    pointer: tuple[int, ...]
    correct: float
    accuracy: float
    gen_method: str
    eval_mode: str = "vqaEval"
    eval_failed: bool = False
    gt_prob: float | None = None
    rel_score: float | None = None
    record: Mapping[str, Any] | None = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Group:
    """Holds all usable trials of one query.

    Attributes:
        query_id: train index of the query.
        pool: train indices of the candidates.
        trials: the trials, in the order of the file.
        query: fields that describe the query; only ``question_id`` and ``image_id`` where the others were dropped on reading.
    """

    query_id: int
    pool: tuple[int, ...]
    trials: tuple[Trial, ...]
    query: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def pointers_GK(self) -> np.ndarray:
        """Returns the pointers, int64 [trials, shots]."""
        return np.array([trial.pointer for trial in self.trials], dtype=np.int64)

    def rewards_G(self, reward: Reward = DEFAULT_REWARD) -> np.ndarray:
        """Returns the rewards, float64 [trials]; errors as ``rewards``."""
        return rewards(
            np.array([trial.correct for trial in self.trials]),
            np.array([trial.accuracy for trial in self.trials]),
            reward,
            gt_prob=np.array([np.nan if trial.gt_prob is None else trial.gt_prob for trial in self.trials]),
            rel_score=np.array([np.nan if trial.rel_score is None else trial.rel_score for trial in self.trials]),
        )


@dataclass(frozen=True)
class RLData:
    """Holds the groups of one file.

    Attributes:
        groups: one group per query, ordered by train index, with its usable trials only.
        digest: digest of the content of all queries and trials, 32 hex characters. It does not depend on the order of keys, on
            whitespace or on ``_meta``. The same file has another digest where fallback trials of it are used.
        vintage: ``pools``, ``pointers`` or ``pointer_pos``, as the module describes.
        dropped: number of trials that are not used, by reason (``eval_failed``, ``error``, ``fallback``).
        meta: the file's ``_meta``.
        source: the file or ``runs:/`` URI from which the data were read; it can be given as ``rl_data`` again.
        origin: the same, with the whole path of a file, so that it can be given from any folder.
    """

    groups: tuple[Group, ...]
    digest: str
    vintage: str
    dropped: Mapping[str, int]
    meta: Mapping[str, Any]
    source: str

    @property
    def origin(self) -> str:
        return self.source if self.source.startswith("runs:/") else str(Path(self.source).resolve())


def load_rl_data(
    path: str | Path, *, use_fallback: bool = False, keep_records: bool = False, source: str | None = None
) -> RLData:
    """Reads one RL data file.

    Trials whose evaluation failed (``eval_failed``, or mode ``error``) are dropped and counted.

    Args:
        path: the file.
        use_fallback: whether trials of mode ``fallback`` are used; they are dropped and counted otherwise.
        keep_records: whether trials and queries keep all fields of the file, so that they can be saved again. This takes
            several times the memory.
        source: what to call the data where ``path`` is only a local copy of them; the path by default.

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
    """Checks that RL data were recorded on these training items.

    A pool that holds the query's image is looked for only where the question id of the query was not recorded. Otherwise the
    data gate looks for it.

    Raises:
        DataError: an index names no item; a query is another question than was recorded; or, where none was recorded, an item
            of the pool shows the query's image, which gives the answer away.
    """
    for group in data.groups:
        check_items(group, len(train), data.source)
        place = f"{data.source}: query {group.query_id}"
        query = train[group.query_id]
        recorded_id = group.query.get("question_id", query.question_id)
        if recorded_id != query.question_id:
            raise DataError(
                f"{place}: question_id {recorded_id}, but {query.question_id} in the data set; "
                "give the data set on which the RL data were recorded as dataset=FOLDER"
            )
        same_image = [index for index in group.pool if train[index].image_id == query.image_id]
        if same_image and "question_id" not in group.query:
            raise DataError(f"{place}: pool item {same_image[0]} shows the query's image; run the rollout step again")


def check_items(group: Group, n_items: int, source: str = "") -> None:
    """Checks that the query and the pool of a group are among ``n_items`` training items; ``source`` names the RL data.

    Raises:
        DataError: an index names no item.
    """
    outside = [index for index in (group.query_id, *group.pool) if not 0 <= index < n_items]
    if outside:
        file = f"{source}: " if source else ""
        raise DataError(
            f"{file}query {group.query_id}: item {outside[0]} is not among the {n_items} training items; "
            "give the data set on which the RL data were recorded as dataset=FOLDER"
        )


def check_scores(groups: Iterable[Group], reward: Reward) -> None:
    """Checks that all trials have the scores that a reward takes.

    Raises:
        ParameterError: a trial lacks one; the message names the query, the trial's pointer and the field.
    """
    for name in reward.fields:
        attribute = name.removeprefix("vqa_")
        for group in groups:
            for trial in group.trials:
                if getattr(trial, attribute) is None:
                    place = f"query {group.query_id}: the trial with pointer {list(trial.pointer)} has no {name}"
                    raise ParameterError(f"{place}, but {missing_score(reward, name)}")


def is_positive(trials: Iterable[Trial]) -> bool:
    """Returns whether any of the trials is correct."""
    return any(trial.correct == 1.0 for trial in trials)


def save_rl_data(path: str | Path, groups: Iterable[Group], meta: Mapping[str, Any]) -> None:
    """Writes groups in the newest vintage; the file is there as a whole or not at all.

    Raises:
        ValueError: a score is NaN or infinite; or a trial was read without its record, which would be lost.
    """
    content: dict[str, Any] = {"_meta": dict(meta)}
    for group in groups:
        content[str(group.query_id)] = {
            "query": dict(group.query),
            "candidate_pool_ids": list(group.pool),
            "pointer_candidates": [_trial_record(group.pool, trial) for trial in group.trials],
        }
    with whole_file(Path(path)) as file:
        json.dump(content, file, allow_nan=False)


class _Reader:
    """Turns the entries of a file into groups, one by one.

    Equal values are stored once, which saves memory because a file has few different ones.
    """

    def __init__(self, path: Path, use_fallback: bool, keep_records: bool) -> None:
        self.path, self.use_fallback, self.keep_records = path, use_fallback, keep_records
        self.meta: dict[str, Any] = {}
        self.vintage: str | None = None
        self.groups: list[Group] = []
        self.dropped: Counter[str] = Counter()
        self._digests: dict[str, bytes] = {}
        self._fallback_used = False
        self._shared: defaultdict[type, dict[Any, Any]] = defaultdict(dict)  # by type, because 1 and 1.0 are equal

    def digest(self) -> str:
        """Returns the digest of the canonical JSON of all queries, in the order of their keys."""
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
                raise DataError(f"{self.path}: _meta holds a JSON {kind}, expected an object; correct or remove it")
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
        query = self._query(entry)
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
        return Group(int(key), pool, tuple(trials), query)

    def _query(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields that describe the query, or only its ids where the reader drops records."""
        query = entry.get("query", {})
        if not isinstance(query, dict):
            raise DataError(f"query is not an object but {shown(query)}; run the rollout step again")
        for name in _QUERY_IDS:
            if name in query and type(query[name]) is not int:
                raise DataError(f"{name} is {shown(query[name])}, expected a whole number")
        return query if self.keep_records else {name: query[name] for name in _QUERY_IDS if name in query}

    def _pointers(
        self, entry: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
    ) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
        """Returns the pointers of all trials as positions in the pool, and the pool as train indices."""
        has_pool = self._check_vintage(entry, records)
        pool = self._pool(entry["candidate_pool_ids"]) if has_pool else ()
        pointers = []
        for i, record in enumerate(records):
            try:
                pointers.append(self._pointer(record, pool if has_pool else None))
            except DataError as error:
                raise DataError(f"trial {i}: {error}") from None
        if not has_pool:
            pool = tuple(sorted({index for pointer in pointers for index in pointer}))
            position = {index: i for i, index in enumerate(pool)}
            pointers = [tuple(position[index] for index in pointer) for pointer in pointers]
        return [self._once(pointer) for pointer in pointers], pool

    def _check_vintage(self, entry: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> bool:
        """Returns whether a query has a pool, and checks that all queries agree in that; the first one tells the vintage."""
        has_pool = "candidate_pool_ids" in entry
        if self.vintage is None and (has_pool or records):
            self.vintage = "pools" if has_pool else "pointers" if "pointer" in records[0] else "pointer_pos"
        if has_pool != (self.vintage == "pools"):
            raise DataError("candidate_pool_ids on some queries only; add them to all queries of the file, or remove them")
        return has_pool

    def _pointer(self, record: Mapping[str, Any], pool: tuple[int, ...] | None) -> tuple[int, ...]:
        """Returns the pointer of a trial as the file has it: positions in the pool, or train indices where there is none."""
        name = "pointer_pos" if self.vintage == "pointer_pos" else "pointer"
        pointer = whole_numbers(name, record.get(name))
        if not pointer:
            raise DataError(f"{name} is empty; take the trial out, or record it again")
        if pool is None:
            check_old_names(record)
        else:
            check_pointer_global(pool, pointer, record)
        return pointer

    def _trial(self, record: Mapping[str, Any], pointer: tuple[int, ...]) -> Trial | None:
        """Returns a trial, or None where it is dropped.

        That is decided before its scores are read, because a trial whose evaluation failed need not have any.
        """
        failed, mode = record.get("eval_failed", False), record.get("vqa_eval_mode", "vqaEval")
        if not isinstance(failed, bool):
            raise DataError(f"eval_failed is {shown(failed)}, expected true or false")
        if mode not in _EVAL_MODES:
            raise DataError(f"vqa_eval_mode is {shown(mode)}, expected one of {', '.join(_EVAL_MODES)}")
        if failed or mode == "error" or (mode == "fallback" and not self.use_fallback):
            self.dropped["eval_failed" if failed else mode] += 1
            return None
        self._fallback_used |= mode == "fallback"
        method = record.get("gen_method")
        if not isinstance(method, str | None):
            raise DataError(f"gen_method is {shown(method)}, expected a name")
        gt_prob, rel_score = record.get("vqa_gt_prob"), record.get("vqa_rel_score")
        return Trial(
            pointer=pointer,
            correct=self._once(finite_number("vqa_correct", record.get("vqa_correct"))),
            accuracy=self._once(finite_number("vqa_acc_score", record.get("vqa_acc_score"))),
            gen_method=self._once(method or "unknown"),
            eval_mode=self._once(mode),
            gt_prob=None if gt_prob is None else finite_number("vqa_gt_prob", gt_prob),
            rel_score=None if rel_score is None else finite_number("vqa_rel_score", rel_score),
            record=record if self.keep_records else None,
        )

    def _pool(self, value: Any) -> tuple[int, ...]:
        indices = whole_numbers("candidate_pool_ids", value)
        return tuple(map(self._shared[int].setdefault, indices, indices))

    def _once(self, value: _Value) -> _Value:
        """Returns the stored value that is equal to this one."""
        return self._shared[type(value)].setdefault(value, value)


def _trial_record(pool: tuple[int, ...], trial: Trial) -> dict[str, Any]:
    """Returns what the file holds of a trial."""
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
