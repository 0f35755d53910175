"""Feeds mutated inputs through every door of the library, and counts what comes of them.

Each outcome should be an answer, or an error of one line that names the place. Anything else is a fault, which is printed with
what repeats it: another exception, an answer that is not finite, more time than a limit, an input that is no valid JSON and is
taken all the same, or, for RL data, another decision than that of ``tests/gate/test_fuzz.py``, an independent reading of the
format and the gate's thresholds.

    python -m benchmarks.mutations [--number 10000] [--door rl-data] [--seed 0] [--only 123]
"""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks.mutation_doors import DOORS, Door, Wrong
from lever_mlflow.exceptions import LeverError

LIMIT = 60  # seconds for one input
LONGEST = 20_000  # characters of an error; commands show 2,000 of them
TEXTS = ("", " ", "1", "0.5", "nan", "[]", "<b>&\x00é\u202e\x1b[31m", "x" * 5000, "../../etc/passwd", "'\"`;", "\ud800")
WHOLE = (-1, 0, 1, 2, 64, 10**9, 10**17, 2**31, 2**63, 10**400)
REAL = (0.5, -0.0, 1.0000001, 1e308, 9.99e-320, float("nan"), float("inf"))
ODD: tuple[Any, ...] = (None, True, False, [], {}, [0], [[0, 1]], {"": 0}, [None], *TEXTS, *WHOLE, *REAL)
TOKENS = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 4400,
    b'"\\ud800"',
    b"[" * 3000,
    b"'x'",
    b"01",
    b"1.",
    b"tru",
    b"//x",
    b"\xff\0",
)


def mutated(rng: random.Random, content: bytes) -> bytes:
    """Returns a file's content after one to three mutations of its values, where it holds JSON, or of its bytes, or of both."""
    try:
        value = json.loads(content)
    except ValueError:
        return changed_bytes(rng, content)
    for _ in range(rng.randint(0, 3)):
        change_value(rng, value)
    result = json.dumps(value).encode()
    return changed_bytes(rng, result) if rng.random() < 1 / 3 else result


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the paths of all values inside JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def change_value(rng: random.Random, content: Any) -> None:
    """Replaces, deletes, repeats or renames a value somewhere in JSON, or replaces it everywhere."""
    paths = list(places(content))
    if not paths:
        return
    path = rng.choice(paths)
    parent = content
    for part in path[:-1]:
        parent = parent[part]
    kind = rng.choice(["replace", "replace", "delete", "repeat", "rename", "everywhere", "nest"])
    if kind == "delete":
        del parent[path[-1]]
    elif kind == "repeat" and isinstance(parent, list):
        parent.extend([copy.deepcopy(parent[path[-1]])] * rng.choice([1, 3, 50]))
    elif kind == "rename" and isinstance(parent, dict):
        parent[rng.choice(["", "0", "007", "-1", "²", "pointer", "\x1b[2J", "__class__", "x" * 300])] = parent.pop(path[-1])
    elif kind == "everywhere":
        odd = rng.choice(ODD)
        for other in paths:
            if other[-1] == path[-1]:
                replace(content, other, odd)
    elif kind == "nest":
        parent[path[-1]] = [parent[path[-1]]]
    else:
        parent[path[-1]] = copy.deepcopy(rng.choice(ODD))


def replace(content: Any, path: tuple[Any, ...], value: Any) -> None:
    """Replaces the value at a path, unless an earlier replacement has removed its place."""
    for part in path[:-1]:
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(content, dict) or (isinstance(content, list) and path[-1] in range(len(content))):
        content[path[-1]] = copy.deepcopy(value)


def changed_bytes(rng: random.Random, content: bytes) -> bytes:
    """Cuts, deletes, inserts, flips or doubles bytes, or sets them to what large numbers are made of."""
    for _ in range(rng.randint(1, 3)):
        start, length = rng.randrange(len(content) + 1), rng.randint(1, 40)
        kind = rng.choice(["truncate", "delete", "insert", "flip", "double", "token", "extreme", "swap"])
        before, after = content[:start], content[start:]
        if kind == "truncate":
            content = before
        elif kind == "delete":
            content = before + after[length:]
        elif kind == "insert":
            content = before + rng.randbytes(rng.randint(1, 8)) + after
        elif kind == "flip" and after:
            content = before + bytes([after[0] ^ rng.randint(1, 255)]) + after[1:]
        elif kind == "double":
            content = content[: start + length] + after
        elif kind == "token":
            content = before + rng.choice(TOKENS) + after[rng.randint(0, 4) :]
        elif kind == "extreme":
            width = rng.choice([1, 2, 4, 8])
            content = before + rng.choice([b"\xff", b"\x7f", b"\0"]) * width + after[width:]
        else:
            content = before + after[length : 2 * length] + after[:length] + after[2 * length :]
    return content


def is_strict_json(content: bytes) -> bool:
    """Returns whether a file holds valid JSON in UTF-8, by Python's own reader."""

    def refuse(_: str) -> None:
        raise ValueError

    try:
        json.loads(content.decode("utf-8-sig"), parse_constant=refuse)
    except (ValueError, RecursionError):
        return False
    return True


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in the block after so many seconds."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def outcome(door: Door, name: str, content: bytes) -> str:
    """Returns what comes of a file's content: ``answer``, the class of an error, or ``FAULT`` with its reason."""
    try:
        with limited(LIMIT):
            answer = door.enter(name, content)
    except LeverError as error:
        line = " ".join(str(error).split())
        return type(error).__name__ if 10 < len(line) < LONGEST else f"FAULT: an error of {len(line)} characters"
    except Wrong as error:
        return f"FAULT: {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/lever_mlflow/" in frame.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else f"{last.filename}:{last.lineno}"
        return f"FAULT: {type(error).__name__} at {place}: {str(error)[:150]!r}"
    if door.strict and name.endswith(".json") and not is_strict_json(content):
        return "FAULT: no valid JSON, and taken all the same"
    return answer


def tried(door: Door, number: int, seed: int) -> str:
    """Makes one mutation of a door's good inputs, and returns its outcome."""
    rng = random.Random(f"{seed} {door.name} {number}")
    name = rng.choice(sorted(door.good))
    return outcome(door, name, mutated(rng, door.good[name]))


def table(counts: Mapping[str, Counter[str]]) -> str:
    """Writes a row for each door: how many inputs came to what."""
    lines = ["| door | inputs | answers | errors of one line | faults |", "|---|---:|---:|---:|---:|"]
    for name, count in counts.items():
        faults = sum(number for result, number in count.items() if result.startswith("FAULT"))
        answers = sum(number for result, number in count.items() if result[:1].islower())
        lines.append(f"| {name} | {count.total()} | {answers} | {count.total() - answers - faults} | {faults} |")
    return "\n".join(lines)


@click.command()
@click.option("--number", default=10_000, show_default=True, help="Number of mutated inputs of all doors together.")
@click.option(
    "--door", "only_door", type=click.Choice([door.name for door in DOORS]), help="Name of the only door that is tried."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the mutations.")
@click.option("--only", type=int, help="Number of the only mutation that is tried, to repeat it.")
def main(number: int, only_door: str | None, seed: int, only: int | None) -> None:
    """Tries mutations and prints the table of outcomes."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    doors = [door for door in DOORS if only_door in (None, door.name)]
    counts: dict[str, Counter[str]] = {}
    total = sum(door.share for door in doors)
    with tempfile.TemporaryDirectory() as temporary:
        for make in doors:
            door, started, count = make.opened(Path(temporary) / make.name), time.perf_counter(), Counter[str]()
            numbers = range(round(number * make.share / total)) if only is None else [only]
            for position in numbers:
                result = tried(door, position, seed)
                count["FAULT" if result.startswith("FAULT") else result] += 1
                if result.startswith("FAULT"):
                    print(f"--door {door.name} --seed {seed} --only {position}: {result}", flush=True)
            counts[door.name] = count
            seconds, memory = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            print(f"{door.name}: {dict(count)}, {seconds:.0f} s, {memory:.0f} MB at most so far", flush=True)
    print(f"\n{table(counts)}")
    sys.exit(any(count["FAULT"] for count in counts.values()))


if __name__ == "__main__":
    main()
