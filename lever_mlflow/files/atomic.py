"""Writes files and folders so that each is there as a whole or not at all, even when the process is killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

__all__ = ["build_folder", "whole_file", "write_folder"]

_FILE_MODE, _FOLDER_MODE = 0o644, 0o755  # tempfile and safetensors make files that only their owner can read


@contextmanager
def whole_file(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file beside ``path`` for writing, and moves it to ``path`` when the block ends without an error.

    The content is on disk before the move. An error in the block removes the temporary file and leaves a former ``path`` as it
    was. Text is written in UTF-8, the file has mode 0644, and missing parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if mode == "wb" else "utf-8"
    with tempfile.NamedTemporaryFile(mode, encoding=encoding, prefix=f".{path.name}-", dir=path.parent, delete=False) as file:
        temporary = Path(file.name)
        try:
            with _named(path):
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(_FILE_MODE)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Has ``fill`` write into an empty temporary folder beside ``folder``, and then renames that to ``folder``.

    The files are on disk before the renaming. An error leaves nothing behind. Files have mode 0644, folders 0755, and missing
    parent folders are made.

    Raises:
        FileExistsError: ``folder`` exists already, or another process made it in the meantime.
    """
    existing = FileExistsError(f"{folder}: exists already")
    if folder.exists():
        raise existing
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _named(folder):
            fill(temporary)
            _finish(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if folder.exists():
                raise existing from None
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def build_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Returns ``folder``, which ``fill`` writes on first use as in ``write_folder``.

    The name of ``folder`` must determine what ``fill`` writes: when another process is faster, its folder is used.
    """
    if not folder.is_dir():
        try:
            write_folder(folder, fill)
        except FileExistsError:
            if not folder.is_dir():
                raise
    return folder


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names a path in an error of writing that names none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def _finish(folder: Path) -> None:
    """Sets the modes of a folder and all in it, and waits until the files are on disk."""
    folder.chmod(_FOLDER_MODE)
    for path in folder.rglob("*"):
        path.chmod(_FOLDER_MODE if path.is_dir() else _FILE_MODE)
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
