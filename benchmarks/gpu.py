"""Measures everything that docs/performance.md promises of a GPU, and prints one table with targets beside values.

The parts, each of which can be left out:

- ``generation``: a Qwen2.5-VL of real size with 0 to 4 demonstrations against plain generation, its images, and its memory, as
  ``benchmarks/generation.py`` describes.
- ``records``: the embedded default from rollout to evaluation, as a user runs it, on the CPU and on the device with the same
  type of weights. A trial is the same if the other run has one of the same round, query and demonstrations with the same
  generation; a record is the same if policy, question and shots have the same picks and the same answer. Features and weights
  differ in their last digits between devices, so a near tie may end differently: at least 99 % must be the same. Mean
  accuracies must differ by at most one point. The same experiment runs with bfloat16, which has no target.
- ``processes``: two such experiments at the same time on the one device. Each must end with the records of the one that ran
  alone; their time is compared with one after the other.
- ``training``: an epoch of 640 queries, as ``benchmarks/training.py`` describes. Where both sides take the same steps, their
  mean losses must agree to 1e-4.

A part that fails has its error in the table, and the others run nevertheless.

    python -m benchmarks.gpu                                    # on a GPU, all of it at real size
    python -m benchmarks.gpu --device cpu --size tiny --prompts 6 --plain 2    # to try it on a CPU
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pandas as pd
import torch
import transformers

from benchmarks.evaluation_grid import ordered
from benchmarks.figures import Figure, at_least, at_most, chosen_parts, failed, figures_or_failure, print_table
from benchmarks.generation import (
    MAX_SHOTS,
    attainable,
    device_name,
    image_rates,
    measurements,
    model_and_samples,
    now,
    random_prompts,
)
from benchmarks.real_size import SIZES
from benchmarks.training import compare_with_plain, difference_of_losses, make_data, make_features
from lever_mlflow.evaluation.records import REPORT, EvaluationRecords
from lever_mlflow.vlm.prompt import Prompt
from lever_mlflow.vlm.qwen import QwenVLM

ROOT = Path(__file__).parents[1]
TIMES_AS_FAST, OF_ATTAINABLE, SAME, POINTS, LOSS = 20.0, 0.5, 0.99, 1.0, 1e-4
EXPERIMENT = {  # options of the embedded default, for at most a minute
    "kl_betas": 0.12,
    "n_queries": 60,
    "rce_epochs": 3,
    "rounds": 1,
    "grpo_epochs": 2,
    "sizes": 60,
    "n_selection": 20,
    "shots": "1,2",
}
RECORD_KEY = ["policy", "draw", "part", "position", "shots"]


class Choices(NamedTuple):
    """Holds what the user chose."""

    device: str
    size: str
    prompts: int
    plain: int
    queries: int


class Outcome(NamedTuple):
    """Holds what an experiment left behind: trials, records by ``RECORD_KEY``, and mean accuracy in percent."""

    trials: dict[tuple[Any, ...], str]
    records: pd.DataFrame
    accuracy: float


# generation


def generation(choices: Choices, folder: Path) -> Iterator[Figure]:
    """Yields the figures of a Qwen2.5-VL of real size."""
    part, device = "generation", choices.device
    rate = attainable(device)
    yield Figure(part, "attainable rate, bfloat16 product", f"{rate:.3g} TFLOP/s")
    vlm, samples = model_and_samples(folder, choices.size, device)
    started = now(device)  # weights are loaded when they are first needed
    weights = sum(weight.nbytes for weight in vlm.loaded.model.parameters()) / 1e9
    yield Figure(part, f"loading {weights:.2f} GB of weights in {vlm.dtype}", f"{now(device) - started:.1f} s")
    prepared, encoded, tflops = image_rates(vlm, samples)
    yield Figure(part, "preparing images of 640x480 on the CPU", f"{prepared:.1f} images/s")
    yield Figure(part, "vision tower", f"{encoded:.1f} images/s, {tflops / rate:.0%} of attainable")
    for measurement in measurements(vlm, samples, choices.prompts, choices.plain):
        shots = f"{measurement.shots} shots, {measurement.tokens:.0f} tokens"
        yield Figure(part, f"{shots}: prompts/s, plain prompts/s", f"{measurement.ours:.2f}, {measurement.plain:.2f}")
        yield at_least(part, f"{shots}: times as fast as plain", measurement.ours / measurement.plain, TIMES_AS_FAST, ".1f")
        if measurement.tflops is not None and measurement.prefill is not None:
            yield at_least(part, f"{shots}: prefill, share of attainable", measurement.tflops / rate, OF_ATTAINABLE, ".0%")
            yield Figure(part, f"{shots}: prefill, share of the time", f"{measurement.prefill:.0%}")
        yield Figure(part, f"{shots}: answers equal to plain generation's", f"{measurement.equal:.0%}")
        if measurement.peak is not None:
            yield Figure(part, f"{shots}: peak memory of the GPU", f"{measurement.peak:.1f} GB")
    if device == "cuda":
        yield from little_memory(vlm, random_prompts(samples, MAX_SHOTS, choices.prompts))


def little_memory(vlm: QwenVLM, prompts: list[Prompt]) -> Iterator[Figure]:
    """Yields what becomes of batches when the GPU has a third of the memory that they take beside the weights."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    expected, before, weights = ordered(vlm.generate(prompts)), vlm.batch_tokens, torch.cuda.memory_allocated()
    torch.cuda.empty_cache()
    allowed = weights + (torch.cuda.max_memory_allocated() - weights) / 3
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        answers = ordered(vlm.generate(prompts))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    equal = np.mean([ours == theirs for ours, theirs in zip(answers, expected, strict=True)])
    value = f"{before:,} to {vlm.batch_tokens:,}, {equal:.0%} equal answers"
    what = f"with {allowed / 1e9:.1f} GB of memory: tokens of a batch"
    yield Figure("generation", what, value, "fewer", vlm.batch_tokens < before)


# rollout to evaluation of the embedded default


def start_experiment(folder: Path, device: str, dtype: str) -> subprocess.Popen[bytes]:
    """Starts the experiment in a process, with a store and a cache of its own in a folder."""
    folder.mkdir()
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "LEVER_MLFLOW_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    options = {**EXPERIMENT, "device": device, "vlm_dtype": dtype}
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with (folder / "output.txt").open("wb") as output:
        command = [sys.executable, "-m", "entrypoints.main", *arguments]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes], folder: Path) -> Outcome:
    """Waits for an experiment, and reads what it has left behind.

    Raises:
        click.ClickException: the experiment failed; the message holds the end of its output.
    """
    if process.wait() != 0:
        ending = (folder / "output.txt").read_text(errors="replace")[-2_000:]
        raise click.ClickException(f"an experiment of the embedded default failed:\n{ending}")
    trials = {}
    for path in folder.glob("mlruns/*/*/artifacts/rl_data.json"):
        data = json.loads(path.read_text())
        for query, group in data.items():
            for trial in group.get("pointer_candidates", ()):
                trials[data["_meta"]["round"], query, *trial["pointer_global"]] = trial["vqa_raw_generation"]
    paths = folder.glob("mlruns/*/*/artifacts/records.parquet")
    frame = pd.concat([EvaluationRecords.read(path).frame for path in paths]).drop_duplicates(RECORD_KEY)
    accuracy = 100 * frame[frame["part"] == REPORT]["accuracy"].mean()
    picks = frame["picks"].map(lambda picks: tuple(map(int, picks)))
    return Outcome(trials, frame.assign(picks=picks).set_index(RECORD_KEY)[["picks", "answer"]], float(accuracy))


def experiment(folder: Path, device: str, dtype: str) -> tuple[Outcome, float]:
    """Runs the experiment; returns what it has left behind, and its seconds."""
    started = time.perf_counter()
    outcome = finish(start_experiment(folder, device, dtype), folder)
    return outcome, time.perf_counter() - started


def same_trials(ours: Outcome, theirs: Outcome) -> float:
    """Returns the share of our trials that the other run has as well, with the same generation."""
    return float(np.mean([theirs.trials.get(key) == text for key, text in ours.trials.items()]))


def same_records(ours: Outcome, theirs: Outcome) -> float:
    """Returns the share of our records that the other run has as well, with the same picks and the same answer."""
    joined = ours.records.join(theirs.records.add_suffix("_theirs"))
    return float(((joined["picks"] == joined["picks_theirs"]) & (joined["answer"] == joined["answer_theirs"])).mean())


def records(choices: Choices, folder: Path) -> Iterator[Figure]:
    """Yields how far the records of the device are those of the CPU."""
    part, device = "records", choices.device
    expected, seconds = experiment(folder / "cpu", "cpu", "float32")
    yield Figure(part, f"embedded default on the CPU, {len(expected.trials)} trials", f"{seconds:.0f} s")
    for dtype, targets in (("float32", True), ("bfloat16", False)):
        result, seconds = experiment(folder / dtype, device, dtype)
        yield Figure(part, f"embedded default on {device} in {dtype}", f"{seconds:.0f} s")
        shares = (("trials", same_trials(expected, result)), ("records", same_records(expected, result)))
        for what, share in shares:
            name = f"{dtype}: the same {what} as on the CPU"
            yield at_least(part, name, share, SAME, ".1%") if targets else Figure(part, name, f"{share:.1%}")
        difference = abs(result.accuracy - expected.accuracy)
        name = f"{dtype}: difference of mean accuracy, points"
        yield at_most(part, name, difference, POINTS, ".2f") if targets else Figure(part, name, f"{difference:.2f}")


def processes(choices: Choices, folder: Path) -> Iterator[Figure]:
    """Yields how two processes share the device."""
    part, device = "processes", choices.device
    alone, seconds = experiment(folder / "alone", device, "float32")
    started = time.perf_counter()
    folders = [folder / "first", folder / "second"]
    running = [start_experiment(path, device, "float32") for path in folders]
    both = [finish(process, path) for process, path in zip(running, folders, strict=True)]
    together = time.perf_counter() - started
    yield at_most(part, "two at once, times as long as one", together / seconds, 2.0, ".2f")
    for name, outcome in zip(("first", "second"), both, strict=True):
        yield at_least(part, f"{name} of two: the same trials as alone", same_trials(alone, outcome), SAME, ".1%")
        yield at_least(part, f"{name} of two: the same records as alone", same_records(alone, outcome), SAME, ".1%")


# training


def training(choices: Choices, folder: Path) -> Iterator[Figure]:
    """Yields the times of an epoch, and how far the losses of both sides differ where they take the same steps."""
    part, plain = "training", None
    for row in compare_with_plain(make_data(choices.queries + 1), make_features(folder), choices.device):
        what = f"{row.training}, {row.side}, batch {row.batch}: an epoch of {choices.queries} queries"
        yield Figure(part, what, f"{row.seconds:.2f} s, {row.times:.1f} times as fast")
        if row.side == "plain":
            plain = row
        elif row.batch == 1 and plain is not None:
            loss = difference_of_losses(plain, row)
            yield at_most(part, f"{row.training}: difference of mean losses", loss, LOSS, ".1e")


PARTS: dict[str, Callable[[Choices, Path], Iterator[Figure]]] = {
    function.__name__: function for function in (generation, records, processes, training)
}


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True, help="Device to measure.")
@click.option("--size", type=click.Choice(SIZES), default="3b", show_default=True, help="Size of the VLM in generation.")
@click.option("--prompts", default=64, show_default=True, help="Number of prompts for each number of demonstrations.")
@click.option("--plain", default=8, show_default=True, help="Number of these prompts that plain generation answers.")
@click.option("--queries", default=640, show_default=True, help="Number of queries of an epoch of training.")
@click.option("--parts", default=",".join(PARTS), show_default=True, help="Names of the parts to run, separated by commas.")
def main(parts: str, **chosen: Any) -> None:
    """Prints the table."""
    choices, names = Choices(**chosen), chosen_parts(parts, PARTS)
    if choices.device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("PyTorch sees no CUDA device; --device cpu --size tiny tries the benchmark on a CPU")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{device_name(choices.device)}, {datetime.now(UTC):%Y-%m-%d}, {versions}, size {choices.size}\n")
    sys.exit(int(failed(print_table(figures_of(names, choices)))))


def figures_of(names: list[str], choices: Choices) -> Iterator[Figure]:
    """Yields the figures of these parts, each of which has a temporary folder."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            yield from figures_or_failure(name, partial(PARTS[name], choices, Path(folder)))


if __name__ == "__main__":
    main()
