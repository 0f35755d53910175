"""Runs the campaign: kills at random moments, and several commands on one store at the same time.

The results of each round are added to ``results.jsonl`` in the folder ``--work``, so that a campaign that was ended goes on
with the next round when it is started again. At the end there is a table of all results, as Markdown.

    python -m benchmarks.campaign [--parts kills,promotions] [--kills 100] [--seed 0]
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from benchmarks.campaign.kills import TARGETS, Kills, rounds

PARTS = ("kills",)


class Results:
    """Keeps the results of rounds in a file of a line for each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, found: dict[str, Any]) -> None:
        """Adds the result of a round, and prints it."""
        with self.path.open("a") as file:
            file.write(json.dumps({**found, "at": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n")
        click.echo(f"{found['target']} round {found['round']}: {len(found['kills'])} kills, {len(found['faults'])} faults")
        for fault in found["faults"]:
            click.echo(f"  {fault}")

    def of(self, target: str, seed: int) -> list[dict[str, Any]]:
        """Returns the results of a target."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        results = [json.loads(line) for line in lines]
        return [found for found in results if (found["target"], found["seed"]) == (target, seed)]


def table_of_kills(results: Results, seed: int) -> str:
    """Returns the results of the kills as a table."""
    lines = ["| killed | rounds | kills | of these before a write | rounds with a fault |", "|---|---:|---:|---:|---:|"]
    for target in TARGETS:
        found = results.of(target.name, seed)
        kills = [kill for one in found for kill in one["kills"]]
        writes = sum(kill.startswith("before") for kill in kills)
        lines.append(
            f"| `{target.name}` | {len(found)} | {len(kills)} | {writes} | {sum(bool(one['faults']) for one in found)} |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--parts", default=",".join(PARTS), show_default=True, help="Parts that are run, separated by commas.")
@click.option("--targets", default=",".join(target.name for target in TARGETS), show_default=True, help="What is killed.")
@click.option("--kills", default=100, show_default=True, help="Number of kills.")
@click.option("--seed", default=0, show_default=True, help="Seed of the moments.")
@click.option("--work", default=".campaign", show_default=True, type=click.Path(path_type=Path), help="Folder of the campaign.")
def main(parts: str, targets: str, kills: int, seed: int, work: Path) -> None:
    """Runs the parts and prints the tables; ends with status 1 where a round had a fault."""
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    results, faults = Results(work / "results.jsonl"), 0
    if "kills" in parts.split(","):
        for target in TARGETS:
            work_of = Kills(work, target, seed)
            if target.name in targets.split(","):
                rounds(work_of, round(kills * target.share), results.of(target.name, seed), results.add)
            faults += sum(len(found["faults"]) for found in results.of(target.name, seed))
        click.echo(f"\n{table_of_kills(results, seed)}")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
