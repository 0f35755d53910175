"""A comparison of many betas: its statistics against scipy's own functions cell by cell, and the whole report.

50 runs of 3 epochs on 800 made-up questions at 4 shot counts, in which each beta differs from the others on a third of the
answers. Both sides find the same intervals and p-values but for the noise of 10,000 draws.

    python -m benchmarks.comparison [--runs 50] [--questions 800]
"""

from __future__ import annotations

import time

import click
import numpy as np
import pandas as pd
from scipy.stats import bootstrap, permutation_test

from lever_mlflow.comparison.facts import Records, compare
from lever_mlflow.comparison.figures import figures as draw_figures
from lever_mlflow.comparison.page import html, markdown
from lever_mlflow.comparison.results import EpochResult, Results, RunResult
from lever_mlflow.evaluation.statistics import RESAMPLES, interval, resampled_means, sign_flip_p_value

SHOTS, EPOCHS, ACCURACIES = (1, 2, 3, 4), 3, np.array([0.0, 0.3, 0.6, 0.9, 1.0])
SAMPLE = 24  # cells that scipy is timed on


def made_up(runs: int, questions: int) -> tuple[Results, dict[float, Records]]:
    """Results with records of as many betas."""
    rng = np.random.default_rng(0)
    common = rng.choice(ACCURACIES, questions)
    sizes = [questions // 8, questions // 4, questions // 2, questions]
    found, records = [], {}
    for i in range(1, runs + 1):
        policies = {"zero-shot": (0,)} | dict.fromkeys(("random", "start", "epoch 1", "epoch 2", "epoch 3"), SHOTS)
        frames, cells = [], {}
        for policy, shots in policies.items():
            for k in shots:
                accuracy = np.where(rng.random(questions) < 1 / 3, rng.choice(ACCURACIES, questions), common)
                cells[policy, k] = accuracy
                rows = {"position": range(questions), "question_id": range(questions), "accuracy": accuracy, "answer": ""}
                frames.append(
                    pd.DataFrame(rows).assign(
                        policy=policy, part="report", shots=k, picks=pd.Series([[1, 2, 3, 4][:k]] * questions)
                    )
                )
        accuracies = {
            policy: {(n, k): 100.0 * float(cells[policy, k][:n].mean()) for n in sizes for k in shots}
            for policy, shots in policies.items()
        }
        epochs = tuple(
            EpochResult(e, {"kl": 0.01 * e / i, "train_loss": -0.01 * e}, accuracies.pop(f"epoch {e}"))
            for e in range(1, EPOCHS + 1)
        )
        beta = round(0.01 * i, 2)
        selection = {e: float(rng.uniform(50, 60)) for e in range(1, EPOCHS + 1)}
        found.append(RunResult(beta, {}, {}, epochs, baselines=accuracies, best_epoch=2, selection=selection))
        records[beta] = Records(pd.concat(frames, ignore_index=True))
    return Results(tuple(found), complete=True), records


def differences(records: dict[float, Records], questions: int) -> list[np.ndarray]:
    """Best epochs against that of the first beta, at each shot count."""
    first, *others = records.values()
    return [
        np.asarray(a) - np.asarray(b)
        for other in others
        for k in SHOTS
        if (a := other.of("epoch 2", k, questions)) is not None and (b := first.of("epoch 2", k, questions)) is not None
    ]


@click.command()
@click.option("--runs", default=50)
@click.option("--questions", default=800)
def main(runs: int, questions: int) -> None:
    """Times both sides and prints a table."""
    results, records = made_up(runs, questions)
    cells = differences(records, questions)
    started = time.perf_counter()
    ours = [(*interval(means, 0.95), sign_flip_p_value(c)) for c, means in zip(cells, resampled_means(cells, 0), strict=True)]
    our_seconds = (time.perf_counter() - started) / len(cells)
    started = time.perf_counter()
    for cell, (low, high, p_value) in zip(cells[:SAMPLE], ours, strict=False):
        rng = np.random.default_rng(0)
        theirs = bootstrap((cell,), np.mean, method="percentile", n_resamples=RESAMPLES, rng=rng).confidence_interval
        test = permutation_test((cell,), np.sum, permutation_type="samples", n_resamples=RESAMPLES, rng=rng)
        np.testing.assert_allclose([low, high, p_value], [theirs.low, theirs.high, test.pvalue], atol=0.02)
    their_seconds = (time.perf_counter() - started) / len(cells[:SAMPLE])
    print(f"interval and p-value of a cell of {questions} questions, ms ({len(cells)} cells; scipy on {len(cells[:SAMPLE])})")
    print(f"scipy, cell by cell  {1000 * their_seconds:8.1f}")
    print(f"lever_mlflow.paired  {1000 * our_seconds:8.1f}   {their_seconds / our_seconds:.0f} times as fast")
    started = time.perf_counter()
    facts = compare(results, records, seed=0)
    compared = time.perf_counter()
    figures = draw_figures(facts)
    drawn = time.perf_counter()
    pages = markdown(facts, "en", figures), html(facts, "en", figures)
    written = time.perf_counter()
    print(f"\n{runs} runs x {EPOCHS} epochs: comparison {compared - started:.1f} s, figures {drawn - compared:.1f} s, ", end="")
    print(f"pages {written - drawn:.1f} s ({sum(map(len, pages)) / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
