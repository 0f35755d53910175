"""Answers and scores from the cache, and from several processes; this file is also what the processes run."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import pytest
from helpers.projects import ROOT

from lever_mlflow import distributed, mini
from lever_mlflow.data.okvqa import load_split
from lever_mlflow.distributed import follow, join, release
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.mini.dataset import ensure_dataset
from lever_mlflow.vlm import local
from lever_mlflow.vlm.asking import Asker, AskerSettings
from lever_mlflow.vlm.language_model import VlmName
from lever_mlflow.vlm.profiles import MINI_PROFILE, PROFILES
from lever_mlflow.vlm.prompt import Prompt
from lever_mlflow.vlm.qwen import QwenVLM

MINI_VLM = VlmName(str(mini.VLM_PATH), profile=MINI_PROFILE)


def make_prompts(root):
    """30 prompts of 0 to 2 demonstrations, 27 of them different."""
    train, val = load_split(root, "train"), load_split(root, "val")
    prompts = [Prompt(tuple(train[7 * i + j] for j in range(i % 3)), val[i]) for i in range(27)]
    return [*prompts, *prompts[4:7]]


@pytest.fixture(scope="module")
def root(cache_dir):
    return ensure_dataset(cache_dir)


@pytest.fixture
def asker(tmp_path):
    """asker(mode) asks the embedded VLM, with answers in a folder of the test's own."""
    return lambda mode="on": Asker(AskerSettings(MINI_VLM, tmp_path, mode))


def stored(path):
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT key, text FROM answers"))


def ordered(batches):
    return [text for _, text in sorted(item for batch in batches for item in batch)]


def test_answers_and_scores_are_those_of_the_model_in_order(root, asker, tmp_path):
    prompts, model = make_prompts(root), QwenVLM(mini.VLM_PATH, "digest", PROFILES["mini"])
    assert asker().answer(prompts, "test") == ordered(model.generate(prompts))
    assert asker().score(prompts, "test") == pytest.approx([float(text) for text in ordered(model.score(prompts))], rel=1e-5)
    assert len(stored(tmp_path / "answers.sqlite")) == 2 * 27


def test_known_answers_need_no_weights(root, asker):
    prompts = make_prompts(root)[:5]
    expected = asker().answer(prompts, "test"), asker().score(prompts, "test")
    for mode in ("on", "read"):
        again = asker(mode)
        assert (again.answer(prompts, "test"), again.score(prompts, "test")) == expected
        assert "loaded" not in vars(again.language_model)
    fresh = asker("off")
    assert fresh.answer(prompts, "test") == expected[0]
    assert "loaded" in vars(fresh.language_model)


def test_each_machine_has_an_answer_cache_of_its_own(root, asker, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "machine", lambda processes: 2)
    asker().answer(make_prompts(root)[:1], "test")
    assert len(stored(tmp_path / "answers-2.sqlite")) == 1
    assert not (tmp_path / "answers.sqlite").exists()


def test_most_servers_do_not_tell_probabilities(script, tmp_path):
    url = script().url
    asker = Asker(AskerSettings(VlmName(url), tmp_path))
    with pytest.raises(ParameterError) as caught:
        asker.score([], "test")
    assert str(caught.value) == (
        f"gt_prob: {url} does not tell how probable answers are (its replies hold no prompt_logprobs); "
        "use vLLM, a local Qwen-VL or gt_prob=false"
    )


def ask(root, cache_dir):
    """Answers twice, of other prompts the second time, and scores."""
    asker, prompts = Asker(AskerSettings(MINI_VLM, cache_dir)), make_prompts(root)
    return asker.answer(prompts[:9], "test"), asker.answer(prompts, "test"), asker.score(prompts, "test")


@pytest.mark.slow
def test_two_processes_give_the_answers_and_scores_of_one(root, tmp_path):
    launch = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", __file__]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    result = subprocess.run(
        [*launch, root, tmp_path / "two"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))), "PATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    first, answers, scores = ask(root, tmp_path / "one")
    processes, *results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert processes == 2
    assert results == [first, answers, pytest.approx(scores, rel=1e-5)]
    assert (tmp_path / "two" / "loadings.json").read_text() == "1", "the follower loads the weights once"
    assert stored(tmp_path / "two" / "answers.sqlite").keys() == stored(tmp_path / "one" / "answers.sqlite").keys()


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    if join("cpu").is_main_process:
        results = ask(Path(sys.argv[1]), folder)
        release(join("cpu"))
        (folder / "results.json").write_text(json.dumps([join("cpu").num_processes, *results]))
    else:
        with patch.object(local, "load_pretrained", wraps=local.load_pretrained) as loadings:
            follow(join("cpu"))
        (folder / "loadings.json").write_text(json.dumps(loadings.call_count))
