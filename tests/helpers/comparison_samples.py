"""Small results with records per question, for the tests of comparisons and reports."""

from pathlib import Path

import numpy as np
import pandas as pd

from lever_mlflow.comparison.comparing import compare
from lever_mlflow.comparison.results import EpochResult, Results, RunResult
from lever_mlflow.data.samples import Sample
from lever_mlflow.evaluation.records import EvaluationRecords

PREDECESSOR = Path(__file__).parents[1] / "data" / "predecessor_results.json"
METRICS = {"train_loss": 0.5, "val_loss": 5.0, "kl": 0.01, "advantage_std": 0.9}


def policy(name, accuracies, shots=2, draw=0, answers="a"):
    """Records of one policy that picks 10 and 11, or 12 where it is wrong."""
    count = len(accuracies)
    return pd.DataFrame(
        {
            "policy": name,
            "draw": draw,
            "part": "report",
            "position": range(count),
            "question_id": range(1000, 1000 + count),
            "image_id": range(1000, 1000 + count),
            "shots": shots,
            "picks": [[10, 11 + (value == 0.0)][:shots] for value in accuracies],
            "prompt": "p",
            "answer": answers,
            "accuracy": accuracies,
        }
    )


def right(count, of=100):
    """The first ``count`` of so many questions are right."""
    return np.array([1.0] * count + [0.0] * (of - count))


def epoch(number, accuracy=None, **metrics):
    """One epoch; accuracies are size -> shots -> percent."""
    return EpochResult.model_validate({"epoch": number, "accuracy": accuracy or {}, **metrics})


def run(beta, *accuracies, sizes=(100,), selection=None, **fields):
    """One run's results and records: an epoch per array of accuracies at 2 shots, the first one the best."""
    frames = [policy(f"epoch {i}", values) for i, values in enumerate(accuracies, start=1)]
    frames += [policy("random", right(20), draw=draw) for draw in (0, 1)] + [policy("zero-shot", right(30), shots=0)]
    records = EvaluationRecords(pd.concat(frames, ignore_index=True))
    epochs = [
        epoch(i, {n: {2: 100.0 * float(values[:n].mean())} for n in sizes}, **{**METRICS, "kl": 0.01 * i})
        for i, values in enumerate(accuracies, start=1)
    ]
    defaults = {
        "config": {"lr": 5e-6, "start": "rce epoch 4"},
        "rl_data": {"digest": "d1", "n_queries": 100, "n_positive_queries": 80, "mean_reward": 1.0},
        "baselines": {"random": {100: {2: 20.0}}, "zero-shot": {100: {0: 30.0}}},
        "selection_accuracy": dict.fromkeys(range(1, len(epochs) + 1), 50.0 if selection is None else selection),
        "registered": {"name": "m", "version": "7", "alias": f"kl-{beta:g}"},
        "best_digest": f"weights {beta:g}",
        "run_id": f"evaluation {beta:g}",
    }
    return RunResult(kl_beta=beta, epochs=epochs, best_epoch=1, **{**defaults, **fields}), records


def sample(question_id, question, answer, path=Path("nowhere.png")):
    """An item that nine of ten annotators answered so, and one with ``z``."""
    return Sample(0, question_id, question_id, question, path, (answer,) * 9 + ("z",))


def results(*pairs):
    """Results of runs made by ``run``, as MLflow's are, and their records by run id."""
    runs = [result for result, _ in pairs]
    return Results(unit="percent", runs=runs, dataset="mini", vlm="mini", sampler="random", complete=True), {
        result.run_id: records for result, records in pairs
    }


def compared(*pairs, **options):
    """The comparison of runs made by ``run``."""
    all_results, records = results(*pairs)
    return compare(all_results, records, seed=0, **options)
