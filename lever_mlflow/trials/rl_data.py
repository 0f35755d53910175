"""Defines RL data, the recorded trials that the selector learns from, and writes them. ``reading`` reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.atomic import whole_file
from lever_mlflow.trials import parquet
from lever_mlflow.trials.rewards import DEFAULT_REWARD, Reward, rewards

__all__ = [
    "POOL_IDS",
    "POOL_QUESTION_IDS",
    "Group",
    "ItemMatch",
    "RLData",
    "Trial",
    "check_items",
    "is_positive",
    "save_rl_data",
    "write_rl_data",
]

POOL_IDS, POOL_QUESTION_IDS = "candidate_pool_ids", "candidate_question_ids"  # fields of a query in a file


@dataclass(frozen=True, slots=True)
class Trial:
    """Holds one recorded pointer and how the VLM's answer scored.

    Attributes:
        pointer: positions in the pool of the trial's group, in the order of the prompt.
        correct: ``vqa_correct``, 1 when the answer counts as correct, else 0.
        accuracy: ``vqa_acc_score``, the VQA accuracy of the answer, in [0, 1].
        gen_method: name of the generator that proposed the pointer.
        eval_mode: ``vqa_eval_mode``, the way in which the answer was scored.
        eval_failed: whether the scoring failed.
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

    @property
    def usable(self) -> bool:
        """Returns whether the evaluation gave the trial scores."""
        return not self.eval_failed and self.eval_mode != "error"


@dataclass(frozen=True, slots=True)
class Group:
    """Holds all usable trials of one query.

    Attributes:
        query_id: train index of the query.
        pool: train indices of the candidates.
        trials: the trials, in the order of the file.
        query: fields that describe the query; only ``question_id`` and ``image_id`` where the others were dropped on reading.
        pool_question_ids: the data set's own ids of the candidates, in the order of ``pool``; None where they are not recorded.
    """

    query_id: int
    pool: tuple[int, ...]
    trials: tuple[Trial, ...]
    query: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    pool_question_ids: tuple[int, ...] | None = field(default=None, repr=False, compare=False)

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
class ItemMatch:
    """Says how the indices of RL data were matched with the training items of a data set.

    Attributes:
        order: what an index is: ``ids`` where every item was found by its recorded question id, ``file`` for a position in the
            questions file, or ``question_id`` for a position among the items sorted by question id.
        n_queries: number of queries of the RL data.
        n_checked: number of queries whose recorded question id was compared with the data set.
        n_other: number of queries that the data set lacks, or has another question for. They are not used.
    """

    order: Literal["ids", "file", "question_id"]
    n_queries: int
    n_checked: int
    n_other: int

    def __str__(self) -> str:
        """Says the same in words, such as ``items found by question id (800 of 800 queries)``."""
        words = {
            "ids": "items found by question id",
            "file": "indices are positions in the questions file",
            "question_id": "indices are positions among the items sorted by question id, and were converted",
        }[self.order]
        fitting = self.n_checked - self.n_other
        return f"{words} ({f'{fitting} of {self.n_checked} queries agree' if self.n_checked else 'not checked'})"


@dataclass(frozen=True)
class RLData:
    """Holds the groups of one file.

    Attributes:
        groups: one group per query, ordered by train index, with its usable trials only; read from a file, they are held as
            ``columns.GroupColumns``.
        digest: digest of the content of all queries and trials, 32 hex characters. It covers every field as it stands in the
            file, indices and question ids among them. It does not depend on the order of keys, on whitespace or on ``_meta``.
            The same file has another digest where fallback trials of it are used, and where the user said that its indices
            follow the order of question ids.
        vintage: ``pools``, ``pointers`` or ``pointer_pos``, as ``reading`` describes.
        dropped: number of trials that are not used, by reason: ``eval_failed``, ``error``, ``fallback``, ``no_pool`` for
            queries without a pool in a file of pools, and those of ``item_order``.
        meta: the file's ``_meta``.
        source: the file or ``runs:/`` URI from which the data were read; it can be given as ``rl_data`` again.
        match: how the indices were matched with training items; None where they are still those of the file.
        origin: as ``source``, with the whole path of a file, so that it can be given from any folder.
    """

    groups: Sequence[Group]
    digest: str
    vintage: str
    dropped: Mapping[str, int]
    meta: Mapping[str, Any]
    source: str
    match: ItemMatch | None = None

    @property
    def origin(self) -> str:
        return self.source if self.source.startswith("runs:/") else str(Path(self.source).resolve())


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


def is_positive(trials: Iterable[Trial]) -> bool:
    """Returns whether any of the trials is correct."""
    return any(trial.correct == 1.0 for trial in trials)


def save_rl_data(path: str | Path, groups: Iterable[Group], meta: Mapping[str, Any]) -> None:
    """Writes groups in the newest vintage, as Parquet where the path ends in ``.parquet`` and as JSON otherwise.

    The file is there as a whole or not at all.

    Raises:
        ValueError: a score is NaN or infinite; or a trial was read without its record, which would be lost.
    """
    write_rl_data(Path(path), ((str(group.query_id), _entry(group)) for group in groups), meta)


def write_rl_data(path: Path, content: Iterable[tuple[str, Mapping[str, Any]]], meta: Mapping[str, Any]) -> None:
    """Writes RL data from the train index and the object of each query, as ``save_rl_data`` does.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    if path.suffix == parquet.SUFFIX:
        parquet.write_entries(path, content, meta)
        return
    with whole_file(path) as file:
        file.write(f'{{"_meta": {json.dumps(dict(meta), allow_nan=False)}')
        for key, entry in content:
            file.write(f", {json.dumps(key)}: {json.dumps(entry, allow_nan=False)}")
        file.write("}")


def _entry(group: Group) -> dict[str, Any]:
    """Returns what the file holds of a query."""
    question_ids = {} if group.pool_question_ids is None else {POOL_QUESTION_IDS: list(group.pool_question_ids)}
    return {
        "query": dict(group.query),
        POOL_IDS: list(group.pool),
        **question_ids,
        "pointer_candidates": [_trial_record(group.pool, trial) for trial in group.trials],
    }


def _trial_record(pool: tuple[int, ...], trial: Trial) -> dict[str, Any]:
    """Returns what the file holds of a trial; a trial whose evaluation failed need not have scores."""
    if trial.record is None:
        raise ValueError("a trial was read without its record; load the data with keep_records=True to save them again")
    record = {
        **{name: value for name, value in trial.record.items() if name != "pointer_pos"},  # of an older vintage
        "pointer": list(trial.pointer),
        "gen_method": trial.gen_method,
        "vqa_eval_mode": trial.eval_mode,
        "eval_failed": trial.eval_failed,
    }
    if all(0 <= position < len(pool) for position in trial.pointer):
        record["pointer_global"] = [pool[position] for position in trial.pointer]
    if trial.usable:
        correct = int(trial.correct) if trial.correct in (0, 1) else trial.correct
        record |= {"vqa_correct": correct, "vqa_acc_score": trial.accuracy, "vqa_gt_prob": trial.gt_prob}
    return record
