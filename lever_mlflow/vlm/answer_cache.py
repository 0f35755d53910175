"""Keeps the VLM's answers in one SQLite file, so that equal prompts are answered once.

Each finished batch is committed. A killed run loses at most the batches that it was generating, and when it is started again it
generates only the missing answers.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.cache_dir import CACHE_DIR
from lever_mlflow.progress import Progress
from lever_mlflow.settings import CacheMode
from lever_mlflow.vlm.prompt import Prompt

__all__ = ["AnswerCache", "Answers", "cached_answers", "merge_answers"]

_CHUNK = 500  # keys in a SELECT, below SQLite's limit on variables
_APPLICATION_ID = 0x4C455652  # "LEVR", marks the file as an answer cache of this project
_PATIENCE = 60  # seconds to wait for another process that has locked the file
_SMALLEST_FREE = 2**16  # bytes on a disk; SQLite's companions of the file begin with 32 kB
_TABLE = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL) STRICT"

log = logging.getLogger(__name__)


class Answers(NamedTuple):
    """Holds raw generations in the order of the prompts, and how many different ones were not in the cache."""

    texts: list[str]
    generated: int


class AnswerCache:
    """Maps prompt keys to raw generations in a file. Several processes of one machine may use it at the same time.

    A file that is damaged or is not an answer cache is renamed with a warning, and a new one is begun. With mode ``read`` it
    stays where it is and is not used.

    Args:
        path: the file; made on first use.
        mode: ``on`` looks up and stores, ``read`` only looks up, ``off`` does neither and touches no file.

    Raises:
        DataError: the file cannot be opened or renamed.
    """

    def __init__(self, path: Path, mode: CacheMode = "on") -> None:
        self.path, self.mode = path, mode
        self._connection: sqlite3.Connection | None = None
        if mode == "on" or (mode == "read" and path.exists()):
            self._open()

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._connection is not None:
            self._connection.close()

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """Returns the cached answers among ``keys``."""
        answers: dict[str, str] = {}
        if self._connection is None:
            return answers
        try:
            for start in range(0, len(keys), _CHUNK):
                chunk = keys[start : start + _CHUNK]
                marks = ",".join("?" * len(chunk))
                answers.update(self._connection.execute(f"SELECT key, text FROM answers WHERE key IN ({marks})", chunk))
        except sqlite3.DatabaseError as error:
            if not _damaged(error):
                raise self._unusable(error) from None
            self._set_aside(error)
            return {}
        return answers

    def put(self, items: Sequence[tuple[str, str]]) -> None:
        """Commits pairs of key and text. A key that has an answer keeps it."""
        if self._connection is None or self.mode != "on":
            return
        try:
            with self._connection:
                self._connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", items)
        except sqlite3.DatabaseError as error:
            if not _damaged(error):
                raise self._unusable(error) from None
            self._set_aside(error)
            self.put(items)

    def add_from(self, sources: Sequence[Path]) -> int:
        """Adds the answers of other caches, and returns how many were new. A key that has an answer keeps it.

        Raises:
            DataError: a source is no answer cache; those before it have been added.
        """
        assert self._connection is not None, "a cache that is on has a file"
        before = self._connection.total_changes
        for source in sources:
            for items in _stored(source):
                self.put(items)
        return self._connection.total_changes - before

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connect()
        except sqlite3.DatabaseError as error:
            if not _damaged(error):
                raise self._unusable(error) from None
            self._set_aside(error)
        except OSError as error:
            raise self._unusable(error) from None

    def _connect(self) -> None:
        connection = sqlite3.connect(self.path, timeout=_PATIENCE)
        try:
            self._inode = self.path.stat().st_ino
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            if tables and application != _APPLICATION_ID:
                raise sqlite3.DatabaseError("the file is not a database of answers")
            if not tables:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
                connection.execute(_TABLE)
                connection.commit()
        except sqlite3.DatabaseError:
            connection.close()
            raise
        self._connection = connection

    def _set_aside(self, reason: Exception) -> None:
        """Renames the file, unless another process has done so already, and begins a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self.mode == "read":
            log.warning("%s: %s; it is not used", self.path, reason)
            return
        try:
            if self.path.stat().st_ino == self._inode:
                aside = next(name for n in range(1, 1000) if not (name := Path(f"{self.path}.damaged-{n}")).exists())
                for suffix in ("-wal", "-shm"):  # SQLite's companions of this file; the new file must not find them
                    if Path(f"{self.path}{suffix}").exists():
                        os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
                os.replace(self.path, aside)
                log.warning("%s: %s; set aside as %s, and a new answer cache begun", self.path, reason, aside.name)
            self._connect()
        except (OSError, sqlite3.DatabaseError) as error:
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> DataError:
        return DataError(f"{self.path}: not usable as the answer cache ({error}); {_remedy(error, self.path.parent)}")


def _remedy(error: Exception, folder: Path) -> str:
    """Returns what to do about an error that is not the content's: it never is to remove answers, which took long to make."""
    name = getattr(error, "sqlite_errorname", "")
    elsewhere = f"or set {CACHE_DIR} to"
    # on a full disk SQLite also fails to write its companions of the file, and calls that an error of input and output
    if name == "SQLITE_FULL" or (name.startswith("SQLITE_IOERR") and shutil.disk_usage(folder).free < _SMALLEST_FREE):
        return f"no space is left there: free some, {elsewhere} a folder on another disk"
    if name.startswith("SQLITE_BUSY"):
        return f"another process has locked it for {_PATIENCE} seconds: end that process, {elsewhere} another folder"
    return f"allow this user to read and write there, {elsewhere} another folder"


def _damaged(error: sqlite3.DatabaseError) -> bool:
    """Returns whether the file's content is the cause of an error, and not a full disk, missing rights or a lock."""
    return not isinstance(error, sqlite3.OperationalError) or "no such table" in str(error) or "no such column" in str(error)


def merge_answers(sources: Sequence[Path], target: Path) -> int:
    """Adds the answers of the source caches to the target, and returns how many were new. The first answer to a key stays.

    Raises:
        DataError: one of the files is no answer cache, or a source holds no answers; then nothing is changed.
    """
    for path in (*sources, *([target] if target.exists() else [])):
        if not any(_stored(path)) and path != target:
            raise DataError(f"{path}: holds no answers; if the file was copied, copy {path.name}-wal too, where there is one")
    with AnswerCache(target) as cache:
        return cache.add_from(sources)


def _stored(path: Path) -> Iterator[list[tuple[str, str]]]:
    """Yields all pairs of key and text in a cache, in chunks."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            if connection.execute("PRAGMA application_id").fetchone() != (_APPLICATION_ID,):
                raise sqlite3.DatabaseError("the file is not a database of answers")
            if (verdict := connection.execute("PRAGMA quick_check").fetchone()) != ("ok",):
                raise sqlite3.DatabaseError(str(verdict))
            rows = connection.execute("SELECT key, text FROM answers")
            while items := rows.fetchmany(_CHUNK):
                yield items
    except sqlite3.DatabaseError as error:
        raise DataError(f"{path}: not an answer cache ({error}); give files named answers*.sqlite") from None


def cached_answers(
    prompts: Sequence[Prompt],
    key: Callable[[Prompt], str],
    generate: Callable[[Sequence[Prompt]], Iterator[list[tuple[int, str]]]],
    cache: AnswerCache,
    description: str = "VLM",
) -> Answers:
    """Returns the raw generation for each prompt: from the cache, or else generated once for all equal prompts and stored.

    Args:
        prompts: may hold duplicates.
        key: names a prompt by all that its answer depends on.
        generate: yields batches of (position, text) for different prompts.
        cache: the cache to use.
        description: says in the log and beside the bar what the answers are for.
    """
    keys = [key(prompt) for prompt in prompts]
    first = dict(zip(reversed(keys), reversed(prompts), strict=True))
    unique = list(dict.fromkeys(keys))
    texts = cache.get(unique)
    missing = [k for k in unique if k not in texts]
    log.debug("%s: %d unique prompts, %d of them cached", description, len(unique), len(texts))
    with Progress(description, len(missing), "answers", note=f"{len(texts):,} more are cached") as progress:
        for batch in generate([first[k] for k in missing]):
            items = [(missing[position], text) for position, text in batch]
            cache.put(items)
            texts.update(items)
            progress.update(len(items))
    return Answers([texts[k] for k in keys], len(missing))
