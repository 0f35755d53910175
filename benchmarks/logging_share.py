"""Measures what logging an epoch in a real MLflow store costs: metrics, checkpoint and training state, by its training time.

RCE, and GRPO from its first epoch, on 640 queries (pools of 64, 12 pointers of 2 shots, 512 dimensions) at the default batch
sizes, through the same steps that ``mlflow run . -e rce`` and ``-e grpo`` run, on a sqlite store in a temporary folder.

    python -m benchmarks.logging_share [--queries 640] [--epochs 5]
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import mlflow
import numpy as np

from lever_mlflow.files.cache_dir import default_cache_dir
from lever_mlflow.pipeline import epochs as training_epochs
from lever_mlflow.pipeline import training
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.pipeline.resume import UnsentEpochs
from lever_mlflow.pipeline.rollout import read_rl_data
from lever_mlflow.runs import steps
from lever_mlflow.settings import GrpoSettings, RceSettings
from lever_mlflow.trials.rl_data import Group, Trial, save_rl_data

SEED, POOL_SIZE, POINTERS = 0, 64, 12


def write_data(path: Path, n_queries: int, n_items: int) -> None:
    """Writes RL data that pass the gate, with random pointers and rewards."""
    rng = np.random.default_rng(SEED)
    groups = []
    for query in range(n_queries):
        pool = rng.choice([i for i in range(n_items) if abs(i - query) > 5], POOL_SIZE, replace=False)
        firsts = rng.choice(POOL_SIZE, POINTERS, replace=False).tolist()
        scores = rng.choice([0.0, 0.0, 0.6, 1.0], POINTERS).tolist()
        trials = [
            Trial((first, (first + 1 + i) % POOL_SIZE), float(score > 0), score, ("beam", "sample", "random")[i % 3])
            for i, (first, score) in enumerate(zip(firsts, scores, strict=True))
        ]
        groups.append(Group(query, tuple(pool.tolist()), tuple(trials)))
    save_rl_data(path, groups, {})


def timed(spent: dict[str, float], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``function``, whose time is added to what is ``spent`` under ``name``."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **keywords)
        finally:
            spent[name] += time.perf_counter() - started

    return call


class LoggedEpoch(NamedTuple):
    """Holds the seconds of an epoch of training, and the seconds of each kind of logging beside it, as means over epochs."""

    name: str
    training: float
    logging: dict[str, float]


def measure(folder: Path, queries: int, epochs: int) -> Iterator[LoggedEpoch]:
    """Trains RCE and then GRPO with a store in a folder, and yields what an epoch of each costs."""
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("benchmark", artifact_location=f"{folder}/artifacts")
    mlflow.set_experiment("benchmark")
    resources = Resources(cache_dir=default_cache_dir())
    write_data(folder / "data.json", queries, len(resources.train))
    context = Context(resources)
    data = read_rl_data(context, str(folder / "data.json"))
    with steps.project_run("warm-up"):
        start = training.start_of_run(steps.ensure(training.rce_step(context, data, RceSettings(epochs=1))))
    spent: dict[str, float] = defaultdict(float)
    training_epochs._log_model = timed(spent, "checkpoint as a logged model", training_epochs._log_model)
    UnsentEpochs.log_state = timed(spent, "training state", UnsentEpochs.log_state)  # type: ignore[method-assign]
    UnsentEpochs.save_state = timed(spent, "state on disk", UnsentEpochs.save_state)  # type: ignore[method-assign]
    mlflow.log_metrics = timed(spent, "metrics", mlflow.log_metrics)
    for step in (
        training.rce_step(context, data, RceSettings(epochs=epochs)),
        training.round_step(context, data, start, GrpoSettings(epochs=epochs), training.RoundPlace()),
    ):
        spent.clear()
        with steps.project_run(step.name) as run:
            steps.run_here(step)
        seconds = sum(m.value for m in mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/seconds"))
        yield LoggedEpoch(step.name, seconds / epochs, {name: value / epochs for name, value in spent.items()})


@click.command()
@click.option("--queries", default=640, show_default=True, help="Number of training queries of an epoch.")
@click.option("--epochs", default=5, show_default=True, help="Number of epochs to train.")
def main(queries: int, epochs: int) -> None:
    """Prints the time of each kind of logging beside the time of training."""
    with tempfile.TemporaryDirectory() as folder:
        for epoch in measure(Path(folder), queries, epochs):
            print(f"\n{epoch.name}: {epochs} epochs of {epoch.training:.2f} s\n\n| what | s per epoch | share of training |")
            print("|---|---|---|")
            for name, value in epoch.logging.items():
                print(f"| {name} | {value:.3f} | {value / epoch.training:.1%} |")


if __name__ == "__main__":
    main()
