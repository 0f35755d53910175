"""Runs the campaign: kills at random moments, and several commands on one store at the same time.

The results of each round are added to ``results.jsonl`` in the folder ``--work``, so that a campaign that was ended goes on
with the next round when it is started again. At the end there is a table of all results, as Markdown.

    python -m benchmarks.campaign [--parts kills,promotions] [--kills 100] [--seed 0]
"""

from __future__ import annotations

import json
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from benchmarks.campaign.kills import TARGETS, Kills, rounds
from benchmarks.campaign.several import PARTS as SEVERAL
from benchmarks.campaign.several import STORES, run_parts

PARTS = ("kills", *SEVERAL)


class Results:
    """Keeps the results of the rounds in a file of JSON lines, one line for each round."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, result: dict[str, Any]) -> None:
        """Adds the result of a round, and prints it."""
        with self.path.open("a") as file:
            file.write(json.dumps({**result, "at": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n")
        if "kills" in result:
            what = f"round {result['round']}: {len(result['kills'])} kills"
        else:
            what = f"{result['store']}: {result['summary']}"
        click.echo(f"{result['target']} {what}, {len(result['faults'])} faults, {result['s']} s")
        for fault in result["faults"]:
            click.echo(f"  {fault}")

    def of(self, target: str, **further: Any) -> list[dict[str, Any]]:
        """Returns the results of a target, with further values if these are given."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        values = {"target": target, **further}.items()
        return [result for result in map(json.loads, lines) if all(result.get(name) == value for name, value in values)]


def table_of_kills(results: Results, seed: int) -> str:
    """Returns a Markdown table of the rounds in which commands were killed, with a row for each command."""
    lines = ["| killed | rounds | kills | of these before a write | rounds with a fault |", "|---|---:|---:|---:|---:|"]
    for target in TARGETS:
        of_target = results.of(target.name, seed=seed)
        kills = [kill for result in of_target for kill in result["kills"]]
        writes = sum(kill.startswith("before") for kill in kills)
        with_fault = sum(bool(result["faults"]) for result in of_target)
        lines.append(f"| `{target.name}` | {len(of_target)} | {len(kills)} | {writes} | {with_fault} |")
    return "\n".join(lines)


def table_of_several(results: Results) -> str:
    """Returns the results of several commands at the same time as a table, the last one of each part and store."""
    lines = ["| at the same time | store | what came of it | faults |", "|---|---|---|---:|"]
    for part in SEVERAL:
        for store in STORES:
            for result in results.of(part, store=store)[-1:]:
                lines.append(f"| {part} | {store} | {result['summary']} | {len(result['faults'])} |")
    return "\n".join(lines)


@click.command()
@click.option("--parts", default=",".join(PARTS), show_default=True, help="Names of the parts to run, separated by commas.")
@click.option(
    "--targets",
    default=",".join(target.name for target in TARGETS),
    show_default=True,
    help="Names of the commands to kill, separated by commas.",
)
@click.option(
    "--stores",
    default=",".join(STORES),
    show_default=True,
    help="Kinds of stores on which several commands run at once, separated by commas.",
)
@click.option("--kills", default=100, show_default=True, help="Number of kills over all commands together.")
@click.option("--seed", default=0, show_default=True, help="Seed from which the moments of the kills are drawn.")
@click.option(
    "--work",
    default=".campaign",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder in which the campaign keeps its results. A campaign that was ended goes on from them.",
)
def main(parts: str, targets: str, stores: str, kills: int, seed: int, work: Path) -> None:
    """Runs the parts and prints the tables; ends with status 1 where a round had a fault."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started ends too
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    results, faults = Results(work / "results.jsonl"), 0
    if "kills" in parts.split(","):
        for target in TARGETS:
            work_of = Kills(work, target, seed)
            if target.name in targets.split(","):
                rounds(work_of, round(kills * target.share), results.of(target.name, seed=seed), results.add)
            faults += sum(len(result["faults"]) for result in results.of(target.name, seed=seed))
        click.echo(f"\n{table_of_kills(results, seed)}")
    several = [part for part in SEVERAL if part in parts.split(",")]
    for store in stores.split(","):
        if not all(results.of(part, store=store) for part in several):
            run_parts(work, store, several, results.add)
        faults += sum(len(result["faults"]) for part in several for result in results.of(part, store=store)[-1:])
    if several:
        click.echo(f"\n{table_of_several(results)}")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
