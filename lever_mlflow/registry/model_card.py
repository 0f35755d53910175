"""Writes what a registered model and its versions say of themselves: descriptions in Markdown, and the tags of a version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TypeAlias

import pandas as pd

from lever_mlflow.evaluation.policies import BASELINES, START, epoch_policy
from lever_mlflow.evaluation.records import EvaluationRecords, images_of
from lever_mlflow.evaluation.result import Evaluation, ResourceNames
from lever_mlflow.evaluation.rounding import decimals
from lever_mlflow.evaluation.statistics import interval, resampled_means
from lever_mlflow.evaluation.strongest import strongest
from lever_mlflow.files.rendering import render
from lever_mlflow.registry.evidence import Condition
from lever_mlflow.registry.version_tags import Estimate, Lead, evaluation_tags
from lever_mlflow.settings import format_beta

__all__ = ["describe_promotion", "describe_registered_model", "describe_version", "promoted", "renewed"]

_LONGEST = 5000  # characters of a description in MLflow's database; SQLite takes more, PostgreSQL refuses it
_LONGEST_PROMOTION = 1500
_PROMOTION = "## Promotion"

Shots: TypeAlias = int | None  # a shot count; None stands for the mean over all of them
Estimates: TypeAlias = Mapping[tuple[str, Shots], Estimate]  # by policy and shots
Values: TypeAlias = Mapping[tuple[str, Shots], pd.Series]  # accuracies by question in percent, by policy and shots


def describe_registered_model(name: str, resources: ResourceNames) -> str:
    """Makes the description of a registered model: what it is, what its aliases mean, and how it is used."""
    return render("registry/templates/registered_model.md", name=name, resources=resources)


def describe_version(evaluation: Evaluation, records: EvaluationRecords) -> tuple[dict[str, str], str]:
    """Makes the tags and the description of the version that holds an evaluation's best epoch.

    Accuracies are in percent on the largest number of questions, with 95 % bootstrap intervals.

    Returns:
        The tags, and the model card in at most 3,500 characters: what MLflow holds of a description, less the place for what
        a promotion adds.
    """
    values_Q = _by_question(evaluation, records)
    estimates = dict(zip(values_Q, _estimates(list(values_Q.values()), evaluation.inputs.seed), strict=True))
    leads = _leads(evaluation, values_Q)
    accuracy = estimates[epoch_policy(evaluation.best_epoch), None]
    return evaluation_tags(evaluation, records.digest, accuracy, leads.get(None)), _card(evaluation, estimates, leads)


def describe_promotion(verdict: str, message: str, conditions: Sequence[Condition]) -> str:
    """Makes the description of a promotion's run: the verdict, what was done, and each condition with its figures."""
    return render("registry/templates/promotion.md", verdict=verdict, message=message, conditions=conditions).strip()


def promoted(description: str, section: str) -> str:
    """Adds to a description what its version's promotion rests on, in place of an earlier promotion."""
    card = description.partition(_PROMOTION)[0].rstrip()
    promotion = _cut(f"{_PROMOTION}\n\n{section}", _LONGEST_PROMOTION - 2)
    return f"{_cut(card, _LONGEST - _LONGEST_PROMOTION)}\n\n{promotion}"


def renewed(card: str, description: str) -> str:
    """Replaces the card in a description, and leaves what the description says of a promotion."""
    _, heading, section = description.partition(_PROMOTION)
    return promoted(card, section.strip()) if heading else card


def _by_question(evaluation: Evaluation, records: EvaluationRecords) -> dict[tuple[str, Shots], pd.Series]:
    """Returns accuracies by question in percent: of the best epoch, the start and the baselines, by shot count."""
    size = max(evaluation.settings.sizes)
    baselines = [policy for policy in records.policies if policy in BASELINES]
    values_Q = {}
    for policy in (epoch_policy(evaluation.best_epoch), START, *baselines):
        for shots in _columns(evaluation):
            by_question = records.by_question(policy, shots=shots, size=size)
            if by_question is not None:
                values_Q[policy, shots] = 100.0 * by_question.sort_index()
    return values_Q


def _leads(evaluation: Evaluation, values_Q: Values) -> dict[Shots, Lead]:
    """Compares the best epoch with the strongest baseline at each shot count and in the mean, where there is a baseline."""
    means = {cell: float(values.mean()) for cell, values in values_Q.items()}
    epoch = epoch_policy(evaluation.best_epoch)
    strongest_of = {
        shots: strongest(means, shots) for shots in (*evaluation.settings.shots, None) if (epoch, shots) in values_Q
    }
    baselines = {shots: baseline for shots, baseline in strongest_of.items() if baseline is not None}
    gains_Q = [values_Q[epoch, shots] - values_Q[baseline.policy, baseline.shots] for shots, baseline in baselines.items()]
    gains = _estimates(gains_Q, evaluation.inputs.seed)
    return {shots: Lead(baseline.policy, gain) for (shots, baseline), gain in zip(baselines.items(), gains, strict=True)}


def _estimates(values_Q: Sequence[pd.Series], seed: int) -> list[Estimate]:
    """Estimates the mean over questions of each series."""
    means = resampled_means([values.to_numpy() for values in values_Q], seed, [images_of(values) for values in values_Q])
    return [Estimate(float(values.mean()), *interval(means_R, 0.95)) for values, means_R in zip(values_Q, means, strict=True)]


def _card(evaluation: Evaluation, estimates: Estimates, leads: Mapping[Shots, Lead]) -> str:
    registration, policies = evaluation.registration, list(dict.fromkeys(policy for policy, _ in estimates))
    cells = {(policy, shots): _at(estimates, policy, shots) for policy in policies for shots in _columns(evaluation)}
    card = render(
        "registry/templates/model_card.md",
        evaluation=evaluation,
        inputs=evaluation.inputs,
        registration=registration,
        resources=evaluation.resources,
        settings=evaluation.settings,
        training={**asdict(evaluation.rounds), **asdict(evaluation.training)},
        beta=format_beta(evaluation.kl_beta),
        uri=f"models:/{registration.name}@{registration.alias}",
        best={shots: cells[epoch_policy(evaluation.best_epoch), shots] for shots in _columns(evaluation)},
        columns={shots: _column(shots) for shots in _columns(evaluation)},
        policies=policies,
        leads=leads,
        cells=cells,
        decimals=decimals,
        strongest={(lead.baseline, shots) for shots, lead in leads.items()},
    )
    return _cut(card, _LONGEST - _LONGEST_PROMOTION)


def _columns(evaluation: Evaluation) -> tuple[Shots, ...]:
    return (0, *evaluation.settings.shots, None)


def _column(shots: Shots) -> str:
    return "mean" if shots is None else f"{shots} shot{'s' * (shots != 1)}"


def _at(estimates: Estimates, policy: str, shots: Shots) -> Estimate | None:
    """Returns a policy's accuracy in a column; a policy without demonstrations has the same one in every column."""
    return estimates.get((policy, shots), estimates.get((policy, 0)))


def _cut(text: str, longest: int) -> str:
    """Keeps whole lines of a text, with a last one that says so where some are left out."""
    if len(text) <= longest:
        return text
    left_out = "\n(cut: the rest is in evaluation.json and promotion.json)\n"
    return text[: longest - len(left_out)].rpartition("\n")[0] + left_out
