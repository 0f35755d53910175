"""Times an epoch of training by how OpenMP's threads wait for each other, on an idle machine and beside other work.

``active`` is what OpenMP does when nobody sets ``OMP_WAIT_POLICY``: a thread that waits turns in a loop for a while before it
sleeps. ``passive``, which this package sets, lets it sleep at once. ``one thread`` has nothing to wait for. The policy is read
once, when PyTorch is loaded, so each measurement has a process of its own; the ways take turns, and the median counts. The
other work is processes that compute without end, which this script starts and stops. Weights after the epoch must be the same
bytes whichever way the threads of one number wait.

    python -m benchmarks.threads [--queries 640] [--burners 0,1,2] [--repeats 5]
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

CORES = len(os.sched_getaffinity(0))
ACTIVE, PASSIVE, ONE = "active", "passive", "one thread"
WAYS = {  # name -> environment
    # the number of turns that OpenMP takes where neither variable is set; it counts for more than the policy
    ACTIVE: {"OMP_NUM_THREADS": str(CORES), "GOMP_SPINCOUNT": "300000"},
    PASSIVE: {"OMP_NUM_THREADS": str(CORES), "OMP_WAIT_POLICY": "passive"},
    ONE: {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
}
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
TRAININGS = ("RCE", "GRPO")  # at their default batch sizes


@contextmanager
def other_work(burners: int) -> Iterator[None]:
    """Keeps so many processes computing while the block runs."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(burners)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def figures_of_process(way: str, queries: int) -> dict[str, Any]:
    """Returns what a process of its own prints: seconds and digest of the weights by training, such as ``GRPO seconds``."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-m", "benchmarks.threads", "--queries", str(queries), "--measure"]
    output = subprocess.run(command, env={**environment, **WAYS[way]}, stdout=subprocess.PIPE, check=True).stdout
    figures: dict[str, Any] = json.loads(output)
    return figures


def measure(queries: int) -> dict[str, Any]:
    """Trains an epoch of RCE and one of GRPO in this process, and returns what ``figures_of_process`` reads."""
    import torch

    from benchmarks.training import DIM, GRPO, RCE, SEED, make_data, make_features
    from lever_mlflow.selector.network import PointerSelector
    from lever_mlflow.settings import GrpoSettings
    from lever_mlflow.training.grpo import train_grpo
    from lever_mlflow.training.rce import train_rce

    data = make_data(queries + 1)
    figures: dict[str, Any] = {}
    torch.manual_seed(SEED)
    start = PointerSelector(feature_dim=DIM).eval()
    with tempfile.TemporaryDirectory() as folder:
        features_SD = make_features(Path(folder))
        grpo = replace(GrpoSettings(), epochs=GRPO.epochs, val_share=GRPO.val_share)
        epochs = train_rce(data, features_SD, RCE, seed=SEED), train_grpo(start, data, features_SD, grpo, seed=SEED)
        for name, (epoch,) in zip(TRAININGS, epochs, strict=True):
            weights = b"".join(tensor.numpy().tobytes() for tensor in epoch.state.weights.values())
            figures |= {
                f"{name} seconds": epoch.metrics["train/seconds"],
                f"{name} digest": hashlib.sha256(weights).hexdigest(),
            }
    return figures


def epoch_seconds(burners: int, queries: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Returns the seconds of each epoch, by way and training, beside so many processes."""
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    digests: dict[str, set[str]] = defaultdict(set)
    with other_work(burners):
        for _ in range(repeats):
            for way in WAYS:
                figures = figures_of_process(way, queries)
                for training in TRAININGS:
                    seconds[way][training].append(figures[f"{training} seconds"])
                    if way != ONE:
                        digests[training].add(figures[f"{training} digest"])
    assert all(len(figures) == 1 for figures in digests.values()), f"weights differ: {dict(digests)}"
    return seconds


def print_rows(burners: int, seconds: dict[str, dict[str, list[float]]]) -> None:
    """Prints a row for each way."""
    base = {training: statistics.median(seconds[ACTIVE][training]) for training in TRAININGS}
    for way in WAYS:
        cells = []
        for training in TRAININGS:
            median = statistics.median(seconds[way][training])
            cells.append(f"{median:.2f} | {max(seconds[way][training]):.2f} | {median / base[training]:.2f}")
        print(f"| {burners} | {way} | {' | '.join(cells)} |", flush=True)


@click.command()
@click.option("--queries", default=640, show_default=True, help="Number of training queries of an epoch.")
@click.option("--burners", default=f"0,1,{CORES}", show_default=True, help="Numbers of other processes, separated by commas.")
@click.option("--repeats", default=5, show_default=True, help="Number of times that each way is measured.")
@click.option("--measure", "is_child", is_flag=True, help="Measures in this process and prints JSON, for the script itself.")
def main(queries: int, burners: str, repeats: int, is_child: bool) -> None:
    """Measures and prints the table of docs/performance.md."""
    if is_child:
        print(json.dumps(measure(queries)))
        return
    print(f"{CORES} cores, {queries} queries, {repeats} times\n")
    columns = [f"{name}, {what}" for name in TRAININGS for what in ("s", "longest", "times as long as active")]
    print(f"| other processes | threads | {' | '.join(columns)} |\n|{'---|' * (2 + len(columns))}")
    for count in burners.split(","):
        print_rows(int(count), epoch_seconds(int(count), queries, repeats))


if __name__ == "__main__":
    main()
