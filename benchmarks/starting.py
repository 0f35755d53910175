"""Measures what starting a command costs, each in a process of its own, by seconds of processor time.

The commands work on a small experiment of the embedded default that has finished, in a store and a cache of their own. So they
do little but start. The baseline is ``python -c "import mlflow"`` in the same run, in turn with them. ``mlflow run`` of a
project that does nothing shows what MLflow's own command costs. Another checkout of this repository, such as one of an earlier
commit, can be measured in the same run as a further side. It then runs an experiment of its own first.

    python -m benchmarks.starting [--repeats 3] [--other FOLDER]
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import click

HERE = Path(__file__).parents[1]
SMALL = ("--kl_betas=0.12", "--n_queries=60", "--sizes=20,40", "--n_selection=20", "--shots=1,2", "--rounds=2")
BASELINE = 'python -c "import mlflow"'
MLFLOW_RUN, REUSED_ROLLOUT, REUSED_MAIN = "mlflow run of a project that does nothing", "rollout, reused", "main, reused"
NOTHING = "name: nothing\nentry_points:\n  main:\n    command: 'true'\n"
COMMANDS = {
    "main --help": ("main", "--help"),
    "status": ("status",),
    "promote --plan=true": ("promote", "--kl_beta=0.12", "--plan=true"),
    REUSED_ROLLOUT: ("rollout", "--n_queries=60"),
    REUSED_MAIN: ("main", *SMALL),
    "rce of one epoch, run anew": ("rce", "--epochs=1", "--rerun=true"),
}


def processor_time(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> float:
    """Runs a command to its end, and returns the seconds of processor time that it and its children took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run(
        command, env={**os.environ, **environment}, cwd=folder, capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)}: {process.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


class Side:
    """Runs the commands of one checkout, on a store and a cache of its own."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.environment = {
            "PYTHONPATH": str(checkout),
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "LEVER_MLFLOW_CACHE": str(folder / "cache"),
        }

    def run(self, *arguments: str) -> float:
        """Runs a command of the checkout."""
        name, *options = arguments
        return processor_time([sys.executable, "-m", f"entrypoints.{name}", *options], self.environment, self.folder)


def measure(repeats: int, other: Path | None = None) -> dict[str, list[float]]:
    """Returns the seconds of processor time of each command, by its name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = {"": Side(HERE, folder / "here"), **({", other": Side(other.resolve(), folder / "other")} if other else {})}
        (folder / "nothing").mkdir()
        (folder / "nothing" / "MLproject").write_text(NOTHING)
        mlflow_run = [str(Path(sys.executable).parent / "mlflow"), "run", ".", "--env-manager", "local"]
        seconds: dict[str, list[float]] = {}
        for side, at in sides.items():
            seconds[f"the whole experiment, once{side}"] = [at.run("main", *SMALL)]
        for _ in range(repeats):
            imported = processor_time([sys.executable, "-c", "import mlflow"], {}, folder)
            seconds.setdefault(BASELINE, []).append(imported)
            store = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/here/mlflow.db"}
            seconds.setdefault(MLFLOW_RUN, []).append(processor_time(mlflow_run, store, folder / "nothing"))
            for command, arguments in COMMANDS.items():
                for side, at in sides.items():
                    seconds.setdefault(f"{command}{side}", []).append(at.run(*arguments))
        return seconds


@click.command()
@click.option("--repeats", default=3, show_default=True, help="Number of times that each command is measured.")
@click.option(
    "--other",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of another checkout of this repository, which is measured in the same run.",
)
def main(repeats: int, other: Path | None) -> None:
    """Prints a table of the processor time of each command, and by how much it exceeds the baseline."""
    seconds = measure(repeats, other)
    baseline = median(seconds[BASELINE])
    print("| command | s | longest | times the baseline |\n|---|---|---|---|")
    for command, spent in seconds.items():
        print(f"| {command} | {median(spent):.2f} | {max(spent):.2f} | {median(spent) / baseline:.1f} |")


if __name__ == "__main__":
    main()
