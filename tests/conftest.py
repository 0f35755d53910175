"""Real parts for tests: MLflow stores and servers in temporary folders, ``mlflow run``, small data in the official formats."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from lever_mlflow.data.samples import Sample
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.runs import steps
from lever_mlflow.selector.checkpoint import save_selector, selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.serving.retriever import RetrieverSettings, save_retriever
from lever_mlflow.trials.rl_data import Group, Trial, save_rl_data

ROOT = Path(__file__).parents[1]

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run beside each other, a process for each core
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # also here, where torch has read it already

SLOW = (
    "test_end_to_end.py",
    "test_team_server.py",
    "test_faults.py",
    "test_serving.py",
    "test_server_outage.py",
    "test_distributed.py",
    "test_killed_training.py",
    "test_promotion.py",
)


def pytest_collection_modifyitems(items):
    """The slow files first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))


@pytest.fixture
def mlflow_store(tmp_path, monkeypatch):
    """A fresh sqlite store with a file artifact folder; its URI."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("test", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment("test")
    yield uri
    while mlflow.active_run():
        mlflow.end_run()
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)  # set_experiment leaves it to child processes


def write_okvqa_split(root: Path, split: str, count: int, *, first_image: int = 1, per_image: int = 2) -> None:
    """Questions, annotations and images of one split exactly as OK-VQA and COCO lay them out."""
    subset = f"{split}2014"
    (root / subset).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(first_image)
    questions, annotations = [], []
    for i in range(count):
        image_id = first_image + i // per_image
        path = root / subset / f"COCO_{subset}_{image_id:012d}.jpg"
        if not path.exists():
            Image.fromarray(rng.integers(0, 255, (56, 56, 3), dtype=np.uint8)).save(path)
        question_id = image_id * 10 + i % per_image
        questions.append({"image_id": image_id, "question": f"what is thing {i}?", "question_id": question_id})
        answers = [
            {"answer_id": a + 1, "raw_answer": f"thing {i}", "answer_confidence": "yes", "answer": f"thing {i}"}
            for a in range(10)
        ]
        annotations.append(
            {
                "image_id": image_id,
                "answer_type": "other",
                "question_type": "four",
                "question_id": question_id,
                "answers": answers,
                "confidence": 3,
            }
        )
    head = {"info": {}, "license": {}, "data_subtype": subset}
    (root / f"OpenEnded_mscoco_{subset}_questions.json").write_text(
        json.dumps({**head, "task_type": "Open-Ended", "data_type": "mscoco", "questions": questions})
    )
    (root / f"mscoco_{subset}_annotations.json").write_text(json.dumps({**head, "annotations": annotations}))


@pytest.fixture
def okvqa_root(tmp_path):
    """20 training questions on 10 images, 8 evaluation questions on 4 others."""
    root = tmp_path / "okvqa"
    root.mkdir()
    write_okvqa_split(root, "train", 20, first_image=1)
    write_okvqa_split(root, "val", 8, first_image=101)
    return root


@pytest.fixture
def samples():
    """30 samples on 15 images, without files."""
    return [Sample(i, 100 + i, i // 2, f"question {i}?", Path(f"{i // 2}.jpg"), (f"answer {i}",) * 10) for i in range(30)]


def learnable_groups(n_queries: int = 40, pool: int = 12, shots: int = 2, trials: int = 10, dim: int = 16, seed: int = 0):
    """Features [S, D] and groups in which a trial is right when it holds the candidate least like its query."""
    rng = np.random.default_rng(seed)
    features_SD = rng.standard_normal((n_queries * 2 + 60, dim)).astype(np.float32)
    features_SD /= np.linalg.norm(features_SD, axis=1, keepdims=True)
    groups = []
    for query in range(n_queries):
        members = rng.choice(np.arange(n_queries, len(features_SD)), pool, replace=False)
        best = int(np.argmin(features_SD[members] @ features_SD[query]))
        pointers = {tuple(rng.choice(pool, shots, replace=False).tolist()) for _ in range(trials)}
        pointers.add((best, (best + 1) % pool))
        group = [Trial(p, float(best in p), float(best in p), "random") for p in sorted(pointers)]
        groups.append(Group(query, tuple(members.tolist()), tuple(group)))
    return features_SD, groups


def free_port():
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """``mlflow server`` with its artifacts behind its proxy, in a folder; its store is sqlite there, or another one."""

    def __init__(self, folder, *options, store=None, workers=1, **environment):
        self.folder = folder
        self.options = ["--workers", str(workers), *options]
        self.environment = environment
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.store = store or f"sqlite:///{folder / 'mlflow.db'}"
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), *self.options]
        command += ["--backend-store-uri", self.store, "--artifacts-destination", str(self.folder / "artifacts")]
        log = (self.folder / "server.log").open("a")
        environment = {**os.environ, **self.environment}
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                failed = self.process.poll() is not None or time.monotonic() > deadline
                assert not failed, (self.folder / "server.log").read_text()
                time.sleep(0.2)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Postgres:
    """A PostgreSQL server on loopback, in a folder of its own; root runs it as the user ``postgres``, as it refuses root."""

    def __init__(self, folder, programs):
        self.folder, self.programs, self.port = folder, programs, free_port()
        self.user = "postgres" if os.geteuid() == 0 else None
        self.uri = f"postgresql+psycopg2://mlflow@127.0.0.1:{self.port}/postgres"
        if self.user:
            shutil.chown(folder, self.user)

    def start(self):
        self._run("initdb", "--pgdata", self.folder / "data", "--username", "mlflow", "--auth", "trust", "--no-sync")
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        self._run("pg_ctl", "start", "--wait", "--pgdata", self.folder / "data", "-o", options, "-l", self.folder / "log")

    def stop(self):
        self._run("pg_ctl", "stop", "--pgdata", self.folder / "data", "-m", "immediate")

    def _run(self, program, *arguments):
        command = [self.programs / program, *arguments]
        subprocess.run(command, user=self.user, cwd=self.folder, check=True, stdout=subprocess.DEVNULL, timeout=120)


@pytest.fixture(scope="module")
def postgres():
    """URI of a fresh PostgreSQL database."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pg-") as folder:  # where another user may enter, and the path is short
        server = Postgres(Path(folder), programs[-1].parent)
        server.start()
        yield server.uri
        server.stop()


class Project:
    """``mlflow run`` as a user types it, on a store of its own."""

    def __init__(self, folder, cache_dir):
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "MLFLOW_TRACKING_URI": self.uri, "LEVER_MLFLOW_CACHE": str(cache_dir), "PATH": path}
        mlflow.set_tracking_uri(self.uri)
        mlflow.create_experiment("small", artifact_location=(folder / "artifacts").as_uri())
        self.client = MlflowClient(self.uri)

    def run(self, entry_point, experiment="small", **parameters):
        arguments = [part for name, value in parameters.items() for part in ("-P", f"{name}={value}")]
        command = ["mlflow", "run", str(ROOT), "-e", entry_point, "--env-manager", "local", "--experiment-name", experiment]
        return subprocess.run(
            [*command, *arguments], env=self.environment, capture_output=True, text=True, timeout=280, check=False
        )

    def runs(self, experiment="small", **tags):
        return self.client.search_runs(
            [self.client.get_experiment_by_name(experiment).experiment_id],
            " and ".join(f"tags.`{name.replace('_', '.', 1)}` = '{value}'" for name, value in tags.items()),
        )

    def newest(self, experiment="small"):
        return self.runs(experiment)[0]


def error_lines(result):
    """What a process told its user went wrong."""
    assert "Traceback" not in result.stderr
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def run_step(make_step):
    """Runs a step in this process and returns its run."""
    with steps.project_run("test") as run:
        steps.run_here(make_step())
    return mlflow.get_run(run.info.run_id)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    """Embedded data set, features and answers, shared by the tests of a process."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def project(tmp_path_factory, cache_dir):
    """``mlflow run`` on a store of the test module's own."""
    return Project(tmp_path_factory.mktemp("project"), cache_dir)


@pytest.fixture
def bad_rl_data(tmp_path):
    """60 queries without a single right trial."""
    trials = tuple(Trial((i, i + 1), 0.0, 0.0, "beam") for i in range(9))
    save_rl_data(tmp_path / "bad.json", [Group(query, tuple(range(400, 464)), trials) for query in range(60)], {})
    return str(tmp_path / "bad.json")


@pytest.fixture
def local(mlflow_store, cache_dir):
    """local(**choices) is a context for steps in this process, on a fresh store."""

    def make(**choices):
        return Context(Resources(cache_dir=cache_dir), **choices)

    return make


@pytest.fixture(scope="session")
def good_rl_data(tmp_path_factory):
    """60 queries of the embedded data set's indices, half of them with 4 of 9 trials right."""
    path = tmp_path_factory.mktemp("good") / "good.json"
    scores = {query: [1.0 * (query % 2 and i < 4) for i in range(9)] for query in range(60)}
    groups = [
        Group(
            query,
            tuple(range(400, 464)),
            tuple(Trial((i, i + 1), score, score, "beam") for i, score in enumerate(scores[query])),
        )
        for query in range(60)
    ]
    save_rl_data(path, groups, {})
    return str(path)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The embedded models on 40 training questions on 20 images, and 8 evaluation questions on 4 others."""
    root = tmp_path_factory.mktemp("small")
    write_okvqa_split(root, "train", 40, first_image=1)
    write_okvqa_split(root, "val", 8, first_image=101)
    return Resources(dataset=str(root), cache_dir=tmp_path_factory.mktemp("small-cache"))


@pytest.fixture(scope="session")
def make_retriever(small, tmp_path_factory):
    """make_retriever(**settings) is the folder of a retriever on ``small``, with 12 candidates for each query."""
    torch.manual_seed(0)
    selector = PointerSelector(feature_dim=512).eval()
    for norm in selector.attn_norms:  # so that its picks are far from those by similarity
        torch.nn.init.normal_(norm.weight)
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "checkpoint"
    save_selector(checkpoint, selector, {})

    def make(**settings):
        folder = tmp_path_factory.mktemp("retriever")
        given = {
            "checkpoint_digest": selector_digest(selector),
            "dataset_digest": small.dataset_digest,
            "encoder": "mini",
            "encoder_digest": small.encoder_digest,
            "profile": small.language_model.profile,
            "pool_sampler": "random",
            "pool_size": 12,
            "seed": 0,
            **settings,
        }
        save_retriever(folder, RetrieverSettings(**given), checkpoint, small.train, small.features("train"))
        return folder

    return make
