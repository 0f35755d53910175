"""What a registered version says of itself, from its evaluation: tags, and a model card in Markdown as its description."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from lever_mlflow.evaluation.policies import START
from lever_mlflow.evaluation.statistics import interval, resampled_means

__all__ = ["TABLE_TAGS", "markdown", "promoted", "records_digest", "renewed", "version_tags"]

TABLE_TAGS = ("acc_", "baseline_")  # beginnings of the tags that hold accuracies
_LONGEST = 5000  # of a description in MLflow's database; SQLite takes more, PostgreSQL refuses it
_LONGEST_PROMOTION = 1500
_PROMOTION = "## Promotion"
_COLUMNS = ["policy", "draw", "part", "position", "question_id", "shots", "picks", "prompt", "answer", "accuracy"]
_OVERRIDES = ("gate_override", "start_gate_override")
_INPUTS = ("gate", *_OVERRIDES, "seed", "start", "start_uri", "grpo_run")


def records_digest(records: pd.DataFrame) -> str:
    """SHA-256 over all records of an evaluation, 16 hex characters."""
    rows = records[_COLUMNS].assign(picks=records.picks.map(lambda picks: ",".join(map(str, picks))))
    return hashlib.sha256(rows.to_json(orient="values", double_precision=12).encode()).hexdigest()[:16]


def version_tags(result: Mapping[str, Any], records: pd.DataFrame) -> dict[str, str]:
    """Tags of the version that holds an evaluation's best epoch; accuracies in percent, intervals of 95 %.

    Args:
        result: ``evaluation.json``, of which ``run_id``, ``git_commit``, ``best_epoch``, ``settings`` and ``inputs`` are read.
        records: of all policies, as ``evaluate`` yields them.
    """
    size = max(result["settings"]["sizes"])
    table = _accuracies(result, records)
    own = f"epoch {result['best_epoch']}"
    tags = {name: str(value) for name, value in result["inputs"].items() if name.endswith("_digest") or name in _INPUTS}
    tags |= {
        "epoch": str(result["best_epoch"]),
        "evaluation_run": result["run_id"],
        "evaluation_digest": records_digest(records),
        "git_commit": result["git_commit"],
        "questions": str(size),
    }
    for (policy, column), (mean, low, high) in table.items():
        if policy == own:
            tags[f"acc_n{size}_{column}"] = f"{mean:.2f}"
            tags[f"acc_n{size}_{column}_interval"] = f"[{low:.2f}, {high:.2f}]"
        else:
            tags[f"baseline_{re.sub('[^a-z0-9]+', '_', policy)}_n{size}_{column}"] = f"{mean:.2f}"
    return tags


def markdown(result: Mapping[str, Any], records: pd.DataFrame) -> str:
    """The model card, at most 3,500 characters: what MLflow holds of a description, less the place for a promotion."""
    registered, settings, seed = result["registered"], result["settings"], result["inputs"]["seed"]
    epochs = ", ".join(f"{epoch}: {100 * mean:.2f}" for epoch, mean in result["selection_accuracy"].items())
    uri = f"models:/{registered['name']}@{registered['alias']}"
    card = f"""# {registered["name"]}, beta {result["kl_beta"]:g}, epoch {result["best_epoch"]}

A pointer selector: it picks the solved examples that stand before a question in the prompt of a vision-language model.

## Accuracy

VQA accuracy in percent on {max(settings["sizes"])} questions by number of demonstrations, with 95 % bootstrap intervals over
questions.
Pools of {settings["pool_size"]} candidates ({settings["pool_sampler"]}).
`random` is the mean of {settings["random_draws"]} draws.

{_table(result, records)}

## Data and training

{_origin(result)}

## How it was chosen

The best epoch on {settings["n_selection"]} questions about other images than those above; mean over shots by epoch: {epochs}.
Evaluation: run {result["run_id"]}, seed {seed}.

## Limits

Accuracies hold for this data set, VLM, prompt and pool size. Intervals are over questions, not over trainings with other seeds.

## Use

`mlflow.pyfunc.load_model("{uri}")`, or `mlflow models serve -m "{uri}"`; its signature tells what it takes.
"""
    return _cut(card, _LONGEST - _LONGEST_PROMOTION)


def promoted(description: str, section: str) -> str:
    """A description with what its promotion rests on, in place of an earlier one."""
    kept = description.partition(_PROMOTION)[0].rstrip()
    told = _cut(f"{_PROMOTION}\n\n{section}", _LONGEST_PROMOTION - 2)
    return f"{_cut(kept, _LONGEST - _LONGEST_PROMOTION)}\n\n{told}"


def renewed(card: str, description: str) -> str:
    """A new card with the promotion that the present description tells of, if it does."""
    _, found, section = description.partition(_PROMOTION)
    return promoted(card, section.strip()) if found else card


def _origin(result: Mapping[str, Any]) -> str:
    """What a version was made from, as lines of a list."""
    inputs, names = result["inputs"], result["resources"]
    digests = {"data set": "dataset", "VLM": "vlm", "encoder": "encoder"}
    overrides = "; ".join(inputs[key] for key in _OVERRIDES if key in inputs) or "none"
    return "\n".join(
        [
            "- " + ", ".join(f"{label} {names[name]} ({inputs[f'{name}_digest']})" for label, name in digests.items()),
            f"- RL data {inputs['rl_data_digest']}; data gate: {inputs.get('gate', 'no verdict')}; overrides: {overrides}",
            f"- GRPO from {inputs['start']} ({inputs['start_digest']}) in run {inputs['grpo_run']}",
            f"- commit {result['git_commit']}",
            "- " + ", ".join(f"{key} {value}" for key, value in result["training"].items()),
        ]
    )


def _accuracies(result: Mapping[str, Any], records: pd.DataFrame) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Mean accuracy in percent with its interval by policy and column: ``shots2`` and the like, ``mean`` over shots.

    The registered epoch first, then the start and the baselines; other epochs and checkpoints are left out.
    """
    own, seed = f"epoch {result['best_epoch']}", int(result["inputs"]["seed"])
    report = records[(records.part == "report") & (records.position < max(result["settings"]["sizes"]))]
    policies = [name for name in dict.fromkeys(report.policy) if not re.match(r"epoch \d|checkpoint \d|start$", name)]
    values = {}
    for policy in (own, START, *policies):
        of_policy = report[report.policy == policy]
        columns = {f"shots{shots}": rows for shots, rows in of_policy.groupby("shots")}
        for column, rows in {**columns, "mean": of_policy}.items():
            values[policy, str(column)] = 100.0 * rows.groupby("question_id").accuracy.mean().to_numpy()
    means = resampled_means(list(values.values()), seed)
    return {
        key: (float(values_Q.mean()), *interval(means_R, 0.95))
        for (key, values_Q), means_R in zip(values.items(), means, strict=True)
    }


def _table(result: Mapping[str, Any], records: pd.DataFrame) -> str:
    cells = _accuracies(result, records)
    columns = [*(f"shots{shots}" for shots in (0, *result["settings"]["shots"])), "mean"]
    lines = [
        "| | " + " | ".join(column.removeprefix("shots") for column in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for policy in dict.fromkeys(policy for policy, _ in cells):
        row = (cells.get((policy, column)) for column in columns)
        shown = ["" if cell is None else f"{cell[0]:.1f} [{cell[1]:.1f}, {cell[2]:.1f}]" for cell in row]
        lines.append(f"| {policy} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _cut(text: str, longest: int) -> str:
    """Whole lines of a text, with a last one that says so where some are left out."""
    if len(text) <= longest:
        return text
    left_out = "\n(cut: the rest is in evaluation.json and promotion.json)\n"
    return text[: longest - len(left_out)].rpartition("\n")[0] + left_out
