"""Counts the tokens of prompts and answers of a data set with the true vocabulary of Qwen2.5-VL.

Prompts are those of the evaluation questions with demonstrations that are drawn at random, one draw for each question and
number of demonstrations. They go through ``QwenVLM`` with the profile of Qwen2.5-VL and the tokenizer of
``benchmarks/real_size.py``. Tokens of text are all but the visual tokens, so the two tokens around each image count as text. An
answer has as many tokens as the VLM has to generate for it to be complete, with the space before it and without the end of the
turn.

    python -m benchmarks.vocabulary --dataset /data/okvqa
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from benchmarks.real_size import write_model
from lever_mlflow.data.okvqa import load_split
from lever_mlflow.data.samples import Sample
from lever_mlflow.files.images import TOKEN_SIDE
from lever_mlflow.vlm.profiles import PROFILES, QWEN_PROFILE
from lever_mlflow.vlm.prompt import Prompt, plain_text
from lever_mlflow.vlm.qwen import QwenVLM
from lever_mlflow.vlm.vision_cache import visual_tokens

SEED, SHOTS = 0, (0, 1, 2, 3, 4)
LIMIT = PROFILES[QWEN_PROFILE].max_new_tokens


def random_prompts(train: Sequence[Sample], val: Sequence[Sample], shots: int) -> list[Prompt]:
    """Draws a prompt for each evaluation question."""
    rng = np.random.default_rng([SEED, shots])
    return [Prompt(tuple(train[i] for i in rng.choice(len(train), shots, replace=False)), query) for query in val]


def text_tokens(vlm: QwenVLM, prompts: Sequence[Prompt]) -> np.ndarray:
    """Counts the tokens of each prompt without those of its images."""
    images = [sum(visual_tokens(s.image_path, vlm.profile) for s in (*p.demonstrations, p.query)) for p in prompts]
    return np.array(vlm.token_counts(prompts)) - np.array(images)


def answer_tokens(vlm: QwenVLM, samples: Sequence[Sample]) -> np.ndarray:
    """Counts the tokens of the most frequent answer to each question."""
    ids = vlm.loaded.processor.tokenizer([f" {plain_text(sample.answer)}" for sample in samples])["input_ids"]
    return np.array([len(tokens) for tokens in ids])


def report_prompts(vlm: QwenVLM, train: Sequence[Sample], val: Sequence[Sample]) -> None:
    """Prints how many tokens of text prompts have, by number of demonstrations."""
    print("| demonstrations | mean | median | 99 % at most | most |\n|---|---|---|---|---|")
    for shots in SHOTS:
        counts = text_tokens(vlm, random_prompts(train, val, shots))
        middle, high = np.quantile(counts, [0.5, 0.99])
        print(f"| {shots} | {counts.mean():.1f} | {middle:.0f} | {high:.0f} | {counts.max()} |")


def report_answers(vlm: QwenVLM, val: Sequence[Sample]) -> None:
    """Prints how many questions have answers of how many tokens, and how many exceed the limit on new tokens."""
    counts = answer_tokens(vlm, val)
    shares = ", ".join(f"{tokens}: {(counts == tokens).sum():,}" for tokens in range(1, LIMIT + 1))
    print(f"\nQuestions by the tokens of their most frequent answer: {shares}, more: {(counts > LIMIT).sum():,}")
    print(f"The longest has {counts.max()} tokens.")


@click.command()
@click.option("--dataset", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of the official files.")
def main(dataset: Path) -> None:
    """Prints the counts."""
    train, val = load_split(dataset, "train"), load_split(dataset, "val")
    with tempfile.TemporaryDirectory() as folder:
        vlm = QwenVLM(write_model(Path(folder), "tiny"), "digest", PROFILES[QWEN_PROFILE])
        print(f"{len(train):,} training and {len(val):,} evaluation questions\n")
        report_prompts(vlm, train, val)
        report_answers(vlm, val)
        images, most = max(SHOTS) + 1, vlm.loaded.model.config.text_config.max_position_embeddings
        visual = images * vlm.profile.max_pixels // TOKEN_SIDE**2
        print(f"{images} images have at most {visual:,} visual tokens; the model takes {most:,} tokens.")


if __name__ == "__main__":
    main()
