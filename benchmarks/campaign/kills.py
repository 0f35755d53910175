"""Kills commands at random moments, starts them again until they finish, and compares what they leave with undisturbed ones.

Each round begins with the same store and cache. Its moments come from the seed, the target and the number of the round: one
half are spread over the processor time of the undisturbed command, the other half over its writes, and some come soon after a
restart.
"""

from __future__ import annotations

import base64
import io
import json
import random
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.campaign.killed import WRITES
from benchmarks.campaign.places import LIMIT, TICK, Ended, Kill, Place, cpu_of_group, entry_point, kill_group
from tests.helpers.servers import free_port

SMALL = ("--n_queries", "60", "--sizes", "20,40", "--n_selection", "20", "--shots", "1,2", "--rounds", "2")
EXPERIMENT = ("main", "--kl_betas", "0.12,0.15", *SMALL)
FORCED = ("--force", "true")
SOON = 0.25  # share of the kills that come soon after the start


@dataclass(frozen=True)
class Target:
    """Describes what is killed.

    Attributes:
        name: of the target.
        command: the entry point with its options.
        after: the target whose outcome the rounds begin with; empty for an empty store.
        first: commands that are run before the rounds begin.
        share: of the kills of the campaign.
        kills: in a round.
        finished: a text in the output of a killed process that says that all was done before.
    """

    name: str
    command: tuple[str, ...]
    after: str
    first: tuple[tuple[str, ...], ...]
    share: float
    kills: int
    finished: str = "\0"


TARGETS = (
    Target("experiment", EXPERIMENT, "", (), 0.5, 5),
    Target("evaluate", ("evaluate", "--kl_beta", "0.12", "--sizes", "30", "--shots", "1"), "experiment", (), 0.15, 3),
    Target(
        "promote",
        ("promote", "--kl_beta", "0.15", *FORCED),
        "experiment",
        (("promote", "--kl_beta", "0.12", *FORCED),),
        0.12,
        2,
    ),
    Target("rollback", ("rollback",), "promote", (), 0.12, 2, "is champion again"),
    Target("serve", ("serve",), "promote", (), 0.11, 3),
)


@dataclass(frozen=True)
class Undisturbed:
    """Holds what an undisturbed run of a target left, its processor time in seconds and its number of writes.

    ``again`` is the processor time of the same command where everything is reused.
    """

    outcome: dict[str, Any]
    cpu: float
    writes: int
    again: float


class Kills:
    """Runs the rounds of one target.

    Args:
        work: the folder of the campaign.
        target: the target.
        seed: of the moments.
    """

    def __init__(self, work: Path, target: Target, seed: int) -> None:
        self.work, self.target, self.seed = work, target, seed
        self.place = Place(work / "store")
        self.former = work / f"before-{target.name}"
        self.reference = self._reference()

    def round(self, number: int) -> dict[str, Any]:
        """Runs a round, and returns its kills and faults."""
        rng = random.Random(f"{self.seed} {self.target.name} {number}")
        self._begin()
        kills, faults, ended, since = [], [], None, time.monotonic()
        for kill in (*self._moments(rng), None):
            ended = self._serve(kill) if self.target.name == "serve" else self._run(kill)
            if ended.killed:
                kills.append(str(kill))
            if "Traceback" in ended.output:
                faults.append(f"a traceback: {ended.output[ended.output.index('Traceback') :][-1500:]}")
            if not ended.killed or self.target.finished in ended.output:
                break
        assert ended is not None, "the last run is not killed"
        if ended.status not in (0, -9):
            faults.append(f"ended with status {ended.status}: {ended.output[-1500:]}")
        faults += self._differences()
        seconds = round(time.monotonic() - since)
        return {"target": self.target.name, "round": number, "seed": self.seed, "kills": kills, "faults": faults, "s": seconds}

    def _moments(self, rng: random.Random) -> Iterator[Kill]:
        """Yields the moments of a round's kills."""
        reference, count = self.reference, self.target.kills
        places = sorted(rng.random() for _ in range(count))
        reached = 0.0
        for place in places:
            soon, by_write = rng.random() < SOON, rng.random() < 0.5 and self.target.name != "serve"
            share = rng.random() * 0.1 if soon else place - reached
            repeated = reference.again if reached and not soon else 0.0
            if not soon:
                reached = place if self.target.name == "experiment" else 0.0
            if by_write:
                yield Kill(write=1 + int(share * reference.writes))
            else:
                yield Kill(cpu=repeated + share * reference.cpu)

    def _begin(self) -> None:
        self.place.begin(self.former if self.target.after else None)

    def _run(self, kill: Kill | None) -> Ended:
        name, *options = self.target.command
        write = 0 if kill is None else kill.write or 0
        return self.place.run(entry_point(name, *options, write=write), kill)

    def _serve(self, kill: Kill | None) -> Ended:
        """Starts a server of the champion, and kills it at its moment or after its answer, which is then kept."""
        port, log = free_port(), self.place.folder / "output.txt"
        before = log.stat().st_size if log.exists() else 0
        model = "models:/lever-selector-mini-mini@champion"
        serve = ["-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local", "-p", str(port)]
        process, answer, cpu, since = self.place.start([sys.executable, *serve], log), "", 0.0, time.monotonic()
        while not answer and process.poll() is None and time.monotonic() - since < LIMIT:
            cpu = max(cpu, cpu_of_group(process.pid))
            if kill is not None and kill.cpu is not None and cpu >= kill.cpu:
                break
            answer = answer_of(port)
            time.sleep(TICK)
        kill_group(process)
        process.wait()
        if answer:
            self._answer.write_text(answer)
        return Ended(0 if answer else -9, not answer, log.read_bytes()[before:].decode(errors="replace"), cpu)

    @property
    def _answer(self) -> Path:
        return self.place.folder / "answer.json"

    def _differences(self) -> list[str]:
        """Says what is different from the undisturbed run, once a further command has been run."""
        self._further_command()
        faults = differences(self.reference.outcome, self._outcome())
        return faults + [f"left behind: {path}" for path in self.place.strays()]

    def _further_command(self) -> None:
        ended = self.place.run(entry_point("compare", "--kl_betas", "0.12,0.15", "--plan", "true"))
        assert ended.status == 0, ended.output

    def _outcome(self) -> dict[str, Any]:
        outcome = self.place.outcome()
        outcome.pop("promotions", None)  # a killed run does not say what it has done
        if self.target.name == "serve":
            outcome["answer"] = json.loads(self._answer.read_text())
        return outcome

    def _reference(self) -> Undisturbed:
        """Runs the target undisturbed, unless that was done already; the rounds begin with what was there before."""
        path, after = self.work / f"undisturbed-{self.target.name}.json", self.work / f"after-{self.target.name}"
        if path.exists():
            return Undisturbed(**json.loads(path.read_text()))
        self.place.begin(self.work / f"after-{self.target.after}" if self.target.after else None)
        for name, *options in self.target.first:
            ended = self.place.run(entry_point(name, *options))
            assert ended.status == 0, ended.output
        self.place.keep(self.former)
        ended = self._serve(None) if self.target.name == "serve" else self._run(None)
        assert ended.status == 0, ended.output
        writes = int(ended.output.rpartition(WRITES)[2].split()[0]) if WRITES in ended.output else 0
        again = self._run(None).cpu if self.target.name == "experiment" else 0.0
        self._further_command() if self.target.name != "serve" else None
        undisturbed = Undisturbed(self._outcome(), ended.cpu, writes, again)
        self.place.keep(after)
        path.write_text(json.dumps(undisturbed.__dict__))
        return undisturbed


def differences(expected: Any, actual: Any, where: str = "") -> list[str]:
    """Names the places at which two values of JSON differ, with both values."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        names = sorted({*expected, *actual})
        return [line for name in names for line in differences(expected.get(name), actual.get(name), f"{where}/{name}")]
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        pairs = enumerate(zip(expected, actual, strict=True))
        return [line for number, pair in pairs for line in differences(*pair, f"{where}/{number}")]
    if expected == actual:
        return []
    texts = json.dumps(expected), json.dumps(actual)
    same = next((at for at, pair in enumerate(zip(*texts, strict=False)) if len({*pair}) > 1), 0)
    return [f"{where}: ...{texts[0][max(0, same - 50) :][:150]}... undisturbed, but ...{texts[1][same:][:100]}"]


def answer_of(port: int) -> str:
    """Asks a server a question about a grey image, and returns its reply as a line of JSON; empty where none answers yet."""
    content = io.BytesIO()
    Image.new("L", (16, 16), 200).save(content, "PNG")
    row = {"question": "what comes after the number in the picture?", "image": base64.b64encode(content.getvalue()).decode()}
    body = json.dumps({"inputs": [row], "params": {"shots": 2}}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.read().decode().strip()
    except urllib.error.HTTPError as error:
        return json.dumps([error.code, error.read().decode()])
    except OSError:
        return ""


def rounds(kills: Kills, n_kills: int, results: list[dict[str, Any]], report: Callable[[dict[str, Any]], None]) -> None:
    """Runs rounds until so many kills are done, those of the rounds that are done included."""
    count = sum(len(result["kills"]) for result in results)
    number = len(results)
    while count < n_kills:
        result = kills.round(number)
        report(result)
        count, number = count + len(result["kills"]), number + 1
