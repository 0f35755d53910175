"""Runs several commands at the same time on one store, and looks whether anything was lost, doubled or refused with a riddle.

On SQLite and on a tracking server with PostgreSQL alike, one part follows the other on the same store: four experiments of
different betas, two of the same beta, eight promotions, and four servers that load the champion while it changes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.campaign.kills import FORCED, SMALL, answer_of, differences
from benchmarks.campaign.places import LIMIT, Place, entry_point, kill_group
from tests.helpers.servers import Postgres, Server, free_port

STORES = ("sqlite", "postgresql")
NAME = "lever-selector-mini-mini"
BETAS, TWINS = ("0.05", "0.12", "0.15", "0.5"), "0.3"
PROMOTIONS, SERVERS = 8, 4
SERVER_ERRORS = ("locked", "deadlock", "Traceback")


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[Place]:
    """Opens an empty store of a kind for as long as the block lasts."""
    place = Place(folder)
    place.begin()
    if kind == "sqlite":
        yield place
        return
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert programs, "PostgreSQL is not installed: apt-get install postgresql"
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pg-") as at:  # where another user may enter, and the path is short
        postgres = Postgres(Path(at), programs[-1].parent)
        postgres.start()
        (folder / "server").mkdir()
        server = Server(folder / "server", store=postgres.uri, workers=2)
        server.start()
        try:
            yield Place(folder, server.uri)
        finally:
            server.kill()
            postgres.stop()


def at_once(place: Place, commands: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Starts commands at the same time, and returns the exit status and the output of each."""
    logs = [place.folder / f"output-{number}.txt" for number in range(len(commands))]
    for log in logs:
        log.unlink(missing_ok=True)
    processes = [place.start(command, log) for command, log in zip(commands, logs, strict=True)]
    ends = time.monotonic() + LIMIT
    for process in processes:
        try:
            process.wait(max(1.0, ends - time.monotonic()))
        finally:
            kill_group(process)
    outputs = [log.read_text(errors="replace") for log in logs]
    return [(process.wait(), output) for process, output in zip(processes, outputs, strict=True)]


def unclear(outputs: Sequence[tuple[int, str]], may_refuse: bool = False) -> list[str]:
    """Names the outputs that hold more than a line of refusal, where refusals are allowed, or another failure."""
    faults = []
    for status, output in outputs:
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        is_refusal = may_refuse and status == 1 and len(errors) == 1
        if (status != 0 and not is_refusal) or any(word in output for word in SERVER_ERRORS):
            faults.append(f"status {status}: {output[-1500:]}")
    return faults


def mains(place: Place, reference: dict[str, Any]) -> tuple[list[str], str]:
    """Runs experiments of different betas; each must end as it does alone, and nothing of it may be lost."""
    outputs = at_once(place, [entry_point("main", "--kl_betas", beta, *SMALL) for beta in BETAS])
    outcome = place.outcome()
    faults = unclear(outputs) + running(outcome) + as_alone(outcome, reference)
    aliases = registered(outcome)["aliases"]
    if sorted(aliases) != sorted(f"kl-{beta.replace('.', '-')}" for beta in BETAS) or len(set(aliases.values())) != len(BETAS):
        faults.append(f"aliases: {aliases}")
    return faults, f"{len(registered(outcome)['versions'])} versions; {repeated(outcome)}"


def twins(place: Place, reference: dict[str, Any]) -> tuple[list[str], str]:
    """Runs two experiments of the same beta, which must register one version."""
    before = len(registered(place.outcome())["versions"])
    outputs = at_once(place, [entry_point("main", "--kl_betas", TWINS, *SMALL)] * 2)
    outcome = place.outcome()
    faults = unclear(outputs) + running(outcome) + as_alone(outcome, reference)
    versions = registered(outcome)["versions"]
    if len(versions) != before + 1:
        faults.append(f"{len(versions)} versions, not {before + 1}")
    return faults, f"{len(versions) - before} version more; {repeated(outcome)}"


def promotions(place: Place, _: dict[str, Any]) -> tuple[list[str], str]:
    """Promotes versions of two betas in turn; what was done must have happened in some order, one after the other."""
    betas = [("0.12", "0.15")[number % 2] for number in range(PROMOTIONS)]
    outputs = at_once(place, [entry_point("promote", "--kl_beta", beta, *FORCED) for beta in betas])
    outcome = place.outcome()
    aliases = registered(outcome)["aliases"]
    faults = unclear(outputs, may_refuse=True) + running(outcome)
    changes = [(former, new) for former, new in outcome["promotions"]]
    order = serial_order(changes, None)
    if order is None or (order[-1], order[-2] if len(order) > 2 else None) != (
        aliases.get("champion"),
        aliases.get("previous-champion"),
    ):
        faults.append(f"promotions {changes} leave {aliases}")
    n_refused = sum(status != 0 for status, _ in outputs)
    n_already = PROMOTIONS - len(changes) - n_refused
    return faults, f"{len(changes)} promoted, {n_refused} refused, {n_already} found it champion already"


def servers(place: Place, _: dict[str, Any]) -> tuple[list[str], str]:
    """Lets servers load the champion while it changes; each must answer as the server of one of the versions."""
    ports = [free_port() for _ in range(SERVERS)]
    logs = [place.folder / f"server-{port}.txt" for port in ports]
    processes = [place.start(serving(f"{NAME}@champion", port), log) for port, log in zip(ports, logs, strict=True)]
    changes = []
    for name, *options in (("promote", "--kl_beta", "0.05", *FORCED), ("rollback",), ("promote", "--kl_beta", "0.5", *FORCED)):
        ended = place.run(entry_point(name, *options))
        changes.append((ended.status, ended.output))
    answers = [_first_answer(port) for port in ports]
    for process in processes:
        kill_group(process)
        process.wait()
    possible = {_alone(place, version) for version in registered(place.outcome())["versions"]}
    faults = unclear(changes)
    for answer, log in zip(answers, logs, strict=True):
        output = log.read_text(errors="replace")
        if answer not in possible or "Traceback" in output:
            faults.append(f"answered {answer[:300]}: {output[-1500:]}")
    summary = f"{len(answers)} servers answered as one of the versions, which give {len(possible)} different answers"
    return faults, f"{len(changes)} changes, {summary}"


PARTS: dict[str, Callable[[Place, dict[str, Any]], tuple[list[str], str]]] = {
    "mains": mains,
    "twins": twins,
    "promotions": promotions,
    "servers": servers,
}


def serving(model: str, port: int) -> list[str]:
    """Returns the command of a server of a model."""
    return [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        f"models:/{model}",
        "--env-manager",
        "local",
        "-p",
        str(port),
    ]


def serial_order(changes: Sequence[tuple[str | None, str]], start: str | None) -> list[str | None] | None:
    """Returns the champions one after the other if all changes can have happened so, each from the former one; else None."""
    if not changes:
        return [start]
    for number, (former, new) in enumerate(changes):
        if former == start:
            rest = serial_order([*changes[:number], *changes[number + 1 :]], new)
            if rest is not None:
                return [start, *rest]
    return None


def registered(outcome: dict[str, Any]) -> dict[str, Any]:
    """Returns the registered model of an outcome."""
    return dict(outcome["registry"][NAME])


def running(outcome: dict[str, Any]) -> list[str]:
    """Names the runs of an outcome that were left RUNNING."""
    return [f"RUNNING: {name}" for name in outcome["runs that are RUNNING"]]


def as_alone(outcome: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """Says in what the trainings and evaluations differ from those of the undisturbed experiment, where both have them."""
    faults = []
    for kind in ("weights", "records"):
        both = outcome[kind].keys() & reference[kind].keys()
        faults += differences(
            {name: reference[kind][name] for name in both}, {name: outcome[kind][name] for name in both}, kind
        )
    return faults


def repeated(outcome: dict[str, Any]) -> str:
    """Says which steps were done more than once with the same key."""
    twice = {name: count for name, count in Counter(outcome["done more than once"]).items() if count}
    return f"done more than once: {', '.join(f'{name} ({count})' for name, count in sorted(twice.items())) or 'nothing'}"


def _first_answer(port: int) -> str:
    ends = time.monotonic() + LIMIT / 3
    while not (answer := answer_of(port)) and time.monotonic() < ends:
        time.sleep(0.5)
    return answer


def _alone(place: Place, version: str) -> str:
    port = free_port()
    process = place.start(serving(f"{NAME}/{version}", port), place.folder / "server.txt")
    try:
        return _first_answer(port)
    finally:
        kill_group(process)
        process.wait()


def run_parts(work: Path, kind: str, parts: Sequence[str], report: Callable[[dict[str, Any]], None]) -> None:
    """Runs parts one after the other on a new store of a kind; ``mains`` always, as the others work on what it leaves."""
    path = work / "undisturbed-experiment.json"
    reference = json.loads(path.read_text())["outcome"] if path.exists() else {"weights": {}, "records": {}}
    with opened(kind, work / f"several-{kind}") as place:
        for name, part in PARTS.items():
            if name in parts or name == "mains":
                since = time.monotonic()
                faults, summary = part(place, reference)
                seconds = round(time.monotonic() - since)
                report({"target": name, "store": kind, "faults": faults, "summary": summary, "s": seconds})
