"""Times a comparison of many betas: its statistics against scipy's own functions cell by cell, and the whole report.

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

from lever_mlflow.comparison.comparing import compare
from lever_mlflow.comparison.figures import figures as draw_figures
from lever_mlflow.comparison.page import html, markdown
from lever_mlflow.comparison.results import EpochResult, Results, RunResult
from lever_mlflow.evaluation.policies import RANDOM, START, ZERO_SHOT, epoch_policy
from lever_mlflow.evaluation.records import EvaluationRecords
from lever_mlflow.evaluation.statistics import RESAMPLES, interval, resampled_means, sign_flip_p_value

SHOTS, EPOCHS, ACCURACIES = (1, 2, 3, 4), 3, np.array([0.0, 0.3, 0.6, 0.9, 1.0])
BEST = 2  # epoch
SAMPLE = 24  # cells that scipy is timed on


def synthetic_results(runs: int, questions: int) -> tuple[Results, dict[str, EvaluationRecords]]:
    """Makes results with records of as many betas, which are multiples of 0.01."""
    rng = np.random.default_rng(0)
    common = rng.choice(ACCURACIES, questions)
    pairs = [synthetic_run(round(0.01 * i, 2), common, rng) for i in range(1, runs + 1)]
    results = Results(unit="percent", runs=tuple(run for run, _ in pairs), complete=True)
    return results, {run.run_id: records for run, records in pairs}


def synthetic_run(kl_beta: float, common: np.ndarray, rng: np.random.Generator) -> tuple[RunResult, EvaluationRecords]:
    """Makes the results and records of one beta, whose accuracies differ from the common ones on a third of the questions."""
    questions = len(common)
    sizes = [questions // 8, questions // 4, questions // 2, questions]
    policies = {ZERO_SHOT: (0,)} | dict.fromkeys((RANDOM, START, *map(epoch_policy, range(1, EPOCHS + 1))), SHOTS)
    frames, accuracies = [], {}
    for policy, shots in policies.items():
        cells = {k: np.where(rng.random(questions) < 1 / 3, rng.choice(ACCURACIES, questions), common) for k in shots}
        frames += [records_of(policy, k, accuracy) for k, accuracy in cells.items()]
        accuracies[policy] = {n: {k: 100.0 * float(accuracy[:n].mean()) for k, accuracy in cells.items()} for n in sizes}
    epochs = tuple(
        EpochResult.model_validate(
            {"epoch": e, "kl": 0.01 * e / (100 * kl_beta), "train_loss": -0.01 * e, "accuracy": accuracies.pop(epoch_policy(e))}
        )
        for e in range(1, EPOCHS + 1)
    )
    selection = {e: float(rng.uniform(50, 60)) for e in range(1, EPOCHS + 1)}
    run = RunResult(
        kl_beta=kl_beta,
        epochs=epochs,
        baselines=accuracies,
        best_epoch=BEST,
        selection_accuracy=selection,
        run_id=f"beta {kl_beta:g}",
    )
    return run, EvaluationRecords(pd.concat(frames, ignore_index=True))


def records_of(policy: str, shots: int, accuracy: np.ndarray) -> pd.DataFrame:
    """Makes the records of a policy that always picks the same."""
    positions = range(len(accuracy))
    rows = {"position": positions, "question_id": positions, "accuracy": accuracy, "answer": "", "prompt": "", "draw": 0}
    picks = pd.Series([[1, 2, 3, 4][:shots]] * len(accuracy))
    return pd.DataFrame(rows).assign(policy=policy, part="report", shots=shots, picks=picks)


def differences(records: dict[str, EvaluationRecords], questions: int) -> list[np.ndarray]:
    """Returns the paired differences of the best epochs and that of the first beta, at each shot count."""
    first, *others = (
        [records_of_beta.by_question(epoch_policy(BEST), shots=k, size=questions) for k in SHOTS]
        for records_of_beta in records.values()
    )
    return [
        np.asarray(a) - np.asarray(b)
        for other in others
        for a, b in zip(other, first, strict=True)
        if a is not None and b is not None
    ]


def time_statistics(cells: list[np.ndarray]) -> tuple[float, float]:
    """Returns the milliseconds that an interval and a p-value take here and in scipy, after checking that both agree."""
    started = time.perf_counter()
    rows = [(*interval(means, 0.95), sign_flip_p_value(c)) for c, means in zip(cells, resampled_means(cells, 0), strict=True)]
    seconds = (time.perf_counter() - started) / len(cells)
    started = time.perf_counter()
    for cell, row in zip(cells[:SAMPLE], rows, strict=False):
        rng = np.random.default_rng(0)
        ends = bootstrap((cell,), np.mean, method="percentile", n_resamples=RESAMPLES, rng=rng).confidence_interval
        test = permutation_test((cell,), np.sum, permutation_type="samples", n_resamples=RESAMPLES, rng=rng)
        np.testing.assert_allclose(row, [ends.low, ends.high, test.pvalue], atol=0.02)
    return 1000 * seconds, 1000 * (time.perf_counter() - started) / len(cells[:SAMPLE])


def time_report(results: Results, records: dict[str, EvaluationRecords]) -> None:
    """Prints how long the comparison, its figures and its pages take."""
    started = time.perf_counter()
    facts = compare(results, records, seed=0)
    compared = time.perf_counter()
    figures = draw_figures(facts)
    drawn = time.perf_counter()
    pages = markdown(facts, "en", figures), html(facts, "en", figures)
    written = time.perf_counter()
    print(
        f"\n{len(records)} runs x {EPOCHS} epochs: comparison {compared - started:.1f} s, figures {drawn - compared:.1f} s, ",
        end="",
    )
    print(f"pages {written - drawn:.1f} s ({sum(map(len, pages)) / 1e6:.1f} MB)")


@click.command()
@click.option("--runs", default=50, show_default=True, help="Number of runs to compare.")
@click.option("--questions", default=800, show_default=True, help="Number of questions of each run.")
def main(runs: int, questions: int) -> None:
    """Times the statistics against scipy's, and the whole report."""
    results, records = synthetic_results(runs, questions)
    cells = differences(records, questions)
    ours, theirs = time_statistics(cells)
    print(f"interval and p-value of a cell of {questions} questions, ms ({len(cells)} cells; scipy on {len(cells[:SAMPLE])})")
    print(f"scipy, cell by cell    {theirs:8.1f}")
    print(f"evaluation.statistics  {ours:8.1f}   {theirs / ours:.0f} times as fast")
    time_report(results, records)


if __name__ == "__main__":
    main()
