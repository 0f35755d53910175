"""Fixtures of all tests: MLflow stores in temporary folders, shared caches, small data sets and trials, a retriever."""

import os
import shutil
import tempfile
from pathlib import Path

import mlflow
import pytest
import torch
from helpers.projects import Project
from helpers.servers import Postgres
from helpers.small_data import write_okvqa_split
from mlflow import MlflowClient

from lever_mlflow import invocation
from lever_mlflow.data.samples import Sample
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.selector.checkpoint import save_selector, selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.serving.retriever import RetrieverSettings, save_retriever
from lever_mlflow.trials.rl_data import Group, Trial, save_rl_data

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run beside each other, a process for each core
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # also here, where torch has read it already

LONGEST_FIRST = (
    "test_end_to_end.py",
    "test_team_server.py",
    "test_faults.py",
    "test_distributed.py",
    "test_steps_in_process.py",
    "test_server_outage.py",
    "test_champion.py",
    "test_killed_training.py",
    "test_promotion.py",
    "test_installed_package.py",
    "test_retriever_model.py",
    "test_server.py",
)


def pytest_collection_modifyitems(items):
    """Begins with the files that take longest, so that no process is left with one of them at the end."""
    rank = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(autouse=True)
def _as_library(monkeypatch):
    """Forgets after each test how a command of it was started."""
    monkeypatch.setattr(invocation, "_present", invocation._LIBRARY)


@pytest.fixture(scope="session")
def make_store(tmp_path_factory):
    """make_store(folder) is the URI of an empty sqlite store in a folder: a copy, as making its tables takes a second."""
    template = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(template)  # where the default experiment's artifacts would go
        MlflowClient(f"sqlite:///{template / 'mlflow.db'}").search_experiments()

    def make(folder):
        return f"sqlite:///{shutil.copy(template / 'mlflow.db', folder)}"

    return make


@pytest.fixture
def mlflow_store(tmp_path, monkeypatch, make_store):
    """A fresh sqlite store with a file artifact folder; its URI."""
    monkeypatch.chdir(tmp_path)
    uri = make_store(tmp_path)
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("test", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment("test")
    yield uri
    while mlflow.active_run():
        mlflow.end_run()
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)  # set_experiment leaves it to child processes


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


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory, worker_id):
    """Embedded data set, features and answers, each made once for all processes of this run; it is made to be shared."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory, cache_dir, make_store):
    """``mlflow run`` on a store of the test module's own."""
    folder = tmp_path_factory.mktemp("project")
    return Project(make_store(folder), folder, cache_dir)


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
        fields = {
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
        save_retriever(folder, RetrieverSettings(**fields), checkpoint, small.train, small.features("train"))
        return folder

    return make
