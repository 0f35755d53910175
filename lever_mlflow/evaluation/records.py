"""Keeps the records of an evaluation: what each policy picked for each question, what the VLM answered, and how right it was.

This is the only module that turns records into accuracies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from lever_mlflow.evaluation.policies import epoch_policy
from lever_mlflow.exceptions import DataError
from lever_mlflow.shortages import let_through

__all__ = ["REPORT", "SELECTION", "AccuracyCell", "EvaluationRecords", "best_epoch", "images_of"]

REPORT, SELECTION = "report", "selection"  # parts of the questions: those that are reported, those that choose the epoch
COLUMNS = ("policy", "draw", "part", "position", "question_id", "shots", "picks", "prompt", "answer", "accuracy")
_MOST_ROWS = 20_000_000  # the evaluation of 100 policies on the whole of OK-VQA at 4 shot counts has a tenth of them
_IMAGE = "image_id"  # a column that records of earlier versions lack, and which follows from the question


class AccuracyCell(BaseModel):
    """Holds the accuracy of a policy on the first ``size`` report questions at one shot count.

    Attributes:
        accuracy: mean VQA accuracy, in [0, 1].
        spread: unbiased standard deviation of that mean between the policy's draws; 0 where there is one draw.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str
    size: int
    shots: int
    accuracy: float
    spread: float


def _read_frame(path: Path) -> pd.DataFrame:
    """Reads the table of a Parquet file, once its number of rows and the types of its columns are those of records.

    A few bytes of Parquet can stand for any number of equal rows.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        rows, schema = file.metadata.num_rows, file.schema_arrow
        if rows > _MOST_ROWS:
            raise ValueError(f"{rows:,} rows, at most {_MOST_ROWS:,} are taken")
        columns = [name for name in (*COLUMNS, _IMAGE) if name in schema.names]
        wrong = [name for name in columns if not _fits(name, schema.field(name).type)]
        if wrong:
            raise TypeError(f"column {wrong[0]} is of type {schema.field(wrong[0]).type}")
        table = file.read(columns=columns)
    empty = [name for name in columns if table[name].null_count]
    if empty:
        raise ValueError(f"column {empty[0]} has empty cells")
    least, most = pc.min_max(table["accuracy"]).as_py().values()
    if rows and not 0 <= least <= most <= 1:
        raise ValueError(f"an accuracy is {least if least < 0 else most:g}, expected 0 to 1")
    return table.to_pandas(ignore_metadata=True)


def _fits(column: str, kind: Any) -> bool:
    """Returns whether a column of records may be of this type of Arrow."""
    from pyarrow import types

    if column in ("policy", "part", "prompt", "answer"):
        return types.is_string(kind) or types.is_large_string(kind)
    if column == "picks":
        return bool(types.is_list(kind) and (types.is_integer(kind.value_type) or types.is_null(kind.value_type)))
    return bool(types.is_integer(kind) or (column == "accuracy" and types.is_floating(kind)))


class EvaluationRecords:
    """Holds a record per policy, draw, shot count and question.

    Args:
        frame: the columns ``policy``, ``draw`` (0-based), ``part`` (``report`` or ``selection``), ``position`` (0-based, in the
            seeded order of the questions), ``question_id``, ``shots``, ``picks`` (question ids of the demonstrations in the
            order of the prompt), ``prompt`` (its digest), ``answer`` and ``accuracy`` (in [0, 1]). Further ``image_id``;
            without it, each question counts as one about an image of its own.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame if _IMAGE in frame else frame.assign(**{_IMAGE: frame["question_id"]})
        self._report = self.frame[self.frame["part"] == REPORT]

    @classmethod
    def joined(cls, parts: Iterable[EvaluationRecords]) -> EvaluationRecords:
        """Joins records, one behind the other."""
        return cls(pd.concat([part.frame for part in parts], ignore_index=True))

    @classmethod
    def read(cls, path: Path) -> EvaluationRecords:
        """Reads the file that ``write`` made.

        Raises:
            DataError: the file cannot be read, or holds something else.
        """
        try:
            frame = _read_frame(path)
            return cls(frame[[*COLUMNS, *({_IMAGE} & set(frame))]])
        except (OSError, ValueError, KeyError, TypeError, NotImplementedError, MemoryError) as error:
            if not isinstance(error, MemoryError):  # which a file of a few bytes can cause, by the sizes that it states
                let_through(error)
            raise DataError(
                f"{path}: not the records of an evaluation ({error}); run the evaluate step again with rerun=true"
            ) from None

    def write(self, path: Path) -> None:
        """Writes the records as a Parquet file."""
        self.frame.to_parquet(path, index=False)

    @property
    def digest(self) -> str:
        """Returns the SHA-256 over all records without image ids, 16 hex characters."""
        rows = self.frame[list(COLUMNS)].assign(picks=self.frame["picks"].map(lambda picks: ",".join(map(str, picks))))
        return hashlib.sha256(rows.to_json(orient="values", double_precision=12).encode()).hexdigest()[:16]

    @property
    def policies(self) -> list[str]:
        """Lists the policies that answered report questions, in the order of their first record."""
        return list(dict.fromkeys(self._report["policy"]))

    @property
    def question_shots(self) -> set[tuple[int, int]]:
        """Returns every question id and shot count that a policy with demonstrations was asked among the report questions."""
        rows = self._report[self._report["shots"] > 0]
        return set(zip(rows["question_id"], rows["shots"], strict=True))

    def table(self, sizes: Sequence[int]) -> list[AccuracyCell]:
        """Returns the accuracy of every policy on the report questions, by size and shot count, averaged over draws."""
        cells: list[AccuracyCell] = []
        for size in sizes:
            rows = self._report[self._report["position"] < size]
            of_draws = rows.groupby(["policy", "shots", "draw"], sort=False)["accuracy"].mean()
            by_cell = of_draws.groupby(["policy", "shots"], sort=False)
            figures = pd.DataFrame({"mean": by_cell.mean(), "spread": by_cell.std().fillna(0.0)}).reset_index()
            cells += [
                AccuracyCell(policy=row["policy"], size=size, shots=row["shots"], accuracy=row["mean"], spread=row["spread"])
                for row in figures.to_dict("records")
            ]
        return cells

    def selection_accuracy(self, epochs: Iterable[int]) -> dict[int, float]:
        """Returns the mean accuracy of each epoch over shots and selection questions, in [0, 1]."""
        rows = self.frame[self.frame["part"] == SELECTION]
        return {epoch: float(rows[rows["policy"] == epoch_policy(epoch)]["accuracy"].mean()) for epoch in epochs}

    def by_question(self, policy: str, *, shots: int | None = None, size: int | None = None) -> pd.Series | None:
        """Returns the accuracies of a policy by question and image id in the seeded order, averaged over draws.

        Args:
            shots: one shot count; without it, the mean over all that the policy was evaluated at.
            size: the first so many report questions; all of them without it.

        Returns:
            Values in [0, 1]; None where the policy did not answer all of these questions.
        """
        questions, columns = self._columns
        chosen = [column for (name, k), column in columns.items() if name == policy and shots in (None, k)]
        count = len(questions) if size is None else size
        if not chosen or len(questions) < count:
            return None
        mean = np.mean([column[:count] for column in chosen], axis=0)
        return None if np.isnan(mean).any() else pd.Series(mean, index=questions[:count])

    def by_question_and_shots(self, policy: str) -> pd.Series:
        """Returns the accuracies of a policy by id of report question and image, and shot count, averaged over draws."""
        rows = self._report[self._report["policy"] == policy]
        return rows.groupby(["question_id", _IMAGE, "shots"])["accuracy"].mean()

    def picks_and_answers(self, policy: str) -> pd.DataFrame:
        """Returns picks of a policy and answers to them: ``question_id``, ``shots``, ``picks``, ``answer``, ``accuracy``."""
        rows = self._report[self._report["policy"] == policy]
        return rows[["question_id", "shots", "picks", "answer", "accuracy"]]

    @cached_property
    def _columns(self) -> tuple[pd.MultiIndex, dict[tuple[str, int], np.ndarray]]:
        """Returns question and image ids in the seeded order, and accuracies by policy and shot count, NaN where none is."""
        table = self._report.pivot_table(
            index=["position", "question_id", _IMAGE], columns=["policy", "shots"], values="accuracy", aggfunc="mean"
        )
        columns = {(policy, shots): table[policy, shots].to_numpy() for policy, shots in table.columns.to_numpy().tolist()}
        levels = [table.index.get_level_values(name) for name in ("question_id", _IMAGE)]
        return pd.MultiIndex.from_arrays(levels), columns


def images_of(by_question: pd.Series) -> np.ndarray:
    """Returns the image id of each question of what ``by_question`` returns, or of differences of such accuracies."""
    return by_question.index.get_level_values(_IMAGE).to_numpy()


def best_epoch(selection_accuracy: dict[int, float]) -> int:
    """Returns the epoch with the highest accuracy on the selection questions, the earliest among equals."""
    return max(selection_accuracy, key=lambda epoch: (round(selection_accuracy[epoch], 12), -epoch))
