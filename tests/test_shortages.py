"""What a machine lacks is told from what is wrong with a file, and is one line with a remedy."""

import errno
import os

import pytest
import torch
from helpers.limits import no_more_open_files

from lever_mlflow.evaluation.records import EvaluationRecords
from lever_mlflow.evaluation.result import Evaluation
from lever_mlflow.files.records import read_record
from lever_mlflow.files.strict_json import read_object
from lever_mlflow.selector.checkpoint import load_selector
from lever_mlflow.serving.pool_files import load_pool
from lever_mlflow.shortages import in_one_line, is_of_the_machine, let_through, out_of_memory
from lever_mlflow.training.state import load_state

MEMORY = "free memory of other work, or ask for less with batch_tokens for the VLM and batch_size for trainings"


def cpu_error():
    """The error of PyTorch's own allocator."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


def os_error(number, *path):
    return OSError(number, os.strerror(number), *path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        os_error(errno.ENOMEM),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("unable to mmap 2104120 bytes from file </a/selector.safetensors>: Cannot allocate memory (12)"),
        cpu_error(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_does_not_suffice_is_known_in_all_its_forms(error):
    assert out_of_memory(error)
    assert is_of_the_machine(error)
    line = in_one_line(error)
    assert line.startswith("memory does not suffice")
    assert line.endswith(f"; {MEMORY}")
    assert "\n" not in line
    with pytest.raises(type(error)):
        let_through(error)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            os_error(errno.ENOSPC, "/disk/file"),
            "/disk/file: No space left on device; free some space there, or set LEVER_MLFLOW_CACHE or TMPDIR to a folder on "
            "another disk",
        ),
        (os_error(errno.EMFILE, "/a"), "/a: Too many open files; raise the limit of open files with `ulimit -n`"),
        (
            RuntimeError("can't start new thread"),
            "can't start new thread; raise the limit of processes with `ulimit -u`, or free memory of other work",
        ),
    ],
)
def test_other_things_that_a_machine_lacks(error, line):
    assert is_of_the_machine(error)
    assert not out_of_memory(error)
    assert in_one_line(error) == line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (os_error(errno.ENOENT, "/a"), "/a: No such file or directory"),
        (os_error(errno.EACCES, "/a"), "/a: Permission denied; allow this user to read and write there, or name another place"),
        (
            os_error(errno.ENOENT),
            "[Errno 2] No such file or directory; if the working folder was deleted, change to one that is there",
        ),
        (OSError("image file is truncated"), "image file is truncated"),
        (RuntimeError("shapes differ"), None),
        (ValueError("no number"), None),
    ],
)
def test_what_says_something_of_a_file_or_of_the_program(error, line):
    assert not is_of_the_machine(error)
    assert in_one_line(error) == line
    let_through(error)


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_object(path, missing="", damaged="copy it again"),
        lambda path: read_record(Evaluation, path, "an evaluation", "evaluate"),
        lambda path: load_selector(path.parent),
        lambda path: load_state(path.parent),
        lambda path: load_pool(path.parent),
        EvaluationRecords.read,
    ],
    ids=["JSON", "record", "selector", "training state", "pool", "records of an evaluation"],
)
def test_a_reader_does_not_call_a_file_damaged_where_no_file_can_be_opened(tmp_path, read):
    for name in ("selector.json", "state.json", "pool.json"):
        (tmp_path / name).write_text("{}")
    with no_more_open_files(), pytest.raises(OSError, match="Too many open files") as caught:
        read(tmp_path / "selector.json")
    assert "raise the limit of open files" in in_one_line(caught.value)
