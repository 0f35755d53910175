"""Compares the prompts per second of ``QwenVLM`` with those of plain generation, on a Qwen2.5-VL of real size, for a GPU.

Weights are random, as speed does not depend on them. ``3b`` has the sizes of Qwen2.5-VL-3B-Instruct (its config.json), and
``tiny`` those of the embedded VLM, to try the script on a CPU. Images have 640x480 pixels, as most of COCO have; a prompt of k
shots has k + 1 of them. Both sides run the profile of a Qwen2.5-VL (3 beams, 5 new tokens) on the same prompts. In plain
generation each prompt is a batch of its own, and every image is encoded each time. Arithmetic is counted as 2 operations per
weight and token: of the language model for every token of the prompts, of the vision tower for every patch of each different
image. ``embedded`` is the embedded VLM itself, with its profile and questions of its data set. On a CPU, ours is also measured
with one thread of PyTorch; the two take turns, and the shortest of ``--repeats`` times counts.

    python -m benchmarks.generation [--size tiny|embedded] [--prompts 64] [--peak_tflops 989]
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from benchmarks.evaluation_grid import PlainVLM, ordered
from lever_mlflow import mini
from lever_mlflow.data.okvqa import load_split
from lever_mlflow.data.samples import Sample
from lever_mlflow.files.cache_dir import default_cache_dir
from lever_mlflow.mini.dataset import ensure_dataset
from lever_mlflow.vlm.profiles import MINI_PROFILE, PROFILES, QWEN_PROFILE
from lever_mlflow.vlm.prompt import Prompt
from lever_mlflow.vlm.qwen import QwenVLM
from lever_mlflow.vlm.vision_cache import visual_tokens

PROFILE, IMAGES, SEED, PATCHES_PER_TOKEN = QWEN_PROFILE, 48, 0, 4
HEAD = (
    *("shots", "tokens of a prompt", "plain, prompts/s", "ours, prompts/s", "times as fast"),
    *("ours with one thread, times as long", "TFLOP/s", "of peak"),
)
TEXT_3B = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "layer_types": ["full_attention"] * 36,
    "max_window_layers": 36,
}
VISION_3B = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


def write_model(folder: Path, size: str) -> None:
    """Writes a model folder with random weights, and with the embedded VLM's tokenizer and real limits on images."""
    from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration

    config = AutoConfig.from_pretrained(mini.VLM_PATH)
    if size == "3b":
        for part, values in ((config.text_config, TEXT_3B), (config.vision_config, VISION_3B)):
            for name, value in values.items():
                setattr(part, name, value)
        config.text_config.rope_parameters = {**config.text_config.rope_parameters, "mrope_section": [16, 24, 24]}
    torch.manual_seed(SEED)
    model: Any = Qwen2_5_VLForConditionalGeneration(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(mini.VLM_PATH)
    profile = PROFILES[PROFILE]
    processor.image_processor.size = {"shortest_edge": profile.min_pixels, "longest_edge": profile.max_pixels}
    processor.save_pretrained(folder)


def make_samples(folder: Path) -> list[Sample]:
    """Makes samples, each with its own image of noise."""
    rng, samples = np.random.default_rng(SEED), []
    for i in range(IMAGES):
        path = folder / f"{i}.jpg"
        Image.fromarray(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)).save(path)
        samples.append(Sample(i, i, i, f"what is thing {i}?", path, ("a thing",) * 10))
    return samples


def model_and_samples(folder: Path, size: str) -> tuple[Path, list[Sample], str]:
    """Returns the model's folder, samples for its prompts and the name of its profile; what is made lies in ``folder``."""
    if size == "embedded":
        return mini.VLM_PATH, load_split(ensure_dataset(default_cache_dir()), "train"), MINI_PROFILE
    write_model(folder, size)
    return folder, make_samples(folder), PROFILE


def weights(model: Any) -> tuple[int, int]:
    """Counts the weights of the language model, without embeddings, and of the vision tower."""
    vision = sum(parameter.numel() for parameter in model.model.visual.parameters())
    language = sum(p.numel() for name, p in model.model.language_model.named_parameters() if "embed" not in name)
    return language, vision


def seconds(device: str, started: float) -> float:
    """Returns the seconds since ``started``, after all work on the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def shortest(local: QwenVLM, prompts: list[Prompt], device: str, repeats: int) -> dict[int, float]:
    """Returns the shortest seconds of ours by PyTorch's number of threads: the present number, and on a CPU also 1."""
    present = torch.get_num_threads()
    counts = {present, 1} if device == "cpu" else {present}
    times: dict[int, list[float]] = {count: [] for count in sorted(counts)}
    for _ in range(repeats):
        for count, measured in times.items():
            torch.set_num_threads(count)
            local.vision.clear()
            started = time.perf_counter()
            ordered(local.generate(prompts))
            measured.append(seconds(device, started))
    torch.set_num_threads(present)
    return {count: min(measured) for count, measured in times.items()}


@click.command()
@click.option("--size", type=click.Choice(["3b", "tiny", "embedded"]), default="3b", show_default=True)
@click.option(
    "--prompts", "n_prompts", default=64, show_default=True, help="Number of prompts for each number of demonstrations."
)
@click.option("--plain", "n_plain", default=8, show_default=True, help="Number of these prompts that plain generation answers.")
@click.option("--repeats", default=1, show_default=True, help="How often ours is measured.")
@click.option(
    "--peak_tflops", default=0.0, help="Peak of the device in dense bfloat16 by its data sheet, such as 989 for an H100 SXM."
)
def main(size: str, n_prompts: int, n_plain: int, repeats: int, peak_tflops: float) -> None:
    """Prints prompts per second for 0 to 4 demonstrations."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    with tempfile.TemporaryDirectory() as temporary:
        folder, samples, profile = model_and_samples(Path(temporary), size)
        plain, local = PlainVLM(PROFILES[profile], folder, device), QwenVLM(folder, "digest", PROFILES[profile], device)
        rng = np.random.default_rng(SEED)
        print(f"{size} on {name}\n\n| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|", flush=True)
        for shots in range(5):
            drawn = [rng.choice(len(samples), shots + 1, replace=False).tolist() for _ in range(n_prompts)]
            prompts = [Prompt(tuple(samples[i] for i in rest), samples[query]) for query, *rest in drawn]
            plain.answers(prompts[:1])
            ordered(local.generate(prompts[:1]))
            started = time.perf_counter()
            for prompt in prompts[:n_plain]:
                plain.answers([prompt])
            plain_rate = n_plain / seconds(device, started)
            tokens = sum(local.token_counts(prompts))
            times = shortest(local, prompts, device, repeats)
            spent = times[torch.get_num_threads()]
            language, vision = weights(local.loaded.model)
            different = {s.image_path for prompt in prompts for s in (*prompt.demonstrations, prompt.query)}
            patches = PATCHES_PER_TOKEN * sum(visual_tokens(path, local.profile) for path in different)
            tflops = 2e-12 * (language * tokens + vision * patches) / spent
            rate = n_prompts / spent
            cells = (str(shots), f"{tokens / n_prompts:.0f}", f"{plain_rate:.2f}", f"{rate:.2f}", f"{rate / plain_rate:.1f}")
            threads = f"{times[1] / spent:.2f}" if device == "cpu" else "-"
            share = f"{tflops / peak_tflops:.1%}" if peak_tflops else "-"
            print(f"| {' | '.join((*cells, threads, f'{tflops:.2f}', share))} |", flush=True)


if __name__ == "__main__":
    main()
