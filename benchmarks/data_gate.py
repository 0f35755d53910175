"""Compares the data gate with a plain pandas computation of the same figures, by seconds of processor time and peak memory.

The gate reads a generated file as JSON and the same data as Parquet, which it also leaves in their file and checks by SQL.
pandas reads the JSON file. Each side runs in a process of its own. Imports are not counted as time, but as memory, which
the row of the fewest trials shows. The pandas side reads the file with ``json.load``, makes one data frame of all trials
and computes every figure that an expectation of the suites checks. It does not look for duplicate keys, compute a digest or
tell where something is wrong.

Another checkout of this repository, such as one of an earlier commit, can be measured in the same run as a further side.

    python -m benchmarks.data_gate [--trials 16000,1000000] [--other FOLDER]
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

POOL_SIZE, TRIALS_PER_QUERY = 64, 10
METHODS = ("beam", "sample", "retrieval", "random")


def write_file(path: Path, n_trials: int) -> None:
    """Writes a file of the newest vintage with every field that a rollout writes, about 0.5 kB per trial."""
    rng = random.Random(0)
    with path.open("w") as file:
        file.write('{"_meta": {"seed": 0}')
        for query in range(n_trials // TRIALS_PER_QUERY):
            pool = rng.sample(range(1_000_000, 1_009_009), POOL_SIZE)
            pointers = [
                (first, (first + 1 + i) % POOL_SIZE) for i, first in enumerate(rng.sample(range(POOL_SIZE), TRIALS_PER_QUERY))
            ]
            entry = {
                "query": {
                    "query_id": query,
                    "question_id": 10 * query,
                    "image_id": query,
                    "question": f"what is thing {query}?",
                },
                "candidate_pool_ids": pool,
                "pointer_candidates": [_trial(rng, pool, pointer, i) for i, pointer in enumerate(pointers)],
            }
            file.write(f', "{query}": {json.dumps(entry)}')
        file.write("}")


def _trial(rng: random.Random, pool: list[int], pointer: tuple[int, ...], i: int) -> dict[str, object]:
    correct = rng.random() < 0.53
    return {
        "pointer": pointer,
        "pointer_global": [pool[position] for position in pointer],
        "gen_method": METHODS[i % len(METHODS)],
        "beam_rank": i,
        "logprob_score": rng.random(),
        "temperature": 1.0,
        "vqa_pred_answer": f"answer {rng.randrange(3000)}",
        "vqa_raw_generation": f" answer {rng.randrange(3000)}, and more",
        "vqa_correct": int(correct),
        "vqa_acc_score": rng.choice([0.6, 0.9, 1.0] if correct else [0.0, 0.3]),
        "vqa_gt_prob": None,
        "vqa_rel_score": None,
        "vqa_eval_mode": "vqaEval",
        "eval_failed": False,
    }


def run_gate(path: Path, by_sql: bool = False) -> tuple[float, dict[str, float]]:
    """Returns the seconds from the file to the verdict, and the figures of the data.

    With ``by_sql`` the data stay in their file and the tables in one of SQLite, as gate_engine=sql has it.
    """
    import great_expectations  # noqa: F401  (imported before the clock starts)
    import pyarrow.compute  # noqa: F401

    from lever_mlflow.gate import check, expectations  # noqa: F401
    from lever_mlflow.gate.result import metric_name
    from lever_mlflow.trials.reading import load_rl_data

    reading: dict[str, Any] = {"held": False} if by_sql else {}  # older versions do not know these options
    checking: dict[str, Any] = {"engine": "sql"} if by_sql else {}
    started = time.process_time()
    data = load_rl_data(path, **reading)
    loaded = time.process_time()
    result = check(data, **checking)
    ended = time.process_time()
    assert result.verdict == "pass", result.checks
    figures = {name.removeprefix(metric_name("")): value for name, value in result.metrics.items()}
    return ended - started, {"reading": loaded - started, **figures}


def run_pandas(path: Path) -> tuple[float, dict[str, float]]:
    """Returns the seconds of the pandas computation, and the figures of the data."""
    import pandas as pd

    started = time.process_time()
    with path.open() as file:
        content = json.load(file)
    content.pop("_meta")
    loaded = time.process_time()
    fields = ("pointer", "gen_method", "vqa_correct", "vqa_acc_score", "vqa_eval_mode", "eval_failed")
    trials = pd.DataFrame(
        [
            {"query_id": int(key), **{field: trial[field] for field in fields}}
            for key, entry in content.items()
            for trial in entry["pointer_candidates"]
        ]
    )
    pools = pd.DataFrame(
        [
            {"query_id": int(key), "pool_size": len(pool := entry["candidate_pool_ids"]), "repeats": len(set(pool)) < len(pool),
             "leaks": int(key) in pool}
            for key, entry in content.items()
        ]
    )  # fmt: skip
    trials = trials[~trials.eval_failed & (trials.vqa_eval_mode == "vqaEval")].merge(pools, on="query_id")
    trials["reward"] = trials.vqa_correct + trials.vqa_acc_score
    trials["pointer"] = trials.pointer.map(tuple)
    by_query = trials.groupby("query_id")
    spread = by_query.reward.max() - by_query.reward.min()
    shares = trials.gen_method.value_counts(normalize=True)
    figures = {
        "n_queries": len(content),
        "n_trials": len(trials),
        "reward_mean": trials.reward.mean(),
        "reward_std": trials.reward.std(),
        "positive_trial_rate": trials.vqa_correct.mean(),
        "positive_query_rate": (by_query.vqa_correct.max() == 1).mean(),
        "frac_reward_zero_std": (spread == 0).mean(),
        "trials_per_query": by_query.size().mean(),
        "pool_size_min": pools.pool_size.min(),
        **{f"share_{method}": shares[method] for method in METHODS},
        "reward_q10": trials.reward.quantile(0.1),
        "reward_q90": trials.reward.quantile(0.9),
        "missing": trials.isna().sum().sum(),
        "out_of_range": ((trials.vqa_acc_score < 0) | (trials.vqa_acc_score > 1) | ~trials.vqa_correct.isin([0, 1])).sum(),
        "disagree": ((trials.vqa_correct == 1) & (trials.vqa_acc_score <= 0)).sum()
        + ((trials.vqa_correct == 0) & (trials.vqa_acc_score >= 1)).sum(),
        "duplicates": trials.duplicated(["query_id", "pointer"]).sum(),
        "shots": trials.pointer.map(len).nunique(),
        "not_distinct": trials.pointer.map(lambda pointer: len(set(pointer)) < len(pointer)).sum(),
        "outside": sum(min(p) < 0 or max(p) >= size for p, size in zip(trials.pointer, trials.pool_size, strict=True)),
        "bad_pools": (pools.repeats | pools.leaks).sum(),
    }
    return time.process_time() - started, {"reading": loaded - started, **{k: float(v) for k, v in figures.items()}}


def in_a_process(side: str, path: Path, folder: Path | None = None) -> dict[str, float]:
    """Runs one side in a process of its own, and returns its seconds, its peak memory in GB and its figures.

    ``folder`` is another checkout, whose package is measured.
    """
    command = [sys.executable, __file__, "--side", side, "--path", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(folder or Path(__file__).parents[1])}
    return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment).stdout))


def compare(n_trials: int, other: Path | None) -> dict[str, dict[str, float]]:
    """Returns the results of each side for a file of so many trials; all sides find the same figures."""
    with tempfile.TemporaryDirectory() as folder:
        file, columns = Path(folder, "rl.json"), Path(folder, "rl.parquet")
        write_file(file, n_trials)
        subprocess.run([sys.executable, "-m", "entrypoints.convert", str(file), str(columns)], check=True)
        results = {
            "gate, JSON": in_a_process("gate", file),
            "gate, Parquet": in_a_process("gate", columns),
            "gate by SQL, Parquet": in_a_process("sql", columns),
        }
        if other:
            results["other gate, JSON"] = in_a_process("gate", file, other)
        results["pandas, JSON"] = in_a_process("pandas", file)
        for side, result in results.items():
            result["megabytes"] = (columns if "Parquet" in side else file).stat().st_size / 1e6
    by_pandas = results["pandas, JSON"]
    for side, result in results.items():
        for name in result.keys() & by_pandas.keys() - {"seconds", "reading", "peak_gb", "megabytes"}:
            assert abs(result[name] - by_pandas[name]) <= 1e-9 * max(1.0, abs(by_pandas[name])), f"{side}: {name}"
    return results


@click.command()
@click.option(
    "--trials", default="16000,1000000", show_default=True, help="Numbers of trials of the files, separated by commas."
)
@click.option(
    "--other",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of another checkout of this repository, which is measured in the same run.",
)
@click.option("--side", type=click.Choice(["gate", "sql", "pandas"]), hidden=True)
@click.option("--path", type=Path, hidden=True)
def main(trials: str, other: Path | None, side: str | None, path: Path | None) -> None:
    """Compares the data gate with a plain pandas computation of the same figures."""
    if side and path:
        seconds, figures = run_pandas(path) if side == "pandas" else run_gate(path, by_sql=side == "sql")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps({"seconds": seconds, "peak_gb": peak, **figures}))
        return
    print("| trials | side | file, MB | reading, s | all, s | peak memory, GB | all / pandas |\n|---|---|---|---|---|---|---|")
    for n_trials in map(int, trials.split(",")):
        results = compare(n_trials, other.resolve() if other else None)
        for name, result in results.items():
            ratio = result["seconds"] / results["pandas, JSON"]["seconds"]
            print(
                f"| {n_trials:,} | {name} | {result['megabytes']:,.0f} | {result['reading']:.1f} | {result['seconds']:.1f} | "
                f"{result['peak_gb']:.2f} | {ratio:.2f} |"
            )


if __name__ == "__main__":
    main()
