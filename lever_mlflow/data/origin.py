"""Says from which rows the items of a converted data set are, so that messages name these and not the files made of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lever_mlflow.data.bad_items import COLOURS, NARROW, BadItem
from lever_mlflow.files.strict_json import read_object

__all__ = ["Origin", "read_origin", "write_origin"]

_REMEDY = "mend these rows, or name other columns with hf_columns"
_DAMAGED = "delete the folder, and it is written again"


class Origin(NamedTuple):
    """Holds what a split was made of: ``place`` names it, ``question_ids`` are those of its rows, in order."""

    place: str
    question_ids: Sequence[int]

    def reworded(self, bad: Iterable[BadItem], files: Sequence[Path], images: Path) -> list[BadItem]:
        """Returns bad items with the place in words of the origin.

        Args:
            bad: items whose details name files of the converted data set.
            files: its questions file and its annotations file.
            images: its folder of images.
        """
        rows = {question_id: row for row, question_id in reversed(list(enumerate(self.question_ids)))}
        names = "|".join([*(re.escape(str(file)) for file in files), re.escape(f"{images}/") + r"\w+\.jpg"])

        def named(match: re.Match[str]) -> str:
            return f"the image in {self.place}" if match[0].endswith(".jpg") else self.place

        return [
            item._replace(
                place=f"row {rows[item.place]}" if isinstance(item.place, int) else item.place,
                detail=re.sub(names, named, item.detail),
                remedy="" if item.kind in (COLOURS, NARROW) else _REMEDY,
            )
            for item in bad
        ]


def _path(root: Path, split: str) -> Path:
    return root / f"origin_{split}.json"


def write_origin(root: Path, split: str, origin: Origin) -> None:
    """Writes the origin of a split beside its files."""
    _path(root, split).write_text(json.dumps(origin._asdict()), encoding="utf-8")


def read_origin(root: Path, split: str) -> Origin | None:
    """Reads the origin of a split; returns None where it is no converted one.

    Raises:
        DataError: the file is damaged.
    """
    path = _path(root, split)
    return Origin(**read_object(path, missing="", damaged=_DAMAGED)) if path.is_file() else None
