"""Compares the prompts per second of ``QwenVLM`` with those of plain generation, on a Qwen2.5-VL of real size, for a GPU.

Weights are random, as speed does not depend on them. ``benchmarks/real_size.py`` describes the sizes ``3b``, ``reduced`` and
``tiny``, which have the true vocabulary. ``embedded`` is the embedded VLM itself, with its profile and questions of its data
set. Images have 640x480 pixels, as most of COCO have; a prompt of k shots has k + 1 of them. Both sides run the profile of a
Qwen2.5-VL (3 beams, 5 new tokens) on the same prompts with the same weights. In plain generation each prompt is a batch of its
own, and every image is encoded each time. On a CPU, ours is also measured with one thread of PyTorch; the two take turns, and
the shortest of ``--repeats`` times counts.

The attainable rate is that of a product of two square matrices in bfloat16, measured in the same run. Prefill is the reading of
prompts whose images have been encoded. Its operations for a prompt of L tokens are 2 W L for the W weights of the language
model without its embedding, and 2 n h L^2 for attention in n layers of h features: the products of queries with keys and of
weights with values, 2 h L^2 each, of which the causal mask needs half. Padding does not count. Those of the vision tower are 2
for each of its weights and patch, or visual token in its merger.

    python -m benchmarks.generation [--size reduced|tiny|embedded] [--prompts 64]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from PIL import Image

from benchmarks.evaluation_grid import PlainVLM, ordered
from benchmarks.real_size import SIZES, write_model
from lever_mlflow import mini
from lever_mlflow.data.okvqa import load_split
from lever_mlflow.data.samples import Sample
from lever_mlflow.files.cache_dir import default_cache_dir
from lever_mlflow.files.images import fitted_image
from lever_mlflow.mini.dataset import ensure_dataset
from lever_mlflow.vlm.profiles import MINI_PROFILE, PROFILES, QWEN_PROFILE
from lever_mlflow.vlm.prompt import Prompt
from lever_mlflow.vlm.qwen import QwenVLM
from lever_mlflow.vlm.vision_cache import visual_tokens

IMAGES, SEED, PATCHES_PER_TOKEN, MAX_SHOTS = 48, 0, 4, 4
MATRIX = {"cuda": 8_192, "cpu": 1_024}  # side of the matrices whose product is the attainable rate
HEAD = (
    *("shots", "tokens of a prompt", "plain, prompts/s", "ours, prompts/s", "times as fast"),
    *("ours with one thread, times as long", "share of the time that is prefill", "prefill, TFLOP/s", "of attainable"),
)


class StagedVLM(QwenVLM):
    """Answers as ``QwenVLM``, and adds up the seconds of reading prompts, after all work on the device is done."""

    prefill = 0.0

    def _read(self, model: Any, batch: Any) -> Any:
        started = now(self.device)
        key_values = super()._read(model, batch)
        self.prefill += now(self.device) - started
        return key_values


class Generation(NamedTuple):
    """Holds what was measured with prompts of one number of shots.

    Attributes:
        shots: number of demonstrations of a prompt.
        tokens: mean number of tokens of a prompt.
        plain, ours: prompts per second.
        alone: how many times as long ours takes with one thread of PyTorch; None on a GPU.
        prefill: share of ours that is reading prompts; None where several threads do that at the same time.
        tflops: rate of reading prompts in 1e12 operations per second; None as ``prefill``.
        equal: share of the prompts answered by both sides with equal answers.
        peak: peak memory of the GPU in GB; None on a CPU.
    """

    shots: int
    tokens: float
    plain: float
    ours: float
    alone: float | None
    prefill: float | None
    tflops: float | None
    equal: float
    peak: float | None


def now(device: str) -> float:
    """Returns the time in seconds, after all work on the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def device_name(device: str) -> str:
    """Returns what the device is called in tables."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"


def attainable(device: str, repeats: int = 10) -> float:
    """Returns the rate of a product of matrices in bfloat16, in 1e12 operations per second: the best of several times."""
    side, times = MATRIX[device], []
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(repeats):
        started = now(device)
        torch.matmul(left, right)
        times.append(now(device) - started)
    return 2e-12 * side**3 / min(times)


def make_samples(folder: Path) -> list[Sample]:
    """Makes samples, each with its own image of noise."""
    rng, samples = np.random.default_rng(SEED), []
    for i in range(IMAGES):
        path = folder / f"{i}.jpg"
        Image.fromarray(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)).save(path)
        samples.append(Sample(i, i, i, f"what is thing {i}?", path, ("a thing",) * 10))
    return samples


def model_and_samples(folder: Path, size: str, device: str) -> tuple[StagedVLM, list[Sample]]:
    """Returns the VLM and samples for its prompts; what is made for them lies in ``folder``."""
    if size == "embedded":
        vlm = StagedVLM(mini.VLM_PATH, "digest", PROFILES[MINI_PROFILE], device)
        return vlm, load_split(ensure_dataset(default_cache_dir()), "train")
    write_model(folder / "model", size, device)  # type: ignore[arg-type]  # click has checked it
    return StagedVLM(folder / "model", "digest", PROFILES[QWEN_PROFILE], device), make_samples(folder)


def random_prompts(samples: Sequence[Sample], shots: int, count: int) -> list[Prompt]:
    """Draws prompts of different samples."""
    rng = np.random.default_rng([SEED, shots])
    drawn = [rng.choice(len(samples), shots + 1, replace=False).tolist() for _ in range(count)]
    return [Prompt(tuple(samples[i] for i in rest), samples[query]) for query, *rest in drawn]


def language_operations(model: Any, lengths: Sequence[int]) -> float:
    """Counts the operations of reading prompts of these lengths, as the module describes."""
    text = model.config.text_config
    weights = sum(p.numel() for name, p in model.model.language_model.named_parameters() if "embed" not in name)
    attention = 2 * text.num_hidden_layers * text.hidden_size
    return float(sum(2 * weights * length + attention * length**2 for length in lengths))


def vision_operations(model: Any, tokens: int) -> float:
    """Counts the operations of encoding images of so many visual tokens, as the module describes."""
    tower = model.model.visual
    merger = sum(p.numel() for p in tower.merger.parameters())
    rest = sum(p.numel() for p in tower.parameters()) - merger
    return 2.0 * tokens * (PATCHES_PER_TOKEN * rest + merger)


def image_rates(vlm: QwenVLM, samples: Sequence[Sample]) -> tuple[float, float, float]:
    """Returns images per second of preparing pixels on the CPU and of the vision tower, and the tower's TFLOP/s."""
    paths = [sample.image_path for sample in samples[:IMAGES]]
    vlm.vision.features(paths[:2])
    vlm.vision.clear()
    bounds = vlm.profile.min_pixels, vlm.profile.max_pixels
    started = now(vlm.device)
    for path in paths:
        vlm.loaded.processor.image_processor(images=[fitted_image(path, *bounds)], return_tensors="pt")
    prepared = now(vlm.device) - started
    started = now(vlm.device)
    vlm.vision.features(paths)
    tower = max(now(vlm.device) - started - prepared, 1e-9)
    operations = vision_operations(vlm.loaded.model, sum(visual_tokens(path, vlm.profile) for path in paths))
    return len(paths) / prepared, len(paths) / tower, 1e-12 * operations / tower


def shortest(vlm: StagedVLM, prompts: list[Prompt], repeats: int) -> dict[int, tuple[float, float]]:
    """Returns the shortest seconds of ours and of its prefill by PyTorch's threads: as many as now, and on a CPU also 1."""
    present = torch.get_num_threads()
    times: dict[int, list[tuple[float, float]]] = {n: [] for n in sorted({present, 1} if vlm.device == "cpu" else {present})}
    for _ in range(repeats):
        for count, measured in times.items():
            torch.set_num_threads(count)
            vlm.vision.clear()
            vlm.prefill, started = 0.0, now(vlm.device)
            ordered(vlm.generate(prompts))
            measured.append((now(vlm.device) - started, vlm.prefill))
    torch.set_num_threads(present)
    return {count: min(measured) for count, measured in times.items()}


def measure(vlm: StagedVLM, plain: PlainVLM, prompts: list[Prompt], n_plain: int, repeats: int) -> Generation:
    """Measures both sides on prompts of one number of shots."""
    plain.answers(prompts[:1])
    ours = ordered(vlm.generate(prompts))
    if vlm.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = shortest(vlm, prompts, repeats)
    peak = torch.cuda.max_memory_allocated() / 1e9 if vlm.device == "cuda" else None
    spent, prefill = times[torch.get_num_threads()]
    started = now(vlm.device)
    theirs = [plain.answers([prompt])[0] for prompt in prompts[:n_plain]]
    plain_rate = len(theirs) / (now(vlm.device) - started)
    lengths = vlm.token_counts(prompts)
    alone = len(vlm._models()) == 1
    return Generation(
        len(prompts[0].demonstrations),
        float(np.mean(lengths)),
        plain_rate,
        len(prompts) / spent,
        times[1][0] / spent if vlm.device == "cpu" else None,
        prefill / spent if alone else None,
        1e-12 * language_operations(vlm.loaded.model, lengths) / prefill if alone else None,
        float(np.mean([a == b for a, b in zip(ours[: len(theirs)], theirs, strict=True)])),
        peak,
    )


def measurements(
    vlm: StagedVLM, samples: Sequence[Sample], n_prompts: int, n_plain: int, repeats: int = 1
) -> Iterator[Generation]:
    """Yields what is measured for 0 to 4 demonstrations."""
    plain = PlainVLM(vlm.profile, vlm.folder, model=vlm.loaded.model)
    for shots in range(MAX_SHOTS + 1):
        yield measure(vlm, plain, random_prompts(samples, shots, n_prompts), n_plain, repeats)


def cells(measurement: Generation, rate: float) -> list[str]:
    """Returns a row of the table; ``rate`` is the attainable one."""

    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return [
        *(str(measurement.shots), f"{measurement.tokens:.0f}", f"{measurement.plain:.2f}", f"{measurement.ours:.2f}"),
        *(f"{measurement.ours / measurement.plain:.1f}", text(measurement.alone, ".2f"), text(measurement.prefill, ".0%")),
        *(text(measurement.tflops, ".3g"), "-" if measurement.tflops is None else f"{measurement.tflops / rate:.0%}"),
    ]


@click.command()
@click.option("--size", type=click.Choice([*SIZES, "embedded"]), default="3b", show_default=True, help="Size of the VLM.")
@click.option(
    "--prompts", "n_prompts", default=64, show_default=True, help="Number of prompts for each number of demonstrations."
)
@click.option("--plain", "n_plain", default=8, show_default=True, help="Number of these prompts that plain generation answers.")
@click.option("--repeats", default=1, show_default=True, help="Number of times that generation by this project is measured.")
def main(size: str, n_prompts: int, n_plain: int, repeats: int) -> None:
    """Prints prompts per second for 0 to 4 demonstrations."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = attainable(device)
    print(f"{size} on {device_name(device)}, attainable {rate:.3g} TFLOP/s\n\n| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|")
    with tempfile.TemporaryDirectory() as temporary:
        vlm, samples = model_and_samples(Path(temporary), size, device)
        for measurement in measurements(vlm, samples, n_prompts, n_plain, repeats):
            print(f"| {' | '.join(cells(measurement, rate))} |", flush=True)


if __name__ == "__main__":
    main()
