"""Takes parts of the world away from running experiments, and says what became of them.

Each case runs the whole experiment in small in a folder, a store and a cache of its own. In the middle of a stage something
goes away: the tracking server, the space on a disk, a folder, memory, the process itself. Promised is that the command goes on,
or ends with one line and a non-zero exit code; that no run stays RUNNING; and that the same command afterwards has the
results of an experiment that nothing disturbed, with one version of the model. Anything else is a fault.

    python -m benchmarks.outages [--cases full-disk,signals] [--stages rce,evaluate] [--keep FOLDER]

It takes Linux, and root for the cases that mount disks.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from benchmarks.outage_cases import Cases, Row, cache_deleted, database_deleted, full_disk, read_only
from benchmarks.outage_inputs import images, rl_data
from benchmarks.outage_processes import PROCESS_CASES
from benchmarks.outage_servers import second_server, tracking_server, vlm_server
from benchmarks.outage_world import STAGES, World, preload

CASES: dict[str, Callable[[Cases], Iterator[Row]]] = {
    "tracking-server": tracking_server,
    "second-server": second_server,
    "vlm-server": vlm_server,
    "full-disk": full_disk,
    "read-only": read_only,
    "cache-deleted": cache_deleted,
    "database-deleted": database_deleted,
    "rl-data": rl_data,
    "images": images,
    **PROCESS_CASES,
}


def line(row: Row) -> str:
    """Writes a row of the Markdown table."""
    fault = f"FAULT: {row.fault}" if row.fault else "as promised"
    return "| " + " | ".join(part.replace("|", "\\|") for part in (*row[:5], fault)) + " |"


@click.command()
@click.option(
    "--cases", "names", default=",".join(CASES), show_default=True, help="Names of the cases to try, separated by commas."
)
@click.option(
    "--stages",
    default=",".join(STAGES),
    show_default=True,
    help="Stages of the experiment at which the cases are tried, separated by commas.",
)
@click.option(
    "--keep", type=click.Path(path_type=Path), help="New folder in which the store, cache and data of each case are kept."
)
def main(names: str, stages: str, keep: Path | None) -> None:
    """Tries the cases and prints a table of what happened."""
    folder = keep or Path(tempfile.mkdtemp(prefix="outages-"))
    folder.mkdir(exist_ok=True, parents=True)
    preload()
    rows = []
    try:
        calm = World(folder / "undisturbed")
        empty = shutil.copy(calm.part("store") / "mlflow.db", folder / "empty.db")
        ended, results = calm.main(), calm.results()
        if ended.code:
            raise click.ClickException(f"nothing was disturbed, and yet: {ended.errors[-2000:]}")
        cases = Cases(folder, results.values, calm.part("cache"), Path(empty), tuple(stages.split(",")))
        print("| case | stage | what happened | runs | the same command afterwards | verdict |\n|---|---|---|---|---|---|")
        for name in names.split(","):
            for row in CASES[name](cases):
                rows.append(row)
                print(line(row), flush=True)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(any(row.fault for row in rows))


if __name__ == "__main__":
    main()
