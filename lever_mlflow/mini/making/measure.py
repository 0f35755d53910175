"""Measures the shipped tiny models and prints the model card's tables: ``python -m lever_mlflow.mini.measure``.

Queries are from split "val", whose images train nothing; demonstrations from split "train". Models are loaded through the
stock classes, in fp32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np

from lever_mlflow.data.okvqa import load_split
from lever_mlflow.data.samples import Sample
from lever_mlflow.data.vqa_accuracy import vqa_accuracy
from lever_mlflow.files.images import read_image
from lever_mlflow.mini import CLIP_PATH, VLM_PATH
from lever_mlflow.mini.dataset import digit_images, ensure_dataset
from lever_mlflow.mini.families import FAMILIES, Family
from lever_mlflow.vlm.prompt import Prompt, build_messages, clean_generation

__all__ = ["CONDITIONS", "Answerer", "DigitItem", "Pool", "clip_features", "draw_prompts", "load_items", "pool_recall"]

Build = Callable[[np.random.Generator, "Pool", "DigitItem"], Prompt]


@dataclass(frozen=True)
class DigitItem:
    """A sample with what only the embedded data set knows: its family, the digit shown, and the true answer."""

    sample: Sample
    family: Family
    digit: int

    @property
    def truth(self) -> str:
        return self.family.answers[self.digit]

    @property
    def is_known(self) -> bool:
        return self.digit in self.family.known


def load_items(root: Path, split: Literal["train", "val"]) -> list[DigitItem]:
    """The items of a split of the written data set."""
    families = {phrasing: family for family in FAMILIES for phrasing in family.phrasings}
    digits = digit_images(split)[1]
    return [
        DigitItem(sample, families[sample.question], int(digits[sample.image_id % 100_000 - 1]))
        for sample in load_split(root, split)
    ]


class Pool:
    """Demonstrations to draw from, by how they relate to a query."""

    def __init__(self, items: Sequence[DigitItem]) -> None:
        self.items = items

    def draw(self, rng: np.random.Generator, query: DigitItem, kind: str, count: int) -> list[Sample]:
        """``count`` samples of kind "random", "match", "family" (other digit), "digit" (other family) or "near" (either).

        Raises:
            LookupError: the pool holds none; only the number words ask about a 0.
        """
        rows = self._rows(kind, query.family.name, query.digit)
        if count and not rows:
            raise LookupError(f"no demonstration of kind {kind!r} for {query}")
        return [self.items[i].sample for i in rng.choice(rows, size=count, replace=len(rows) < count)]

    @cache  # noqa: B019 - a pool lives as long as the measurement
    def _rows(self, kind: str, family: str, digit: int) -> list[int]:
        def is_wanted(item: DigitItem) -> bool:
            same_family, same_digit = item.family.name == family, item.digit == digit
            wanted = {
                "random": True,
                "match": same_family and same_digit,
                "family": same_family and not same_digit,
                "digit": same_digit and not same_family,
                "near": same_family != same_digit,
            }
            return wanted[kind]

        return [i for i, item in enumerate(self.items) if is_wanted(item)]


def _draw(kind: str, count: int) -> Build:
    return lambda rng, pool, query: Prompt(tuple(pool.draw(rng, query, kind, count)), query.sample)


def _match_among(kind: str, shots: int, position: int | None) -> Build:
    """One matching demonstration at ``position`` (None: anywhere), the others of ``kind``."""

    def build(rng: np.random.Generator, pool: Pool, query: DigitItem) -> Prompt:
        demonstrations = pool.draw(rng, query, kind, shots - 1)
        place = int(rng.integers(shots)) if position is None else position
        demonstrations[place:place] = pool.draw(rng, query, "match", 1)
        return Prompt(tuple(demonstrations), query.sample)

    return build


def _false_match(rng: np.random.Generator, pool: Pool, query: DigitItem) -> Prompt:
    """A matching demonstration that shows another answer of the family."""
    (match,) = pool.draw(rng, query, "match", 1)
    others = [answer for answer in query.family.answers.values() if answer != query.truth]
    return Prompt((replace(match, answers=(str(rng.choice(others)),)),), query.sample)


CONDITIONS: dict[str, Build] = {
    "no demonstration": _draw("random", 0),
    **{f"{n} random": _draw("random", n) for n in (1, 2, 3, 4)},
    "1 match": _draw("match", 1),
    "match among 2, other near": _match_among("near", 2, None),
    "match among 3, others near": _match_among("near", 3, None),
    "match first of 4, others near": _match_among("near", 4, 0),
    "match last of 4, others near": _match_among("near", 4, 3),
    "match anywhere in 4, others near": _match_among("near", 4, None),
    "match anywhere in 4, others random": _match_among("random", 4, None),
    "match anywhere in 6, others near": _match_among("near", 6, None),
    "1 of same family, other digit": _draw("family", 1),
    "4 of same family, other digits": _draw("family", 4),
    "1 of same digit, other family": _draw("digit", 1),
    "4 of same digit, other families": _draw("digit", 4),
    "1 match with a false answer": _false_match,
}


def draw_prompts(condition: str, queries: Iterable[DigitItem], pool: Pool, seed: int) -> tuple[list[DigitItem], list[Prompt]]:
    """The queries for which the pool holds the demonstrations that the condition asks for, and their prompts; seeded."""
    rng = np.random.default_rng(seed)
    kept, prompts = [], []
    for query in queries:
        with suppress(LookupError):
            prompts.append(CONDITIONS[condition](rng, pool, query))
            kept.append(query)
    return kept, prompts


class Answerer:
    """The tiny VLM behind stock ``AutoProcessor`` and ``generate``: greedy, at most 5 new tokens."""

    def __init__(self, folder: Path = VLM_PATH) -> None:
        import torch
        from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def answer(self, prompts: Sequence[Prompt], batch_size: int = 64) -> list[str]:
        """The cleaned answer to each prompt."""
        answers: list[str] = []
        for start in range(0, len(prompts), batch_size):
            answers += self._answer_batch(prompts[start : start + batch_size])
        return answers

    def _answer_batch(self, prompts: Sequence[Prompt]) -> list[str]:
        import torch

        conversations = [build_messages(*prompt) for prompt in prompts]
        texts = self.processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
        images = [[read_image(s.image_path) for s in (*p.demonstrations, p.query)] for p in prompts]
        inputs = self.processor(text=texts, images=images, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = self.model.generate(**inputs, do_sample=False, max_new_tokens=5)
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        return [clean_generation(text) for text in self.processor.batch_decode(new_tokens, skip_special_tokens=True)]


def clip_features(items: Sequence[DigitItem], folder: Path = CLIP_PATH) -> dict[str, np.ndarray]:
    """L2-normalised "image", "text" and "fused" features, each [items, 512]; fused is the normalised mean of both."""
    import torch
    from transformers import AutoProcessor, CLIPModel

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    images = [read_image(item.sample.image_path) for item in items]
    texts = [item.sample.question for item in items]
    with torch.inference_mode():
        pixels = processor(images=images, return_tensors="pt")
        tokens = processor(text=texts, padding=True, return_tensors="pt")
        image_ND = _normalise(model.get_image_features(**pixels).pooler_output.numpy())
        text_ND = _normalise(model.get_text_features(**tokens).pooler_output.numpy())
    return {"image": image_ND, "text": text_ND, "fused": _normalise(image_ND + text_ND)}


def _normalise(array_ND: np.ndarray) -> np.ndarray:
    return array_ND / np.linalg.norm(array_ND, axis=1, keepdims=True)


def pool_recall(items: Sequence[DigitItem], features_ND: np.ndarray, seed: int, pool_size: int = 64) -> dict[str, Any]:
    """What the most similar item of a random pool (other images only) shares with each item.

    "digit" and "family" are shares of all items; "match" is the share among the items whose pool holds an item of the
    same family and digit, and ``n_match`` their number.
    """
    rng = np.random.default_rng(seed)
    image_N = np.array([item.sample.image_id for item in items])
    digit_N = np.array([item.digit for item in items])
    family_N = np.array([FAMILIES.index(item.family) for item in items])
    hits: dict[str, list[bool]] = {"digit": [], "family": [], "match": []}
    for i in range(len(items)):
        pool = rng.choice(np.flatnonzero(image_N != image_N[i]), size=pool_size, replace=False)
        best = pool[np.argmax(features_ND[pool] @ features_ND[i])]
        same_digit, same_family = digit_N[best] == digit_N[i], family_N[best] == family_N[i]
        hits["digit"].append(bool(same_digit))
        hits["family"].append(bool(same_family))
        if ((digit_N[pool] == digit_N[i]) & (family_N[pool] == family_N[i])).any():
            hits["match"].append(bool(same_digit and same_family))
    return {**{name: float(np.mean(values)) for name, values in hits.items()}, "n_match": len(hits["match"])}


def _vlm_table(folder: Path, train: Sequence[DigitItem], val: Sequence[DigitItem], limit: int, seed: int) -> None:
    answerer, pool = Answerer(folder), Pool(train)
    rows = np.sort(np.random.default_rng(seed).permutation(len(val))[:limit])
    click.echo("| prompt | n | VQA accuracy | exact | exact, known | exact, unknown | copies the first answer |")
    click.echo("|---|---|---|---|---|---|---|")
    for condition in CONDITIONS:
        queries, prompts = draw_prompts(condition, [val[i] for i in rows], pool, seed)
        answers = answerer.answer(prompts)
        accuracy = np.mean([vqa_accuracy(a, query.sample.answers) for a, query in zip(answers, queries, strict=True)])
        exact_N = np.array([a == query.truth for a, query in zip(answers, queries, strict=True)])
        known_N = np.array([query.is_known for query in queries])
        copied = [a == p.demonstrations[0].answer for a, p in zip(answers, prompts, strict=True) if p.demonstrations]
        figures = [accuracy, exact_N.mean(), exact_N[known_N].mean(), exact_N[~known_N].mean()]
        cells = [f"{figure:.3f}" for figure in figures] + [f"{np.mean(copied):.3f}" if copied else ""]
        n = f"{len(queries)} ({(~known_N).sum()} unknown)"
        click.echo(f"| {condition} | {n} | {' | '.join(cells)} |")


def _clip_table(folder: Path, train: Sequence[DigitItem], val: Sequence[DigitItem], seed: int) -> None:
    click.echo(f"\nNearest of a random pool of 64, {len(train)} items of split train\n")
    click.echo("| feature | same digit | same family | same both, where the pool holds one |\n|---|---|---|---|")
    features = clip_features(train, folder)
    for name, features_ND in features.items():
        recall = pool_recall(train, features_ND, seed)
        match = f"{recall['match']:.3f} (n = {recall['n_match']})"
        click.echo(f"| {name} | {recall['digit']:.3f} | {recall['family']:.3f} | {match} |")
    digit, family = _linear_accuracy(features["fused"], train, clip_features(val, folder)["fused"], val)
    click.echo(f"\nLinear classifier on fused features, {len(val)} items of val: digit {digit:.3f}, family {family:.3f}")


def _linear_accuracy(
    train_ND: np.ndarray, train: Sequence[DigitItem], val_ND: np.ndarray, val: Sequence[DigitItem]
) -> tuple[float, float]:
    """Val accuracy of logistic regressions for digit and family: what a selector's projections can read."""
    from sklearn.linear_model import LogisticRegression

    def accuracy(label: Callable[[DigitItem], Any]) -> float:
        classifier = LogisticRegression(C=100, max_iter=300).fit(train_ND, [label(item) for item in train])
        return float(classifier.score(val_ND, [label(item) for item in val]))

    return accuracy(lambda item: item.digit), accuracy(lambda item: item.family.name)


@click.command()
@click.option("--models", type=click.Path(path_type=Path, exists=True), default=VLM_PATH.parent, help="Holds vlm/, clip/.")
@click.option("--only", type=click.Choice(["vlm", "clip"]), default=None, help="Measure only one of the two models.")
@click.option("--queries", type=int, default=800, show_default=True, help="Val queries for each prompt condition.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(models: Path, only: str | None, queries: int, seed: int) -> None:
    """Print the model card's tables."""
    import torch

    torch.set_num_threads(1)  # the models are so small that a second thread only waits
    with tempfile.TemporaryDirectory() as folder:
        root = ensure_dataset(Path(folder))
        train, val = load_items(root, "train"), load_items(root, "val")
        if only != "clip":
            _vlm_table(models / "vlm", train, val, queries, seed)
        if only != "vlm":
            _clip_table(models / "clip", train, val, seed)


if __name__ == "__main__":
    main()
