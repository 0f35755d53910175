"""Recognises errors that mean that this machine lacks memory, disk space or another resource, and says what to do about them.

A reader that meets such a lack must not call its file damaged: the advice would be to copy or to make again what is whole.
"""

from __future__ import annotations

import errno

__all__ = ["in_one_line", "is_of_the_machine", "is_of_the_process", "let_through", "out_of_memory"]

_LONGEST = 200  # characters of a reason
# What PyTorch says where a CPU or a library of a GPU gets no memory; for a GPU's own memory it has a class of errors.
_MEMORY_OF_TORCH = (
    *("DefaultCPUAllocator", "Cannot allocate memory", "bad_alloc"),
    *("CUDA out of memory", "CUDA error: out of memory", "ALLOC_FAILED"),
)
_NO_THREAD = "can't start new thread"  # what Python says where a limit of processes or of memory allows no further one
_REMEDIES = {
    errno.ENOSPC: "free some space there, or set LEVER_MLFLOW_CACHE or TMPDIR to a folder on another disk",
    errno.EDQUOT: "free some of your space there, or set LEVER_MLFLOW_CACHE or TMPDIR to a folder on another disk",
    errno.EROFS: "allow writing there, or set LEVER_MLFLOW_CACHE or TMPDIR to another folder",
    errno.EACCES: "allow this user to read and write there, or name another place",
    errno.EPERM: "allow this user to read and write there, or name another place",
    errno.EMFILE: "raise the limit of open files with `ulimit -n`",
    errno.ENFILE: "end programs that hold many files open",
    errno.EIO: "look into the system's log: a disk or a network share fails",
    errno.ESTALE: "mount the network share again",
}
_OF_THE_MACHINE = _REMEDIES.keys() - {errno.EACCES, errno.EPERM}
_MEMORY = "free memory of other work, or ask for less with batch_tokens for the VLM and batch_size for trainings"


def out_of_memory(error: BaseException) -> bool:
    """Says whether an exception means that memory did not suffice, that of this machine or of its GPU."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in _MEMORY_OF_TORCH)


def is_of_the_process(error: BaseException) -> bool:
    """Says whether an exception means that this process gets no memory or no thread, so that no file and no store failed."""
    return out_of_memory(error) or (isinstance(error, RuntimeError) and _NO_THREAD in str(error))


def is_of_the_machine(error: BaseException) -> bool:
    """Says whether an exception means that the machine lacks something, so that it says nothing of the file that was read."""
    return is_of_the_process(error) or (isinstance(error, OSError) and error.errno in _OF_THE_MACHINE)


def let_through(error: BaseException) -> None:
    """Raises an exception again that means a lack of the machine, and does nothing about any other one."""
    if is_of_the_machine(error):
        raise error


def in_one_line(error: BaseException) -> str | None:
    """Says what a lack of the machine or an error of its files is, and what to do; None for any other exception."""
    reason = _shown(error)
    if out_of_memory(error):
        return f"memory does not suffice ({reason}); {_MEMORY}" if reason else f"memory does not suffice; {_MEMORY}"
    if isinstance(error, RuntimeError) and _NO_THREAD in reason:
        return f"{reason}; raise the limit of processes with `ulimit -u`, or free memory of other work"
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENOENT and error.filename is None:
        return _without_a_name(reason)
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{reason}; {remedy}" if remedy else reason


def _without_a_name(reason: str) -> str:
    """Explains why something is not there that no file names: a temporary folder, or the working folder."""
    if "temporary directory" in reason:
        return f"{reason}; free some space in one of these folders, or set TMPDIR to a folder on another disk"
    return f"{reason}; if the working folder was deleted, change to one that is there"


def _shown(error: BaseException) -> str:
    """Returns the first line of what an exception says; of an error of a file, the file and the reason."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = str(error).strip().partition("\n")[0]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
