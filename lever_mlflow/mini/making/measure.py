"""Measures the embedded models and prints the tables of their model card: ``python -m lever_mlflow.mini.making.measure``.

Queries are from the split "val", whose images train nothing, and demonstrations from the split "train". The models are loaded
in fp32 through the classes of the transformers library.
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

from lever_mlflow.data.candidate_pools import nearest
from lever_mlflow.data.okvqa import load_split
from lever_mlflow.data.samples import Sample
from lever_mlflow.data.vqa_accuracy import vqa_accuracy
from lever_mlflow.files.images import read_image
from lever_mlflow.mini import CLIP_PATH, VLM_PATH
from lever_mlflow.mini.dataset import digit_images, ensure_dataset
from lever_mlflow.mini.families import FAMILIES, Family
from lever_mlflow.vlm.prompt import Prompt, build_messages, clean_generation

__all__ = [
    "CONDITIONS",
    "Answerer",
    "DigitItem",
    "Pool",
    "clip_features",
    "draw_prompts",
    "load_items",
    "pool_recall",
    "search_recall",
]

Build = Callable[[np.random.Generator, "Pool", "DigitItem"], Prompt]


@dataclass(frozen=True)
class DigitItem:
    """Holds a sample with what only the embedded data set knows of it: its family and the digit in its image."""

    sample: Sample
    family: Family
    digit: int

    @property
    def truth(self) -> str:
        """Returns the true answer."""
        return self.family.answers[self.digit]

    @property
    def is_known(self) -> bool:
        """Returns whether the VLM was taught the true answer."""
        return self.digit in self.family.known


def load_items(root: Path, split: Literal["train", "val"]) -> list[DigitItem]:
    """Reads the items of a split of the data set in the folder ``root``."""
    families = {phrasing: family for family in FAMILIES for phrasing in family.phrasings}
    digits = digit_images(split)[1]
    return [
        DigitItem(sample, families[sample.question], int(digits[sample.image_id % 100_000 - 1]))
        for sample in load_split(root, split)
    ]


class Pool:
    """Draws demonstrations by what they share with a query."""

    def __init__(self, items: Sequence[DigitItem]) -> None:
        self.items = items

    def draw(self, rng: np.random.Generator, query: DigitItem, kind: str, count: int) -> list[Sample]:
        """Draws ``count`` samples of one kind; with repeats where the pool has fewer.

        Args:
            rng: source of random numbers.
            query: the query.
            kind: ``match`` (same family and digit), ``family`` (same family, other digit), ``digit`` (same digit, other
                family), ``near`` (either of the last two) or ``random``.
            count: number of samples.

        Raises:
            LookupError: the pool holds no sample of this kind, as happens for the digit 0, about which few families ask.
        """
        rows = self._rows(kind, query.family.name, query.digit)
        if count and not rows:
            raise LookupError(f"no demonstration of kind {kind!r} for {query}")
        return [self.items[i].sample for i in rng.choice(rows, size=count, replace=len(rows) < count)]

    @cache  # noqa: B019 - a pool lives as long as the measurement
    def _rows(self, kind: str, family: str, digit: int) -> list[int]:
        def is_of_kind(item: DigitItem) -> bool:
            same_family, same_digit = item.family.name == family, item.digit == digit
            kinds = {
                "random": True,
                "match": same_family and same_digit,
                "family": same_family and not same_digit,
                "digit": same_digit and not same_family,
                "near": same_family != same_digit,
            }
            return kinds[kind]

        return [i for i, item in enumerate(self.items) if is_of_kind(item)]


def _draw(kind: str, count: int) -> Build:
    return lambda rng, pool, query: Prompt(tuple(pool.draw(rng, query, kind, count)), query.sample)


def _match_among(kind: str, shots: int, position: int | None) -> Build:
    """Returns a builder of prompts with one matching demonstration at ``position`` (None: anywhere), the others of ``kind``."""

    def build(rng: np.random.Generator, pool: Pool, query: DigitItem) -> Prompt:
        demonstrations = pool.draw(rng, query, kind, shots - 1)
        place = int(rng.integers(shots)) if position is None else position
        demonstrations[place:place] = pool.draw(rng, query, "match", 1)
        return Prompt(tuple(demonstrations), query.sample)

    return build


def _false_match(rng: np.random.Generator, pool: Pool, query: DigitItem) -> Prompt:
    """Builds a prompt with a matching demonstration whose answer is replaced by another one of the family."""
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
    """Draws a prompt for each query, and returns the queries and prompts for which the pool has such demonstrations."""
    rng = np.random.default_rng(seed)
    usable, prompts = [], []
    for query in queries:
        with suppress(LookupError):
            prompts.append(CONDITIONS[condition](rng, pool, query))
            usable.append(query)
    return usable, prompts


class Answerer:
    """Answers prompts with the tiny VLM, greedily and with at most 5 new tokens, by the library's ``generate``."""

    def __init__(self, folder: Path = VLM_PATH) -> None:
        import torch
        from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def answer(self, prompts: Sequence[Prompt], batch_size: int = 64) -> list[str]:
        """Returns the cleaned answer to each prompt."""
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
    """Returns L2-normalised "image", "text" and "fused" features, each [items, 512]; fused is the normalised mean of both."""
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
    """Measures how often the most similar item of a random pool without an item's image shares its digit and family.

    "digit" and "family" are shares of all items. "match" is the share of items for which both are the same, among the
    ``n_match`` items whose pool holds such an item.
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


def search_recall(
    queries: Sequence[DigitItem], items: Sequence[DigitItem], queries_QD: np.ndarray, items_ND: np.ndarray, pool_size: int = 64
) -> tuple[float, float]:
    """Measures how often a search of all items finds one with the digit and the family of a query.

    Returns:
        The share of queries whose nearest item is such a match, and the share of those that have one among the ``pool_size``
        nearest items.
    """
    nearest_QN = nearest(queries_QD, items_ND, pool_size, [np.empty(0, dtype=np.int64)] * len(queries))
    kinds = [(item.digit, item.family.name) for item in items]
    hits_QN = np.array(
        [[kinds[i] == (query.digit, query.family.name) for i in row] for query, row in zip(queries, nearest_QN, strict=True)]
    )
    return float(hits_QN[:, 0].mean()), float(hits_QN.any(axis=1).mean())


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
    features, val_features = clip_features(train, folder), clip_features(val, folder)
    for name, features_ND in features.items():
        recall = pool_recall(train, features_ND, seed)
        match = f"{recall['match']:.3f} (n = {recall['n_match']})"
        click.echo(f"| {name} | {recall['digit']:.3f} | {recall['family']:.3f} | {match} |")
    click.echo(f"\nSearch in all {len(train)} items of train for the {len(val)} items of val\n")
    click.echo("| feature | nearest has the same digit and family | one of the 64 nearest has |\n|---|---|---|")
    for name, features_ND in features.items():
        first, any_of = search_recall(val, train, val_features[name], features_ND)
        click.echo(f"| {name} | {first:.3f} | {any_of:.3f} |")
    digit, family = _linear_accuracy(features["fused"], train, val_features["fused"], val)
    click.echo(f"\nLinear classifier on fused features, {len(val)} items of val: digit {digit:.3f}, family {family:.3f}")


def _linear_accuracy(
    train_ND: np.ndarray, train: Sequence[DigitItem], val_ND: np.ndarray, val: Sequence[DigitItem]
) -> tuple[float, float]:
    """Returns the val accuracy of logistic regressions for digit and family, which shows what features tell a selector."""
    from sklearn.linear_model import LogisticRegression

    def accuracy(label: Callable[[DigitItem], Any]) -> float:
        classifier = LogisticRegression(C=100, max_iter=300).fit(train_ND, [label(item) for item in train])
        return float(classifier.score(val_ND, [label(item) for item in val]))

    return accuracy(lambda item: item.digit), accuracy(lambda item: item.family.name)


@click.command()
@click.option(
    "--models", type=click.Path(path_type=Path, exists=True), default=VLM_PATH.parent, help="Folder with vlm/ and clip/."
)
@click.option("--only", type=click.Choice(["vlm", "clip"]), default=None, help="Measure only one of the two models.")
@click.option("--queries", type=int, default=800, show_default=True, help="Number of val queries for each kind of prompt.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random draws.")
def main(models: Path, only: str | None, queries: int, seed: int) -> None:
    """Print the tables of the model card."""
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
