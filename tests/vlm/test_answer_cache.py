import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from helpers.projects import ROOT

from lever_mlflow.exceptions import DataError
from lever_mlflow.vlm import answer_cache
from lever_mlflow.vlm.answer_cache import AnswerCache, _remedy, cached_answers, merge_answers
from lever_mlflow.vlm.prompt import Prompt


class Counter:
    """Generates answers in batches of two and records the prompts; it can be interrupted after some of them."""

    def __init__(self, die_after=None):
        self.prompts, self.die_after = [], die_after

    def __call__(self, prompts):
        for start in range(0, len(prompts), 2):
            if self.die_after is not None and len(self.prompts) >= self.die_after:
                raise KeyboardInterrupt
            batch = list(prompts[start : start + 2])
            self.prompts += batch
            yield [(start + i, f"answer to {prompt.query.question}") for i, prompt in enumerate(batch)]


def key(prompt):
    return prompt.query.question


@pytest.fixture
def prompts(samples):
    return [Prompt((), samples[i]) for i in (0, 1, 0, 2, 3, 1)]


def test_equal_prompts_are_generated_once_and_order_is_kept(tmp_path, prompts):
    generate = Counter()
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        answers = cached_answers(prompts, key, generate, cache)
    assert answers.generated == len(generate.prompts) == 4
    assert answers.texts == [f"answer to question {i}?" for i in (0, 1, 0, 2, 3, 1)]


def test_known_answers_are_not_generated_again(tmp_path, prompts):
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        first = cached_answers(prompts, key, Counter(), cache)
    generate = Counter()
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        assert cached_answers(prompts, key, generate, cache).texts == first.texts
    assert generate.prompts == []


def test_finished_batches_survive_an_interruption(tmp_path, prompts):
    with AnswerCache(tmp_path / "a.sqlite") as cache, pytest.raises(KeyboardInterrupt):
        cached_answers(prompts, key, Counter(die_after=2), cache)
    generate = Counter()
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        cached_answers(prompts, key, generate, cache)
    assert [prompt.query.question for prompt in generate.prompts] == ["question 2?", "question 3?"]


def damage_a_page(path):
    with AnswerCache(path) as cache:
        cache.put([(f"{i:05d}", "text " * 20) for i in range(3000)])
    content = bytearray(path.read_bytes())
    for page in range(2, len(content) // 4096):
        content[page * 4096 : page * 4096 + 200] = b"\xff" * 200
    path.write_bytes(content)


def foreign_database(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, text TEXT)")
        connection.execute("INSERT INTO answers VALUES ('00001', 'not ours')")
        connection.commit()


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"something else" * 100), damage_a_page, foreign_database])
def test_a_damaged_or_foreign_file_is_set_aside_and_never_trusted(tmp_path, caplog, spoil):
    path = tmp_path / "a.sqlite"
    for round_ in (1, 2):
        spoil(path)
        content = path.read_bytes()
        with AnswerCache(path) as cache:
            assert cache.get(["00001"]) == {}
            cache.put([("00001", "ours")])
            assert cache.get(["00001"]) == {"00001": "ours"}
        assert f"set aside as a.sqlite.damaged-{round_}, and a new answer cache begun" in caplog.text
        assert (tmp_path / f"a.sqlite.damaged-{round_}").read_bytes() == content
        path.unlink()


def test_a_foreign_database_keeps_what_is_in_its_log(tmp_path):
    with closing(sqlite3.connect(tmp_path / "theirs")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE notes (text TEXT)")
        connection.execute("INSERT INTO notes VALUES ('precious')")
        connection.commit()
        for suffix in ("", "-wal"):  # while it is open, the note is in the log alone
            shutil.copy(tmp_path / f"theirs{suffix}", tmp_path / f"a.sqlite{suffix}")
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        cache.put([("1", "ours")])
        assert cache.get(["1"]) == {"1": "ours"}
    with closing(sqlite3.connect(tmp_path / "a.sqlite.damaged-1")) as connection:
        assert connection.execute("SELECT text FROM notes").fetchall() == [("precious",)]


def test_a_place_that_cannot_hold_the_cache_is_named(tmp_path):
    (tmp_path / "a.sqlite").mkdir()
    with pytest.raises(DataError, match=r"a\.sqlite: not usable as the answer cache .*set LEVER_MLFLOW_CACHE"):
        AnswerCache(tmp_path / "a.sqlite")


def test_a_full_disk_is_told_and_no_answers_are_to_be_removed(tmp_path, monkeypatch):
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        cache.put([("1", "one")])
        pages = cache._connection.execute("PRAGMA page_count").fetchone()[0]
        cache._connection.execute(f"PRAGMA max_page_count={pages}")  # as if the disk had no page more
        with pytest.raises(DataError, match=r"disk is full.*: free some, or set LEVER_MLFLOW_CACHE to a folder"):
            cache.put([(str(number), "x" * 1000) for number in range(100)])
        assert cache.get(["1", "2"]) == {"1": "one"}
    # what SQLite says where it cannot write beside its file on a full disk, as seen on a small one
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorname = "SQLITE_IOERR_SHMSIZE"
    assert _remedy(error, tmp_path).startswith("allow this user to read and write there")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 0))
    assert _remedy(error, tmp_path).startswith("no space is left there")


def test_a_cache_that_another_process_keeps_locked_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(answer_cache, "_PATIENCE", 0.1)
    with AnswerCache(tmp_path / "a.sqlite") as cache, closing(sqlite3.connect(tmp_path / "a.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DataError, match=r"database is locked.*: end that process, or set LEVER_MLFLOW_CACHE"):
            cache.put([("1", "one")])


def test_modes(tmp_path):
    path = tmp_path / "a.sqlite"
    with AnswerCache(path, "off") as cache:
        cache.put([("a", "1")])
        assert cache.get(["a"]) == {}
    assert not path.exists()
    with AnswerCache(path) as cache:
        cache.put([("a", "1")])
    with AnswerCache(path, "read") as cache:
        cache.put([("b", "2")])
        assert cache.get(["a", "b"]) == {"a": "1"}
    with AnswerCache(path, "off") as cache:
        assert cache.get(["a"]) == {}
    with AnswerCache(tmp_path / "none", "read") as cache:
        assert cache.get(["a"]) == {}
    assert not (tmp_path / "none").exists()
    path.write_bytes(b"rubbish" * 1000)
    with AnswerCache(path, "read") as cache:
        assert cache.get(["a"]) == {}
    assert path.read_bytes() == b"rubbish" * 1000


WRITER = """
import sys
from pathlib import Path
from lever_mlflow.vlm.answer_cache import AnswerCache
with AnswerCache(Path(sys.argv[1])) as cache:
    for i in range(int(sys.argv[3])):
        cache.put([(f"{i}-{j}", sys.argv[2]) for j in range(20)])
        print(i, flush=True)
"""


def write(path, name, batches):
    command = [sys.executable, "-c", WRITER, str(path), name, str(batches)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_killed_process_loses_no_finished_batch(tmp_path):
    process = write(tmp_path / "a.sqlite", "x", 100_000)
    finished = [int(process.stdout.readline()) for _ in range(50)]
    process.kill()
    finished += [int(line) for line in process.communicate()[0].split()]
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        answers = cache.get([f"{i}-{j}" for i in range(finished[-1] + 3) for j in range(20)])
    batches = {key.split("-")[0] for key in answers}
    assert {str(i) for i in finished} <= batches
    assert len(answers) == 20 * len(batches)


def test_several_processes_use_one_file(tmp_path):
    processes = [write(tmp_path / "a.sqlite", name, 60) for name in "xyz"]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        answers = cache.get([f"{i}-{j}" for i in range(60) for j in range(20)])
    assert len(answers) == 1200
    assert set(answers.values()) <= set("xyz")


def test_caches_are_merged_and_the_first_answer_stays(tmp_path):
    for name, items in (("a", [("1", "a"), ("2", "a")]), ("b", [("2", "b"), ("3", "b")]), ("c", [("3", "c"), ("4", "c")])):
        with AnswerCache(tmp_path / name) as cache:
            cache.put(items)
    assert merge_answers([tmp_path / "b", tmp_path / "c"], tmp_path / "a") == 2
    with AnswerCache(tmp_path / "a") as cache:
        assert cache.get(list("1234")) == {"1": "a", "2": "a", "3": "b", "4": "c"}
    foreign_database(tmp_path / "d")
    damage_a_page(tmp_path / "e")
    for name in "def":
        with pytest.raises(DataError, match=rf"/{name}: not an answer cache"):
            merge_answers([tmp_path / "a", tmp_path / name], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    foreign = (tmp_path / "d").read_bytes()
    with pytest.raises(DataError, match="/d: not an answer cache"):
        merge_answers([tmp_path / "a"], tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == foreign
    with AnswerCache(tmp_path / "empty"):
        pass
    with pytest.raises(DataError, match="/empty: holds no answers; if the file was copied, copy empty-wal too, where"):
        merge_answers([tmp_path / "empty"], tmp_path / "a")


def test_many_keys_are_looked_up(tmp_path):
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        cache.put([(str(i), f"t{i}") for i in range(1234)])
        assert cache.get([str(i) for i in range(1300)]) == {str(i): f"t{i}" for i in range(1234)}
