"""Writes what a registered version says of itself: its tags, and a model card in Markdown as its description."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from lever_mlflow.evaluation.policies import BASELINES, START, epoch_policy
from lever_mlflow.evaluation.records import EvaluationRecords
from lever_mlflow.evaluation.result import Evaluation
from lever_mlflow.evaluation.statistics import interval, resampled_means
from lever_mlflow.registry.version_tags import Estimate, evaluation_tags
from lever_mlflow.settings import format_beta

__all__ = ["describe_version", "promoted", "renewed"]

_LONGEST = 5000  # characters of a description in MLflow's database; SQLite takes more, PostgreSQL refuses it
_LONGEST_PROMOTION = 1500
_PROMOTION = "## Promotion"

Accuracies = Mapping[tuple[str, int | None], Estimate]  # by policy and shot count; None is the mean over shots


def describe_version(evaluation: Evaluation, records: EvaluationRecords) -> tuple[dict[str, str], str]:
    """Makes the tags and the description of the version that holds an evaluation's best epoch.

    Accuracies are in percent on the largest number of questions, with 95 % bootstrap intervals.

    Returns:
        The tags, and the model card in at most 3,500 characters: what MLflow holds of a description, less the place for what
        a promotion adds.
    """
    accuracies = _accuracies(evaluation, records)
    return evaluation_tags(evaluation, records.digest, accuracies), _card(evaluation, accuracies)


def promoted(description: str, section: str) -> str:
    """Adds to a description what its version's promotion rests on, in place of an earlier promotion."""
    card = description.partition(_PROMOTION)[0].rstrip()
    promotion = _cut(f"{_PROMOTION}\n\n{section}", _LONGEST_PROMOTION - 2)
    return f"{_cut(card, _LONGEST - _LONGEST_PROMOTION)}\n\n{promotion}"


def renewed(card: str, description: str) -> str:
    """Replaces the card in a description, and leaves what the description says of a promotion."""
    _, heading, section = description.partition(_PROMOTION)
    return promoted(card, section.strip()) if heading else card


def _accuracies(evaluation: Evaluation, records: EvaluationRecords) -> dict[tuple[str, int | None], Estimate]:
    """Estimates the accuracy of the best epoch, of the start and of the baselines, in this order, at each shot count."""
    size = max(evaluation.settings.sizes)
    baselines = [policy for policy in records.policies if policy in BASELINES]
    values_Q = {}
    for policy in (epoch_policy(evaluation.best_epoch), START, *baselines):
        for shots in (0, *evaluation.settings.shots, None):
            by_question = records.by_question(policy, shots=shots, size=size)
            if by_question is not None:
                values_Q[policy, shots] = 100.0 * by_question.sort_index().to_numpy()
    means = resampled_means(list(values_Q.values()), evaluation.inputs.seed)
    return {
        cell: Estimate(float(values.mean()), *interval(means_R, 0.95))
        for (cell, values), means_R in zip(values_Q.items(), means, strict=True)
    }


def _card(evaluation: Evaluation, accuracies: Accuracies) -> str:
    settings, name = evaluation.settings, evaluation.registration.name
    epochs = ", ".join(f"{epoch}: {100 * mean:.2f}" for epoch, mean in evaluation.selection_accuracy.items())
    uri = f"models:/{name}@{evaluation.registration.alias}"
    card = f"""# {name}, beta {format_beta(evaluation.kl_beta)}, epoch {evaluation.best_epoch}

A pointer selector: it picks the solved examples that stand before a question in the prompt of a vision-language model.

## Accuracy

VQA accuracy in percent on {max(settings.sizes)} questions by number of demonstrations, with 95 % bootstrap intervals over
questions.
Pools of {settings.pool_size} candidates ({settings.pool_sampler}).
`random` is the mean of {settings.random_draws} draws.

{_table(evaluation, accuracies)}

## Data and training

{_origin(evaluation)}

## How it was chosen

The best epoch on {settings.n_selection} questions about other images than those above; mean over shots by epoch: {epochs}.
Evaluation: run {evaluation.run_id}, seed {evaluation.inputs.seed}.

## Limits

Accuracies hold for this data set, VLM, prompt and pool size. Intervals are over questions, not over trainings with other seeds.

## Use

`mlflow.pyfunc.load_model("{uri}")`, or `mlflow models serve -m "{uri}"`; its signature tells what it takes.
"""
    return _cut(card, _LONGEST - _LONGEST_PROMOTION)


def _origin(evaluation: Evaluation) -> str:
    """Says what a version was made from, as lines of a list."""
    inputs, names = evaluation.inputs, evaluation.resources
    resources = (
        ("data set", names.dataset, inputs.dataset_digest),
        ("VLM", names.vlm, inputs.vlm_digest),
        ("encoder", names.encoder, inputs.encoder_digest),
    )
    overridden = "; ".join(inputs.overrides.values()) or "none"
    training = asdict(evaluation.training)
    return "\n".join(
        [
            "- " + ", ".join(f"{label} {name} ({digest})" for label, name, digest in resources),
            f"- RL data {inputs.rl_data_digest}; data gate: {inputs.gate}; overrides: {overridden}",
            f"- GRPO from {inputs.start} ({inputs.start_digest}) in run {inputs.grpo_run}",
            f"- commit {evaluation.git_commit}",
            "- " + ", ".join(f"{name} {value}" for name, value in training.items()),
        ]
    )


def _table(evaluation: Evaluation, accuracies: Accuracies) -> str:
    columns = (0, *evaluation.settings.shots, None)
    heads = ["mean" if shots is None else str(shots) for shots in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for policy in dict.fromkeys(policy for policy, _ in accuracies):
        cells = (accuracies.get((policy, shots)) for shots in columns)
        texts = ["" if cell is None else f"{cell.mean:.1f} [{cell.low:.1f}, {cell.high:.1f}]" for cell in cells]
        lines.append(f"| {policy} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _cut(text: str, longest: int) -> str:
    """Keeps whole lines of a text, with a last one that says so where some are left out."""
    if len(text) <= longest:
        return text
    left_out = "\n(cut: the rest is in evaluation.json and promotion.json)\n"
    return text[: longest - len(left_out)].rpartition("\n")[0] + left_out
