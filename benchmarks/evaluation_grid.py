"""Compares the predecessor's evaluation grid with ours on the embedded VLM, and measures what each part of ours contributes.

The grid: 2 betas x 3 epochs x nested sizes x 4 shots. The predecessor asks the VLM for every cell anew, one prompt at a time,
each image encoded each time. Ours asks once for equal prompts (deduplication), in batches, with every image encoded once and
every prompt read once. The six policies are an untrained one and five copies with a little noise on their weights, so that some
of their picks differ, as after GRPO; the share is printed. Answers must be equal.

    python -m benchmarks.evaluation_grid [--sizes 10,20,40,80] [--num_beams 1]
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch

from lever_mlflow import mini
from lever_mlflow.data.candidate_pools import random_pool
from lever_mlflow.evaluation.overlap import overlaps
from lever_mlflow.evaluation.selector_picks import greedy_picks
from lever_mlflow.files.cache_dir import default_cache_dir
from lever_mlflow.files.images import fitted_image
from lever_mlflow.files.model_folders import load_pretrained, load_processor
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.vlm.local import token_batches
from lever_mlflow.vlm.profiles import PROFILES, PromptProfile
from lever_mlflow.vlm.prompt import Prompt, build_messages
from lever_mlflow.vlm.qwen import QwenVLM
from lever_mlflow.vlm.vision_cache import visual_tokens

SHOTS, POOL_SIZE, POLICIES, SEED = (1, 2, 3, 4), 64, 6, 0
NOISE = 0.0015  # added to the weights of each policy, chosen for the share of picks that GRPO at the default lr moves


class PlainVLM:
    """Answers the library's own way, batch by batch: processor, then ``generate``; nothing is kept between batches.

    Args:
        profile: as for ``QwenVLM``.
        folder: the model's folder.
        model: the model of that folder, if it has been loaded; on the CPU in float32 otherwise.
    """

    def __init__(self, profile: PromptProfile, folder: Path = mini.VLM_PATH, model: Any = None) -> None:
        from transformers import Qwen2_5_VLForConditionalGeneration

        self.profile, self.processor = profile, load_processor(folder, padding_side="left")
        self.model = load_pretrained(Qwen2_5_VLForConditionalGeneration, folder)[0].eval() if model is None else model

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        """Returns the raw generations of one batch."""
        profile, processor = self.profile, self.processor
        conversations = [build_messages(*item, profile) for item in prompts]
        texts = processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
        paths = [s.image_path for item in prompts for s in (*item.demonstrations, item.query)]
        images = [fitted_image(path, profile.min_pixels, profile.max_pixels) for path in paths]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt").to(self.model.device)
        beams = {"num_beams": profile.num_beams, "length_penalty": 0.0} if profile.num_beams > 1 else {}
        with torch.inference_mode():
            output = self.model.generate(**inputs, do_sample=False, max_new_tokens=profile.max_new_tokens, **beams)
        return list(processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def policies(feature_dim: int) -> list[PointerSelector]:
    """Copies of an untrained selector with a little noise each."""
    torch.manual_seed(SEED)
    first = PointerSelector(feature_dim=feature_dim).eval()
    moved = [copy.deepcopy(first) for _ in range(POLICIES)]
    with torch.no_grad():
        for selector in moved[1:]:
            for parameter in selector.parameters():
                parameter.add_(NOISE * torch.randn_like(parameter))
    return moved


def timed(work: Callable[[], list[str]]) -> tuple[float, list[str]]:
    """Seconds and result."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def batched(vlm: QwenVLM, plain: PlainVLM, prompts: Sequence[Prompt]) -> list[str]:
    """Answers the plain way in batches of as many tokens as ours may have, longest prompts first."""
    lengths = vlm.token_counts(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -lengths[i])
    batches = token_batches(order, lengths, vlm.batch_tokens)
    return ordered(list(zip(batch, plain.answers([prompts[i] for i in batch]), strict=True)) for batch in batches)


def ordered(batches: Iterable[list[tuple[int, str]]]) -> list[str]:
    """Texts in the order of the prompts."""
    return [text for _, text in sorted(item for batch in batches for item in batch)]


def shared_prefix(vlm: QwenVLM, prompts: Sequence[Prompt]) -> float:
    """Returns the share of the demonstrations' tokens that stand behind the same demonstrations in another prompt too."""
    tokens: dict[tuple[object, ...], int] = {}
    whole = 0
    for item in prompts:
        prefix: tuple[object, ...] = (len(item.demonstrations),)  # the system text states the number
        for sample in item.demonstrations:
            prefix = (*prefix, sample.question_id)
            tokens[prefix] = visual_tokens(sample.image_path, vlm.profile) + len(sample.question.split()) + 8
            whole += tokens[prefix]
    return 1 - sum(tokens.values()) / max(whole, 1)


class Way(NamedTuple):
    """Holds a way of answering the grid, and its seconds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Grid:
    """Holds the prompts of all cells of the grid, those that differ, and how often two policies pick the same 2 items."""

    cells: list[Prompt]
    different: list[Prompt]
    same_picks: float

    def ways(self, profile: PromptProfile, vlm: QwenVLM) -> Iterator[Way]:
        """Answers the grid in one way after the other, each with one more improvement than the one before.

        Raises:
            AssertionError: a way gives other answers than the first one.
        """
        plain, again = PlainVLM(profile), QwenVLM(mini.VLM_PATH, "digest", profile)
        for loading in (vlm, again):
            _ = loading.loaded
        plain.answers(self.cells[:1])
        seconds, texts = timed(lambda: [plain.answers([cell])[0] for cell in self.cells])
        expected = [texts[self.cells.index(prompt)] for prompt in self.different]
        yield Way("one by one, every cell anew", seconds)
        for name, answers in (
            ("equal prompts once", lambda: [plain.answers([prompt])[0] for prompt in self.different]),
            ("in batches", lambda: batched(again, plain, self.different)),
            ("images encoded once, prompts read once", lambda: ordered(vlm.generate(self.different))),
        ):
            seconds, texts = timed(answers)
            assert texts == expected, f"{name}: other answers"
            yield Way(name, seconds)


def make_grid(sizes: Sequence[int]) -> Grid:
    """Makes the grid of nested sizes, 1 to 4 shots and 6 policies on the embedded default."""
    resources = Resources(cache_dir=default_cache_dir(), device="cpu")
    train_table, val_table = resources.features("train"), resources.features("val")
    questions = resources.val[: max(sizes)]
    pools_QN = np.stack([random_pool(resources.train, question, POOL_SIZE, SEED) for question in questions])
    queries_QD = val_table.fused_SD[[sample.index for sample in questions]]
    selectors = policies(train_table.fused_SD.shape[1])
    picks = {
        f"policy {i}": greedy_picks(s, queries_QD, pools_QN, train_table.fused_SD, max(SHOTS)) for i, s in enumerate(selectors)
    }
    cells = [
        Prompt(tuple(resources.train[item] for item in picks_QK[q, :k]), questions[q])
        for picks_QK in picks.values()
        for size in sizes
        for k in SHOTS
        for q in range(size)
    ]
    same = np.mean([row.ordered for row in overlaps(picks, (2,))])
    return Grid(cells, list(dict.fromkeys(cells)), float(same))


@click.command()
@click.option(
    "--sizes",
    default="10,20,40,80",
    show_default=True,
    help="Numbers of questions, separated by commas. Lever-Plus takes 100,200,400,800.",
)
@click.option(
    "--num_beams",
    default=1,
    show_default=True,
    help="Number of beams. The embedded profile has 1, and that of a Qwen2.5-VL has 3.",
)
def main(sizes: str, num_beams: int) -> None:
    """Prints what each improvement brings."""
    profile = replace(PROFILES["mini"], num_beams=num_beams)
    grid, vlm = make_grid([int(size) for size in sizes.split(",")]), QwenVLM(mini.VLM_PATH, "digest", profile)
    threads = torch.get_num_threads()
    print(f"{threads} threads, {num_beams} beams; {len(grid.cells)} prompts, {len(grid.different)} different;")
    print(f"two policies pick the same 2 demonstrations for {grid.same_picks:.0%} of the questions\n")
    print("| way | seconds | times as fast as before | in all |\n|---|---|---|---|")
    seconds: list[float] = []
    for way in grid.ways(profile, vlm):
        seconds.append(way.seconds)
        factor = f"{seconds[-2] / way.seconds:.1f}" if len(seconds) > 1 else "1"
        print(f"| {way.name} | {way.seconds:.1f} | {factor} | {seconds[0] / way.seconds:.1f} |", flush=True)
    saved = shared_prefix(vlm, grid.different)
    print(f"\nShared prefixes of demonstrations could save {saved:.0%} more of their tokens.")


if __name__ == "__main__":
    main()
