"""Files and folders that are written as a whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from helpers.limits import files_of_at_most
from safetensors.torch import save_file

from lever_mlflow.files import atomic
from lever_mlflow.files.atomic import build_folder, whole_file, write_folder
from lever_mlflow.process_identity import mark_of_this_process


def mode_of(path):
    return oct(path.stat().st_mode & 0o777)


def fill(folder):
    (folder / "a.txt").write_text("one")
    (folder / "inner").mkdir()
    (folder / "inner" / "b.bin").write_bytes(b"\x00\x01")


def fail_halfway(folder):
    (folder / "a.txt").write_text("half")
    raise RuntimeError("the disk is full")


def test_a_text_file_is_utf8_and_readable_by_all_and_its_parents_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "text.json"
    with whole_file(path) as file:
        file.write("Zürich 漢\n")
        assert not path.exists()
        (temporary,) = path.parent.iterdir()
        assert temporary.name.startswith(".text.json-")
    assert path.read_bytes() == "Zürich 漢\n".encode()
    assert mode_of(path) == "0o644"
    assert list(path.parent.iterdir()) == [path]


def test_a_binary_file_takes_the_place_of_a_former_one(tmp_path):
    path = tmp_path / "array.npy"
    path.write_bytes(b"former")
    path.chmod(0o600)
    with whole_file(path, "wb") as file:
        file.write(b"\x00\xff")
        assert path.read_bytes() == b"former"
    assert path.read_bytes() == b"\x00\xff"
    assert mode_of(path) == "0o644"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_midway_leaves_the_former_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "text.json"
    path.write_text("former")

    def write_half():
        with whole_file(path) as file:
            file.write("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_has_what_was_filled_in_and_is_readable_by_all(tmp_path):
    folder = tmp_path / "parent" / "folder"

    def fill_privately(temporary):
        assert temporary.parent == folder.parent
        assert temporary.name.startswith(".folder-")
        assert not folder.exists()
        fill(temporary)
        (temporary / "a.txt").chmod(0o600)

    write_folder(folder, fill_privately)
    assert (folder / "a.txt").read_text() == "one"
    assert (folder / "inner" / "b.bin").read_bytes() == b"\x00\x01"
    modes = {str(path.relative_to(folder)): mode_of(path) for path in (folder, *folder.rglob("*"))}
    assert modes == {".": "0o755", "a.txt": "0o644", "inner": "0o755", "inner/b.bin": "0o644"}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_that_fails_midway_leaves_nothing(tmp_path):
    for write in (write_folder, build_folder):
        with pytest.raises(RuntimeError, match="the disk is full"):
            write(tmp_path / "folder", fail_halfway)
        assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_and_stays(tmp_path):
    folder = tmp_path / "folder"
    write_folder(folder, fill)
    with pytest.raises(FileExistsError, match=f"^{folder}: exists already$"):
        write_folder(folder, fail_halfway)
    assert (folder / "a.txt").read_text() == "one"


def test_a_folder_that_another_process_made_in_the_meantime_is_refused_and_stays(tmp_path):
    folder = tmp_path / "folder"

    def slow(temporary):
        write_folder(folder, fill)
        (temporary / "a.txt").write_text("late")

    with pytest.raises(FileExistsError, match="exists already"):
        write_folder(folder, slow)
    assert (folder / "a.txt").read_text() == "one"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_built_folder_is_filled_once(tmp_path):
    folder = tmp_path / "folder"
    assert build_folder(folder, fill) == folder
    assert build_folder(folder, fail_halfway) == folder
    assert (folder / "a.txt").read_text() == "one"


def test_another_process_may_build_the_folder_first(tmp_path):
    folder = tmp_path / "folder"

    def slow(temporary):
        write_folder(folder, fill)
        (temporary / "a.txt").write_text("late")

    assert build_folder(folder, slow) == folder
    assert (folder / "a.txt").read_text() == "one"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_in_the_folders_place_is_an_error(tmp_path):
    (tmp_path / "folder").write_text("no folder")
    with pytest.raises(FileExistsError, match="exists already"):
        build_folder(tmp_path / "folder", fill)


KILLED = """
import os, signal, sys, tempfile
from pathlib import Path
from lever_mlflow.files.atomic import mark_temporary_files, whole_file, write_folder
mark_temporary_files()
tempfile.mkdtemp()
Path(tempfile.mkstemp()[1]).write_text("half")
def fill(folder):
    (folder / "a.txt").write_text("half")
    with whole_file(Path(sys.argv[1], "b.json")) as file:
        os.kill(os.getpid(), signal.SIGKILL)
write_folder(Path(sys.argv[1], "c"), fill)
"""


def test_what_a_killed_process_left_half_written_is_removed_by_the_next_one(tmp_path, monkeypatch):
    target, temporary = tmp_path / "target", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(tempfile, "template", "tmp")
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.run([sys.executable, "-c", KILLED, str(target)], env=environment, check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(list(target.iterdir())) == len(list(temporary.iterdir())) == 2
    mark = mark_of_this_process()
    *place, number, started, _ = mark.split("-")
    of_others = [
        mark,  # this process, which lives
        "-".join([*place[:-1], "0" * 12, "999999999", "1", ""]),  # of another machine
        "-".join([*place, number, "x", ""]),
        "tmpabc",
    ]
    for name in of_others:
        (temporary / f"{name}x").mkdir()
        (target / f".{name}x").touch()
    (temporary / "-".join([*place, number, str(int(started) - 1), "x"])).touch()  # the number is another process' by now
    atomic.mark_temporary_files()
    assert sorted(path.name for path in temporary.iterdir()) == sorted(f"{name}x" for name in of_others)
    assert Path(tempfile.mkdtemp()).name.startswith(mark)
    with whole_file(target / "b.json") as file:
        file.write("whole")
    assert sorted(path.name for path in target.iterdir()) == sorted(["b.json", *(f".{name}x" for name in of_others)])


def test_a_disk_that_fills_up_is_named(tmp_path):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def in_a_file():
        with whole_file(tmp_path / "file"):
            fill()

    for name, write in (("file", in_a_file), ("folder", lambda: write_folder(tmp_path / "folder", fill))):
        with pytest.raises(OSError, match="No space left on device") as error:
            write()
        assert error.value.filename == str(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_does_not_hold_a_short_text_is_named(tmp_path):
    """The text is still in the buffer of the file when the file is closed, which fails once more."""
    with files_of_at_most(10), pytest.raises(OSError, match="File too large") as error, whole_file(tmp_path / "file") as file:
        file.write("more than ten bytes")
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(tmp_path / "file"))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_does_not_hold_tensors_is_named(tmp_path):
    """safetensors raises an error of its own, which tells the system's number in its text alone."""

    def fill(folder):
        save_file({"weights": torch.zeros(100_000)}, folder / "tensors")

    with files_of_at_most(100_000), pytest.raises(OSError, match="File too large") as error:
        write_folder(tmp_path / "folder", fill)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(tmp_path / "folder"))
    assert list(tmp_path.iterdir()) == []
