"""Defines the baselines step, which evaluates once what depends on no beta and no epoch, for all evaluations to share."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

import mlflow

from lever_mlflow.data.features import check_sampler
from lever_mlflow.data.samples import Sample
from lever_mlflow.evaluation.answering import Answering, BestSingle
from lever_mlflow.evaluation.policies import SIMILARITY_BASELINES, metric_name
from lever_mlflow.evaluation.questions import split_questions
from lever_mlflow.evaluation.records import REPORT, AccuracyCell, EvaluationRecords
from lever_mlflow.evaluation.rounding import decimals
from lever_mlflow.evaluation.strongest import strongest
from lever_mlflow.exceptions import DataError
from lever_mlflow.files.records import read_record
from lever_mlflow.pipeline.context import Context, make_step
from lever_mlflow.runs.artifacts import artifact, list_artifacts, log_text
from lever_mlflow.runs.metrics import ANSWER_RATE
from lever_mlflow.runs.steps import Step
from lever_mlflow.runs.tags import set_description
from lever_mlflow.settings import EvalSettings, Order

if TYPE_CHECKING:
    from lever_mlflow.evaluation.question_set import QuestionSet

__all__ = [
    "Baselines",
    "accuracies_of",
    "answering",
    "baselines_step",
    "log_records",
    "most_prompts",
    "question_set",
    "read_baselines",
    "read_records",
]

STEP = "baselines"
RECORDS_FILE, BEST_SINGLE_FILE = "records.parquet", "best_single.json"


class Baselines(NamedTuple):
    """Holds the records of all baselines on the report questions, and what the best single demonstration would bring."""

    records: EvaluationRecords
    best_single: BestSingle | None


def baselines_step(context: Context, settings: EvalSettings) -> Step:
    """Prepares the evaluation of the baselines, which all evaluations with these settings share."""
    check_sampler(settings.pool_sampler, context.resources.encoder_sides)
    inputs = {**context.identity(), **context.same_resources()}
    execute = partial(_evaluate, context, settings)
    needs: dict[str, Any] = {"shots": max(settings.shots), "prompts": most_prompts(settings)}
    return make_step(context, STEP, STEP, asdict(settings), inputs, execute, **needs)


def most_prompts(settings: EvalSettings) -> int:
    """Returns how many prompts the baselines ask at most: those of each policy, and every candidate alone for the oracle."""
    with_demonstrations = settings.random_draws + len(SIMILARITY_BASELINES)
    oracle = settings.n_oracle * settings.pool_size
    return max(settings.sizes) * (1 + with_demonstrations * len(settings.shots)) + oracle


def accuracies_of(table: Sequence[AccuracyCell], policy: str, size: int) -> dict[int, float]:
    """Returns the accuracies of a policy by shot count, on the first so many report questions."""
    return {cell.shots: cell.accuracy for cell in table if (cell.policy, cell.size) == (policy, size)}


def read_baselines(run_id: str) -> Baselines:
    """Reads what a finished baselines step has found.

    Raises:
        DataError: it is not there, or cannot be read.
    """
    try:
        there = BEST_SINGLE_FILE in list_artifacts(run_id, "")
        best = read_record(BestSingle, artifact(run_id, BEST_SINGLE_FILE), "an oracle", "evaluate") if there else None
        return Baselines(read_records(run_id), best)
    except DataError as error:
        raise DataError(f"{error}; delete the run {run_id} of the baselines first, or it is taken again") from None


def read_records(run_id: str) -> EvaluationRecords:
    """Reads the records of a finished evaluation.

    Raises:
        DataError: they are not there, or cannot be read.
    """
    path = artifact(run_id, RECORDS_FILE)
    try:
        return EvaluationRecords.read(path)
    except DataError as error:
        raise DataError(f"run {run_id}: {error}") from None


def question_set(context: Context, samples: Sequence[Sample], settings: EvalSettings) -> QuestionSet:
    """Returns questions of the evaluation split together with their candidate pools and all features."""
    from lever_mlflow.evaluation.question_set import QuestionSet

    resources = context.resources
    features = resources.features("val"), resources.features("train")
    return QuestionSet(samples, resources.train, *features, settings, context.seed)


def answering(context: Context, description: str, order: Order) -> Answering:
    """Returns what answers questions with the experiment's VLM; ``description`` labels the progress bar."""
    resources = context.resources
    answer = partial(resources.answer, description=description)
    return Answering(resources.train, answer, resources.language_model.key, order)


def log_records(records: EvaluationRecords) -> None:
    """Logs the records of an evaluation in the active run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / RECORDS_FILE
        records.write(path)
        mlflow.log_artifact(str(path))


def _evaluate(context: Context, settings: EvalSettings) -> None:
    """Answers the report questions behind what each baseline picks, and tries every candidate of the first questions alone.

    Logs for each baseline its accuracy on all report questions, as a mean over shots, the accuracy of the oracle, and before
    the VLM is asked, the share of questions with a right answer in their pool.
    """
    report = question_set(context, split_questions(context.resources.val, settings, context.seed).report, settings)
    mlflow.log_metric(ANSWER_RATE, report.answer_rate)
    answering_vlm = answering(context, STEP, settings.order)
    records = answering_vlm.records(report.samples, REPORT, report.baselines(), settings.shots)
    log_records(records)
    size = max(settings.sizes)
    table = records.table([size])
    means = {policy: mean(accuracies_of(table, policy, size).values()) for policy in records.policies}
    mlflow.log_metrics({f"baseline/{metric_name(policy)}": value for policy, value in means.items()})
    best_baseline = strongest({(policy, None): accuracy for policy, accuracy in means.items()}, None)
    assert best_baseline is not None, "there are baselines"
    accuracy = f"{decimals(100 * best_baseline.accuracy)} % as a mean over shots on {size:,} questions"
    set_description(f"{best_baseline.policy} is the strongest of {len(means)} baselines, with {accuracy}")
    n = min(settings.n_oracle, len(report.samples))
    if n:
        best = answering_vlm.best_single(report.samples[:n], report.pools_QN[:n])
        log_text(best.model_dump_json(indent=2), BEST_SINGLE_FILE)
        mlflow.log_metric("baseline/oracle", best.oracle)
