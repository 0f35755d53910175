"""Replaces, edits and deletes what an experiment reads: its RL data between two steps, and images of its data set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.outage_cases import Cases, Row, counts_by_state, ending, fault_of
from benchmarks.outage_world import World, tags_of_newest
from tests.helpers.small_data import write_okvqa_split

_GATE = {"on_bad_data": "warn"}


def rl_data(cases: Cases) -> Iterator[Row]:
    """Edits or deletes the file of RL data between two steps, and deletes it before the evaluation, which does not read it."""
    world = cases.world("rl-data")
    ended = world.run("rollout", {"n_queries": "40"})
    assert ended.code == 0, ended.errors
    (recorded,) = world.part("artifacts").rglob("rl_data.json")
    file = world.part("work") / "rl.json"
    shutil.copy(recorded, file)
    steps: tuple[tuple[str, dict[str, str]], ...] = (
        ("validate", {}),
        ("rce", {"epochs": "1"}),
        ("grpo", {"epochs": "1", "rounds": "1", "kl_beta": "0.12"}),
    )
    for name, options in steps:
        run = partial(world.run, name, {"rl_data": str(file), **options, **_GATE})
        first = digest_after(world, name, run)
        edit(file)
        ended = run()
        tags = tags_of_newest(world, name)
        changed = tags.get("lever.rl_data_digest") != first
        yield plain(world, "RL data edited between two steps", name, ended, "" if changed else "the digest is the former one")
        by_run = {"rl_data": tags_of_newest(world, name)["run_id"], **options, **_GATE}
        edit(file)
        ended = world.run(name, by_run)
        yield plain(world, "RL data edited, and given by a run that read them", name, ended, "" if ended.code else "went on")
        away = file.rename(file.with_suffix(".away"))
        ended = world.run(name, {"rl_data": str(file), **options, **_GATE})
        yield plain(world, "RL data deleted", name, ended, "" if ended.code else "went on")
        away.rename(file)
    file.unlink()
    ended = world.run("evaluate", {"kl_beta": "0.12", "sizes": "10,20", "n_selection": "10", "shots": "1,2"})
    yield plain(world, "RL data deleted", "evaluate", ended, "did not go on" if ended.code else "")


def digest_after(world: World, name: str, run: Callable[[], Any]) -> str:
    """Runs a step, and returns the digest of the RL data that it recorded."""
    ended = run()
    assert ended.code == 0, ended.errors
    return str(tags_of_newest(world, name)["lever.rl_data_digest"])


def plain(world: World, case: str, stage: str, ended: Any, wrong: str) -> Row:
    """Makes a row of a command that is not repeated."""
    faults = [*fault_of(ended, None), *([wrong] if wrong else [])]
    return Row(case, stage, ending(ended), counts_by_state(world.results().states), "-", "; ".join(faults))


def edit(file: Path) -> None:
    """Turns the first trial of a file of RL data around, so that its digest is another one."""
    content = json.loads(file.read_text(encoding="utf-8"))
    query = next(name for name in content if name != "_meta")
    trial = content[query]["pointer_candidates"][0]
    trial["vqa_correct"] = 1 - int(trial["vqa_correct"])
    trial["vqa_acc_score"] = 1.0 - float(trial["vqa_acc_score"])
    content[query]["pointer_candidates"].append(content[query]["pointer_candidates"].pop(0))
    file.write_text(json.dumps(content), encoding="utf-8")


def images(cases: Cases) -> Iterator[Row]:
    """Deletes an image of an evaluation question, or of all training items, or replaces it by another picture."""
    options = {"dataset": "data"}
    calm = data_world(cases, "images-calm", options)
    ended = calm.main()
    assert ended.code == 0, ended.errors
    compared = cases.compared_with(calm.results().values)
    for what, split in (("deleted", "val"), ("replaced", "val"), ("replaced", "train")):
        for stage in {"rollout", "baselines", "evaluate"} & set(cases.stages):
            world = data_world(cases, f"images-{what}-{split}-{stage}", options)
            folder = world.part("work") / "data" / f"{split}2014"
            away = folder.with_name("away")
            strike = partial(take_away if what == "deleted" else replace_all, folder, away)
            yield compared.disturbed(f"{split} images {what}", stage, world, strike, partial(bring_back, folder, away))


def data_world(cases: Cases, name: str, options: dict[str, str]) -> World:
    """Makes a world with a data set of its own in its working folder."""
    world = cases.world(name, answers=False, options=options)
    root = world.part("work") / "data"
    root.mkdir()
    write_okvqa_split(root, "train", 160, first_image=1)
    write_okvqa_split(root, "val", 60, first_image=1001)
    return world


def take_away(folder: Path, away: Path) -> None:
    """Moves a folder of images away."""
    folder.rename(away)
    folder.mkdir()


def replace_all(folder: Path, away: Path) -> None:
    """Puts other pictures in the place of images."""
    shutil.copytree(folder, away)
    for number, path in enumerate(sorted(folder.iterdir())):
        pixels = np.random.default_rng(10_000 + number).integers(0, 255, (56, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def bring_back(folder: Path, away: Path) -> None:
    """Puts the images back, where they were taken away."""
    if away.is_dir():
        shutil.rmtree(folder)
        away.rename(folder)
