"""Measures a served retriever by the form of its requests, beside that of another checkout where one is given.

One row is sent in each form over a connection that is kept, and over a new connection for each request, as the other benchmarks
send it. Then 1,000 rows of features are sent in each form. At last many clients send requests of one row at once. Two servers
are asked in turn, so that other work on the machine hits both alike. A server of another checkout runs that checkout's code,
which is part of its model. A form that it does not take has no figures.

    OMP_NUM_THREADS=1 python -m benchmarks.serving_forms [--other FOLDER] [--clients 64] [--seconds 60]
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click
import numpy as np
import pandas as pd

from benchmarks.serving import FEATURES, IMAGES, Server, rows_of, served, temporary_store, timed
from benchmarks.serving_load import load_test
from lever_mlflow.data.features import FeatureTable
from lever_mlflow.files.cache_dir import default_cache_dir
from lever_mlflow.pipeline.resources import Resources

JSON, PARQUET = "application/json", "application/vnd.apache.parquet"
ROUNDS, REQUESTS, BATCHES, ROWS = 10, 30, 5, 1_000  # requests of one row in a round; requests of many rows; rows of these
HERE, ROOT = "this checkout", Path(__file__).parents[1]
LOGGING = """
import sys
from pathlib import Path
import mlflow
from benchmarks.serving import log_models
from lever_mlflow.files.cache_dir import default_cache_dir
from lever_mlflow.pipeline.resources import Resources

uri, folder = sys.argv[1:]
mlflow.set_tracking_uri(uri)
mlflow.set_experiment("serving")
print(log_models(Resources(cache_dir=default_cache_dir()), Path(folder))[0])
"""


class Form(NamedTuple):
    """Describes a form of requests: its name, its content type, and how rows become a body."""

    name: str
    content_type: str
    body: Callable[[Sequence[dict[str, Any]]], bytes]


def as_json(write: Callable[[np.ndarray], Any], rows: Sequence[dict[str, Any]]) -> bytes:
    """Returns a request whose arrays are written by a function."""
    return json.dumps({"inputs": [{name: write(value) for name, value in row.items()} for row in rows]}).encode()


def as_parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    """Returns a request whose arrays are the bytes of their numbers."""
    return bytes(pd.DataFrame([{name: value.tobytes() for name, value in row.items()} for row in rows]).to_parquet())


LISTS = Form("lists of numbers, as Python writes them", JSON, partial(as_json, np.ndarray.tolist))
BASE64 = Form("base64", JSON, partial(as_json, lambda vector: base64.b64encode(vector.tobytes()).decode()))
FORMS = (
    LISTS,
    Form("lists of numbers with 9 digits", JSON, partial(as_json, lambda vector: [float(f"{x:.9g}") for x in vector])),
    BASE64,
    Form("bytes in Parquet", PARQUET, as_parquet),
)
AS_TEXT = Form(IMAGES, JSON, partial(as_json, lambda value: value))


class Connection:
    """Sends requests to a server, over one connection or over a new one for each."""

    def __init__(self, server: Server, content_type: str, keep_alive: bool) -> None:
        self._keep_alive, self._type = keep_alive, content_type
        self._connection = http.client.HTTPConnection(urlsplit(server.url).netloc)

    def post(self, body: bytes) -> int:
        """Sends a request, and returns the status of the answer."""
        self._connection.request("POST", "/invocations", body, {"Content-Type": self._type})
        reply = self._connection.getresponse()
        reply.read()
        if not self._keep_alive:
            self._connection.close()
        return reply.status


class Times(NamedTuple):
    """Holds milliseconds of requests, and milliseconds of the server's processor time for each on average."""

    milliseconds: np.ndarray
    processor: float


def times_by_server(
    servers: Mapping[str, Server], form: Form, bodies: Sequence[bytes], keep_alive: bool, rounds: int
) -> dict[str, Times]:
    """Sends all requests so many times to each server that takes the form, the servers in turn."""
    times: dict[str, list[np.ndarray]] = {}
    processor = dict.fromkeys(servers, 0.0)
    for number in range(rounds + 1):
        for name, server in servers.items():
            connection = Connection(server, form.content_type, keep_alive)
            if connection.post(bodies[0]) != 200:
                continue
            before, times_of_bodies = server.processor_time(), timed(connection.post, bodies)
            if number:  # the first round warms up
                times.setdefault(name, []).append(times_of_bodies)
                processor[name] += server.processor_time() - before
    return {name: Times(np.concatenate(t), 1e3 * processor[name] / (rounds * len(bodies))) for name, t in times.items()}


def lines(name: str, size: int, results: Mapping[str, Times]) -> Iterator[str]:
    """Writes the rows of a table, one for each server; the last column is this checkout's processor time by the server's."""
    for side, (milliseconds, processor) in results.items():
        p50, p95 = np.percentile(milliseconds, [50, 95])
        ratio = f"{results[HERE].processor / processor:.2f}"
        yield f"| {name} | {size / 1e3:,.1f} | {side} | {p50:.1f} | {p95:.1f} | {processor:.1f} | {ratio} |"


def logged_by(checkout: Path, uri: str, folder: Path) -> str:
    """Logs a retriever with the code of a checkout, in a process of its own, and returns its model id."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", LOGGING, uri, str(folder)]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment, cwd=checkout, text=True)
    return result.stdout.split()[-1]


def feature_rows(table: FeatureTable, count: int) -> list[dict[str, Any]]:
    """Returns rows of features as arrays, again and again those of the table."""
    return [
        {"image_features": np.array(table.image_SD[i]), "text_features": np.array(table.text_SD[i])}
        for i in (number % len(table.image_SD) for number in range(count))
    ]


def print_forms(servers: Mapping[str, Server], resources: Resources) -> None:
    """Measures and prints the tables of one row and of many rows."""
    rows, images = feature_rows(resources.features("val"), ROWS), rows_of(resources, REQUESTS)[IMAGES]
    head = "size, kB | server of | p50, ms | p95, ms | processor, ms | this / other |\n|---|---:|---|---:|---:|---:|---:|"
    for keep_alive in (True, False):
        print(f"\n| one row, {'one connection' if keep_alive else 'a new connection each'} | {head}", flush=True)
        for form in (AS_TEXT, *FORMS):
            bodies = [form.body([row]) for row in (images if form is AS_TEXT else rows[:REQUESTS])]
            for line in lines(form.name, len(bodies[0]), times_by_server(servers, form, bodies, keep_alive, ROUNDS)):
                print(line, flush=True)
    print(f"\n| {ROWS:,} rows of features | {head}", flush=True)
    for form in FORMS:
        body = form.body(rows)
        for line in lines(form.name, len(body), times_by_server(servers, form, [body], keep_alive=True, rounds=BATCHES)):
            print(line, flush=True)


def print_load(servers: Mapping[str, Server], resources: Resources, clients: int, seconds: float) -> None:
    """Measures and prints the table of many clients, each of which opens a new connection for every request."""
    rows = rows_of(resources, 100)
    print(f"\n| {clients} clients | server of | requests | hostile | requests/s | p50, ms | p99, ms | memory every 10 s, MB |")
    print("|---|---|---:|---:|---:|---:|---:|---|", flush=True)
    for kind in (FEATURES, IMAGES):
        bodies = [AS_TEXT.body([row]) for row in rows[kind]]
        for side, server in servers.items():
            print(f"| {kind} | {side} | {load_test(server, bodies, [], 0, clients, seconds).row()} |", flush=True)


@contextmanager
def started(checkouts: Mapping[str, Path]) -> Iterator[dict[str, Server]]:
    """Serves a retriever of each checkout on the embedded default, by the names of the checkouts."""
    with temporary_store() as (uri, folder), ExitStack() as stack:
        servers = {}
        for name, checkout in checkouts.items():
            (folder / name).mkdir()
            servers[name] = stack.enter_context(served(logged_by(checkout, uri, folder / name), uri, folder))
        yield servers


@click.command()
@click.option(
    "--other",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of another checkout of this repository, which is measured in the same run.",
)
@click.option("--clients", default=64, show_default=True, help="Number of clients that send requests at the same time.")
@click.option(
    "--seconds", default=60, show_default=True, help="Seconds for which the clients send requests of each kind to each server."
)
def main(other: Path | None, clients: int, seconds: int) -> None:
    """Measures and prints the tables."""
    resources = Resources(cache_dir=default_cache_dir())
    with started({HERE: ROOT, **({"the other": other.resolve()} if other else {})}) as servers:
        print(f"load of the machine: {os.getloadavg()[0]:.1f}")
        print_forms(servers, resources)
        print_load(servers, resources, clients, seconds)
        print(f"\nload of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
