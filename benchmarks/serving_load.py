"""Measures a served retriever under many clients at once, with hostile requests among the good ones.

A good request must be answered with status 200, a hostile one be refused with status 400 and one line. Requests that MLflow's
own server cannot parse, which never reach this package, get status 400 or 500 from it. The table gives the throughput, the
times of the good requests, and the memory of the server every 10 seconds, which should stay the same after the first of them.
Each kind of request has a server of its own, which a single client asks first.

    python -m benchmarks.serving_load [--clients 64] [--seconds 60] [--hostile 0.25]
"""

from __future__ import annotations

import base64
import io
import json
import random
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import click
import numpy as np
from PIL import Image

from benchmarks.serving import IMAGES, Server, bodies_of, log_models, rows_of, served, temporary_store
from lever_mlflow.files.cache_dir import default_cache_dir
from lever_mlflow.pipeline.resources import Resources

TIMEOUT = 120  # seconds for a request
EVERY = 10  # seconds between two figures of the memory


class Load(NamedTuple):
    """Holds what came of a load.

    Attributes:
        times: milliseconds of the good requests.
        statuses: how many requests, good or not, had which status.
        unclear: what was wrong with a reply.
        memory: MB at the start, every ``EVERY`` seconds, and after the last reply.
        seconds: from the start to the last reply.
    """

    times: list[float]
    statuses: Counter[tuple[bool, int]]
    unclear: list[str]
    memory: list[float]
    seconds: float

    @property
    def right(self) -> bool:
        """Returns whether every good request was answered, and every hostile one refused in a line."""
        return not self.unclear

    @property
    def rate(self) -> float:
        """Returns the requests in a second, good or not."""
        return sum(self.statuses.values()) / self.seconds

    def row(self) -> str:
        """Writes a row of the table: good and hostile requests, requests in a second, median and 99th percentile, memory."""
        p50, p99 = np.percentile(self.times, [50, 99])
        good, hostile = (sum(n for (kind, _), n in self.statuses.items() if kind is is_good) for is_good in (True, False))
        memory = ", ".join(f"{megabytes:.0f}" for megabytes in self.memory)
        return f"{good:,} | {hostile:,} | {self.rate:.0f} | {p50:.1f} | {p99:.1f} | {memory}"


def hostile_bodies(row: dict[str, str]) -> list[bytes]:
    """Returns requests that a server must refuse; ``row`` is a good one with an image."""

    def encoded(image: Image.Image) -> str:
        content = io.BytesIO()
        image.save(content, "PNG")
        return base64.b64encode(content.getvalue()).decode()

    rows: list[dict[str, object]] = [
        {**row, "question": ""},
        {**row, "question": "\u200b"},
        {**row, "question": "x" * 100_000},
        {**row, "image": "http://127.0.0.1:1/a.png"},
        {**row, "image": "file:///etc/passwd"},
        {**row, "image": "../../../etc/passwd.png"},
        {**row, "image": "A" * 2_000_000},
        {**row, "image": row["image"][:200]},
        {**row, "image": encoded(Image.new("1", (14_000, 14_000)))},
        {**row, "__class__": "x"},
        {"image_features": [0.0] * 512, "text_features": [0.0] * 512},
        {"image_features": [1e308] * 512, "text_features": [1] * 10**5},
        {},
    ]
    good, huge = json.dumps(row), "9" * 5_000
    texts = [
        "",
        "{",
        "[" * 100_000,
        '{"inputs": ' + "[" * 5_000 + "]" * 5_000 + "}",
        f'{{"inputs": [{good[:-1]}, "x": NaN}}]}}',
        f'{{"inputs": [{good}], "params": {{"shots": {huge}}}}}',
        f'{{"inputs": [{good}], "params": {{"shots": 10000000000}}}}',
        f'{{"inputs": [{good}], "params": {{"shots": "1; DROP TABLE runs"}}}}',
        json.dumps({"inputs": [row] * 10_001}),
        json.dumps({"inputs": [{**row, "question": "\ud800"}]}),
    ]
    return [text.encode() for text in texts] + [json.dumps({"inputs": [hostile]}).encode() for hostile in rows]


def allowed(body: bytes) -> tuple[int, ...]:
    """Returns the statuses that a hostile request may get: MLflow answers what Python's reader of JSON fails on with 500."""
    try:
        json.loads(body)
    except json.JSONDecodeError:
        return (400,)
    except (ValueError, RecursionError):  # numbers of thousands of digits, and nesting
        return (400, 500)
    return (400,)


def send(url: str, body: bytes) -> tuple[int, str]:
    """Sends a request and returns status and text of the reply; status 0 where there was none."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=TIMEOUT
        ) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def load_test(
    server: Server, good: Sequence[bytes], hostile: Sequence[bytes], share: float, clients: int, seconds: float
) -> Load:
    """Sends requests from so many clients for so many seconds; ``share`` of them are hostile."""
    started, lock = time.perf_counter(), threading.Lock()
    load = Load([], Counter(), [], [server.memory()], seconds)

    def client(number: int) -> None:
        rng = random.Random(number)
        while time.perf_counter() < started + seconds:
            is_good = rng.random() >= share
            body = rng.choice(good if is_good else hostile)
            sent = time.perf_counter()
            status, text = send(server.url, body)
            with lock:
                load.statuses[is_good, status] += 1
                if is_good:
                    load.times.append(1e3 * (time.perf_counter() - sent))
                if status not in ((200,) if is_good else allowed(body)) or "Traceback" in text:
                    load.unclear.append(f"{status} for {body[:80]!r}... of {len(body)} bytes: {text[:200]!r}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    while (left := started + seconds - time.perf_counter()) > 0:
        time.sleep(min(EVERY, left))
        load.memory.append(server.memory())
    for thread in threads:
        thread.join()
    return load._replace(memory=[*load.memory, server.memory()], seconds=time.perf_counter() - started)


def check_alone(server: Server, hostile: Sequence[bytes]) -> None:
    """Sends each hostile request once, and prints those that are not refused."""
    for body in hostile:
        status, text = send(server.url, body)
        if status not in allowed(body) or "Traceback" in text:
            print(f"hostile, alone: {status} for {body[:80]!r}... of {len(body)} bytes: {text[:300]!r}", flush=True)


@click.command()
@click.option("--clients", default=64, show_default=True, help="Number of clients that send requests at the same time.")
@click.option(
    "--seconds",
    default=60,
    show_default=True,
    help="Seconds for which the clients send requests. A single client does so for a quarter of them.",
)
@click.option(
    "--hostile", "share", default=0.25, show_default=True, help="Share of the requests that are hostile, from 0 to 1."
)
def main(clients: int, seconds: int, share: float) -> None:
    """Measures and prints the table; ends with status 1 where a reply was wrong."""
    resources = Resources(cache_dir=default_cache_dir())
    loads = []
    print("| requests | clients | good | hostile | requests/s | p50, ms | p99, ms | memory every 10 s, MB |")
    print("|---|---:|---:|---:|---:|---:|---:|---|", flush=True)
    with temporary_store() as (uri, folder):
        retriever, _ = log_models(resources, folder)
        rows = rows_of(resources, 100)
        hostile = hostile_bodies(rows[IMAGES][0])
        for kind in rows:
            with served(retriever, uri, folder) as server:
                if share:
                    check_alone(server, hostile)
                for count in (1, clients):
                    loads.append(
                        load_test(server, bodies_of(rows[kind]), hostile, share, count, seconds / (1 if count > 1 else 4))
                    )
                    print(f"| {kind} | {count} | {loads[-1].row()} |", flush=True)
    for load in loads:
        print(dict(load.statuses), *load.unclear[:10], sep="\n")
    sys.exit(not all(load.right for load in loads))


if __name__ == "__main__":
    main()
