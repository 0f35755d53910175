"""Measures a served retriever on the embedded default: requests over loopback HTTP, batches of rows, memory, and fresh starts.

Each figure is compared with a baseline of the same run: a request with the same ``predict`` in this process, a batch with one
request for each of its rows, the server with one that serves an epoch's checkpoint (no encoder, no pool), and an answer of the
server with loading the model for each answer (in this process, where the libraries are imported already). The selector is
untrained, which changes no figure.

With ``--pools`` alone, requests of features are measured in this process against pools of random features: candidates that are
the nearest of the whole pool by fused feature, compared with candidates that are drawn at random. The two take turns.

    python -m benchmarks.serving [--rows 1000] [--starts 6] [--pools 1700,100000]
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import mlflow
import numpy as np
import pandas as pd
import psutil
import torch

from lever_mlflow.data.encoders import Encoder, forget_shared_encoders
from lever_mlflow.data.features import FeatureTable, fused_features
from lever_mlflow.data.samples import Sample
from lever_mlflow.files.cache_dir import default_cache_dir
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.selector.checkpoint import save_selector, selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.serving import logged_models
from lever_mlflow.serving.pool_files import DemonstrationPool
from lever_mlflow.serving.requests import Query
from lever_mlflow.serving.retriever import Retriever, RetrieverSettings, save_retriever
from lever_mlflow.settings import EvalSettings, PoolSampler
from lever_mlflow.vlm.profiles import MINI_PROFILE, PROFILES

FEATURES, IMAGES = "features", "question and image"
REQUESTS, BATCHES, AFTER_FIRST, RELOADS = 200, 10, 20, 5


@contextmanager
def temporary_store() -> Iterator[tuple[str, Path]]:
    """Opens an empty MLflow store for as long as the block lasts, and gives its URI and the folder that it is in."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("serving", (folder / "artifacts").as_uri()))
        yield uri, folder


class Server(NamedTuple):
    """Describes a running server: where it is asked, the seconds until it was ready, and the process of MLflow's command."""

    url: str
    seconds: float
    command: psutil.Process

    @property
    def _answering(self) -> psutil.Process:
        """Returns the process that answers, which is the largest of those that the command started."""
        return max(self.command.children(recursive=True), key=lambda child: child.memory_info().rss)

    def memory(self) -> float:
        """Returns the memory in MB."""
        return float(self._answering.memory_info().rss) / 1e6

    def processor_time(self) -> float:
        """Returns the seconds of processor time that it has taken since its start."""
        return float(sum(self._answering.cpu_times()[:2]))


@contextmanager
def served(model_id: str, uri: str, folder: Path) -> Iterator[Server]:
    """Starts a server of a model, and stops it at the end of the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "mlflow"), "models", "serve", "-m", f"models:/{model_id}"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    started = time.perf_counter()
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(
            [*command, "--env-manager", "local", "-p", str(port)], env=environment, stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"
        while not _ready(url):
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        yield Server(f"{url}/invocations", seconds, psutil.Process(process.pid))
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.terminate()
        process.wait()


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ping", timeout=1):
            return True
    except OSError:
        return False


def post(url: str, body: bytes) -> dict[str, Any]:
    """Sends a request and returns the answer."""
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as answer:
        return dict(json.load(answer))


def timed(call: Callable[[Any], Any], inputs: Sequence[Any]) -> np.ndarray:
    """Measures the milliseconds of a call for each input."""
    times = []
    for value in inputs:
        started = time.perf_counter()
        call(value)
        times.append(1e3 * (time.perf_counter() - started))
    return np.array(times)


def log_models(resources: Resources, folder: Path) -> tuple[str, str]:
    """Logs a retriever on the whole training set, and its checkpoint as training logs it; returns the ids of both models."""
    torch.manual_seed(0)
    selector, table = PointerSelector().eval(), resources.features("train")
    (folder / "retriever").mkdir()
    save_selector(folder / "checkpoint", selector, {})
    settings = RetrieverSettings(
        selector_digest(selector),
        resources.dataset_digest,
        resources.encoder,
        resources.encoder_digest,
        resources.language_model.profile,
        EvalSettings.pool_sampler,
        EvalSettings.pool_size,
        seed=0,
    )
    save_retriever(folder / "retriever", settings, folder / "checkpoint", resources.train, table)
    example = pd.DataFrame({"query": [table.fused_SD[0].tolist()], "candidates": [table.fused_SD[1:5].tolist()]})
    with mlflow.start_run():
        retriever = logged_models.log_retriever("retriever", folder / "retriever", {}, {})
        return retriever, logged_models.log_checkpoint(
            "checkpoint", folder / "checkpoint", epoch=1, params={}, tags={}, example=example
        )


def rows_of(resources: Resources, count: int) -> dict[str, list[dict[str, Any]]]:
    """Makes ``count`` rows of each kind, from the evaluation questions again and again."""
    val, table = resources.val, resources.features("val")

    def image_row(sample: Sample) -> dict[str, Any]:
        return {"question": sample.question, "image": base64.b64encode(sample.image_path.read_bytes()).decode()}

    def feature_row(sample: Sample) -> dict[str, Any]:
        image, text = table.image_SD[sample.index].tolist(), table.text_SD[sample.index].tolist()
        return {"image_features": image, "text_features": text}

    samples = [val[i % len(val)] for i in range(count)]
    return {FEATURES: [feature_row(sample) for sample in samples], IMAGES: [image_row(sample) for sample in samples]}


def bodies_of(rows: Sequence[dict[str, Any]]) -> list[bytes]:
    """Makes a request for each row."""
    return [json.dumps({"inputs": [row]}).encode() for row in rows]


def single_requests(url: str, rows: Sequence[dict[str, Any]], model: Any) -> str:
    """Measures requests with one row, and returns a line of their table."""
    in_process = timed(model.predict, [[row] for row in rows[:REQUESTS]])
    over_http = timed(partial(post, url), bodies_of(rows[:REQUESTS]))
    p50, p95 = np.percentile(over_http, [50, 95])
    base50, base95 = np.percentile(in_process, [50, 95])
    return f"{p50:.1f} | {p95:.1f} | {base50:.1f} | {base95:.1f} | {p50 / base50:.1f}"


def batches(url: str, rows: Sequence[dict[str, Any]]) -> str:
    """Measures one request with all rows and one request for each row, and returns a line for the table of batches."""
    together = timed(partial(post, url), [json.dumps({"inputs": rows}).encode()] * BATCHES) / 1e3
    alone = timed(partial(post, url), bodies_of(rows)).sum() / 1e3
    p50, p95 = np.percentile(together, [50, 95])
    return f"{p50:.2f} | {p95:.2f} | {alone:.1f} | {alone / p50:.1f}"


def reloaded(model_id: str, row: dict[str, Any]) -> float:
    """Returns the median milliseconds of an answer for which the model is loaded anew, its encoder too."""

    def answer(rows: list[dict[str, Any]]) -> None:
        forget_shared_encoders()
        mlflow.pyfunc.load_model(f"models:/{model_id}").predict(rows)

    return float(np.median(timed(answer, [[row]] * RELOADS)))


def random_table(rng: np.random.Generator, items: int, dim: int) -> FeatureTable:
    """Returns unit features of random directions."""
    image_SD, text_SD = rng.standard_normal((2, items, dim), dtype=np.float32)
    for part in (image_SD, text_SD):
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return fused_features(image_SD, text_SD, "")


def pool_requests(items: int, encoder: Encoder) -> str:
    """Measures requests of one row of features with a pool of so many items, and returns a line of their table."""
    rng, dim = np.random.default_rng(0), 512
    samples = [Sample(i, i, i // 2, f"what is thing {i}?", Path(f"{i // 2}.jpg"), ("a thing",)) for i in range(items)]
    pool, queries = DemonstrationPool(samples, random_table(rng, items, dim), {}, {}), random_table(rng, REQUESTS, dim)
    rows = [[Query("row 0", features=pair)] for pair in zip(queries.image_SD, queries.text_SD, strict=True)]
    torch.manual_seed(0)
    selector = PointerSelector(feature_dim=dim).eval()
    times: dict[PoolSampler, list[float]] = {"random": [], "fused-similarity": []}
    retrievers = {}
    for sampler in times:
        settings = RetrieverSettings("", "", "", "", PROFILES[MINI_PROFILE], sampler, EvalSettings.pool_size, seed=0)
        retrievers[sampler] = Retriever(settings, selector, pool, encoder)
        retrievers[sampler].retrieve(rows[0], 2)  # as the served model does while it is loaded
    for row in rows:
        for sampler, retriever in retrievers.items():
            times[sampler] += timed(partial(retriever.retrieve, shots=2), [row]).tolist()
    (base50, base95), (p50, p95) = (np.percentile(measured, [50, 95]) for measured in times.values())
    return f"{items:,} | {p50:.1f} | {p95:.1f} | {base50:.1f} | {base95:.1f} | {p50 / base50:.1f}"


def print_pool_requests(sizes: str, encoder: Encoder) -> None:
    """Measures and prints the table of pools."""
    print(f"\n{torch.get_num_threads()} threads\n\n| items | p50, ms | p95, ms | random, p50 | random, p95 | ratio of p50 |")
    print("|---|---|---|---|---|---|")
    for size in sizes.split(","):
        print(f"| {pool_requests(int(size), encoder)} |", flush=True)


@click.command()
@click.option("--pools", default="", help="Sizes of pools, separated by commas, to be measured in place of the server.")
@click.option("--rows", default=1_000, show_default=True, help="Number of rows of the largest request.")
@click.option("--starts", default=6, show_default=True, help="Number of fresh starts of the server.")
def main(rows: int, starts: int, pools: str) -> None:
    """Measures and prints the tables of docs/performance.md."""
    resources = Resources(cache_dir=default_cache_dir())
    if pools:
        print_pool_requests(pools, Encoder(resources.encoder_folder))
        return
    with temporary_store() as (uri, folder):
        retriever, checkpoint = log_models(resources, folder)
        model, all_rows = mlflow.pyfunc.load_model(f"models:/{retriever}"), rows_of(resources, rows)
        first_body = json.dumps({"inputs": all_rows[IMAGES][:1]}).encode()

        singles, many, firsts, ready, memory = {}, {}, [], [], []
        for start in range(starts):
            with served(retriever, uri, folder) as server:
                url = server.url
                memory.append(server.memory())
                times = timed(partial(post, url), [first_body] * (1 + AFTER_FIRST))
                firsts.append(times[0] / np.median(times[1:]))
                ready.append(server.seconds)
                if start == starts - 1:
                    singles = {kind: single_requests(url, all_rows[kind], model) for kind in all_rows}
                    many = {kind: batches(url, all_rows[kind]) for kind in all_rows}
                    answer_ms = float(np.median(timed(partial(post, url), [first_body] * REQUESTS)))
        with served(checkpoint, uri, folder) as server:
            base_seconds, base_memory = server.seconds, server.memory()
        reload_ms = reloaded(retriever, all_rows[IMAGES][0])

    print(
        "\n| one row | p50, ms | p95, ms | in process, p50 | in process, p95 | HTTP / in process |\n|---|---|---|---|---|---|"
    )
    for kind, line in singles.items():
        print(f"| {kind} | {line} |")
    print(f"\n| {rows:,} rows | p50, s | p95, s | row by row, s | times as fast |\n|---|---|---|---|---|")
    for kind, line in many.items():
        print(f"| {kind} | {line} |")
    print("\n| server of | ready, s | memory, MB |\n|---|---|---|")
    print(f"| the retriever (median of {starts}) | {np.median(ready):.1f} | {np.median(memory):.0f} |")
    print(f"| an epoch's checkpoint | {base_seconds:.1f} | {base_memory:.0f} |")
    print(f"| ratio | {np.median(ready) / base_seconds:.2f} | {np.median(memory) / base_memory:.2f} |")
    ratios = ", ".join(f"{ratio:.2f}" for ratio in sorted(firsts))
    print(f"\nFirst request / median of the next {AFTER_FIRST}, {starts} fresh starts: {ratios}")
    print(f"An answer: {answer_ms:.1f} ms; loading the model for each: {reload_ms:.0f} ms, {reload_ms / answer_ms:.0f} times")


if __name__ == "__main__":
    main()
