"""Writes files and folders so that each is there as a whole or not at all, even when the process is killed.

A process that is killed leaves its temporary files. Their names hold that of the process, so that a later one of the same
machine removes them: in the system's folder for temporary files when a command begins, and in any other folder when it first
writes into that folder.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

from safetensors import SafetensorError

from lever_mlflow.process_identity import is_leftover, mark_of_this_process

__all__ = ["build_folder", "mark_temporary_files", "whole_file", "write_folder"]

_FILE_MODE, _FOLDER_MODE = 0o644, 0o755  # tempfile and safetensors make files that only their owner can read
_NUMBER_OF_SYSTEM = re.compile(r"\(os error (\d+)\)")  # in what safetensors says where the system cannot write


@contextmanager
def whole_file(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file beside ``path`` for writing, and moves it to ``path`` when the block ends without an error.

    The content is on disk before the move. An error in the block removes the temporary file and leaves a former ``path`` as it
    was. Text is written in UTF-8, the file has mode 0644, and missing parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    encoding = None if mode == "wb" else "utf-8"
    with (
        _named(path),  # also for what the file writes when it is closed
        tempfile.NamedTemporaryFile(mode, encoding=encoding, prefix=_hidden(path), dir=path.parent, delete=False) as file,
    ):
        temporary = Path(file.name)
        try:
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
    _remove_leftovers(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=_hidden(folder), dir=folder.parent))
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


def mark_temporary_files() -> None:
    """Gives the temporary files of this process its name, and removes those of commands of this user that were killed.

    The temporary files of libraries are among them, such as MLflow's.
    """
    tempfile.template = mark_of_this_process()
    _remove_leftovers(Path(tempfile.gettempdir()))


@cache
def _remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of this user in a folder whose processes are gone; what cannot be removed stays."""
    for path in folder.glob("*lever-mlflow-*"):
        with suppress(OSError):
            if is_leftover(path.name) and path.lstat().st_uid == os.geteuid():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _hidden(path: Path) -> str:
    """Returns the beginning of the name of a temporary file beside a path."""
    return f".{path.name}-{mark_of_this_process()}"


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names a path in an error of writing that names none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except SafetensorError as error:
        number = _NUMBER_OF_SYSTEM.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _finish(folder: Path) -> None:
    """Sets the modes of a folder and all in it, and waits until the files are on disk."""
    folder.chmod(_FOLDER_MODE)
    for path in folder.rglob("*"):
        path.chmod(_FOLDER_MODE if path.is_dir() else _FILE_MODE)
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
