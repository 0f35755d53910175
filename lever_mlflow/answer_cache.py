"""Answers that the VLM has given, in one SQLite file: identical prompts are generated once, ever.

Each finished batch is committed, so that a killed run loses at most the batch it was generating; run again, it
generates only the missing answers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from tqdm import tqdm

from lever_mlflow.exceptions import DataError
from lever_mlflow.types import Prompt

__all__ = ["AnswerCache", "Answers", "cached_answers"]

_CHUNK = 500  # look-ups per SELECT, below SQLite's limit on variables


class Answers(NamedTuple):
    """Raw generations in the order of the prompts, and how many of them had to be generated now."""

    texts: list[str]
    generated: int


class AnswerCache:
    """A table of prompt key -> raw generation; several processes may use one file.

    Raises:
        DataError: the file is damaged or something else than an answer cache.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = sqlite3.connect(path, timeout=60)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL)")
            self._connection.commit()
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path}: not usable as the answer cache ({error}); move the file away") from None

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """The known answers among ``keys``."""
        found: dict[str, str] = {}
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            found.update(self._connection.execute(f"SELECT key, text FROM answers WHERE key IN ({marks})", chunk))
        return found

    def put(self, items: Sequence[tuple[str, str]]) -> None:
        """Commits (key, text) pairs; the first answer to a key stays."""
        with self._connection:
            self._connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", items)


def cached_answers(
    prompts: Sequence[Prompt],
    key: Callable[[Prompt], str],
    generate: Callable[[Sequence[Prompt]], Iterator[list[tuple[int, str]]]],
    cache: AnswerCache,
    description: str = "VLM",
) -> Answers:
    """The raw generation for each prompt: from the cache, or generated once for all equal prompts and stored.

    Args:
        key: names what the answer depends on.
        generate: yields batches of (position, text) for the prompts it is given.
        description: label of the progress bar.
    """
    keys = [key(prompt) for prompt in prompts]
    first = dict(zip(reversed(keys), reversed(prompts), strict=True))
    unique = list(dict.fromkeys(keys))
    known = cache.get(unique)
    missing = [k for k in unique if k not in known]
    with tqdm(total=len(unique), initial=len(known), desc=description, unit="prompt", disable=None) as bar:
        for batch in generate([first[k] for k in missing]):
            items = [(missing[position], text) for position, text in batch]
            cache.put(items)
            known.update(items)
            bar.update(len(items))
    return Answers([known[k] for k in keys], len(missing))
