"""Defines the comparison step, which compares evaluated betas, or the runs of a results file, and logs the report."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from lever_mlflow.comparison.comparing import compare
from lever_mlflow.comparison.facts import Comparison, LinkedRun
from lever_mlflow.comparison.figures import figures
from lever_mlflow.comparison.from_evaluation import commands_of, run_of_evaluation
from lever_mlflow.comparison.page import html, markdown, verdict
from lever_mlflow.comparison.picks import Items
from lever_mlflow.comparison.pictures import pictures
from lever_mlflow.comparison.results import Results, RunResult, read_results
from lever_mlflow.comparison.terminal import summary
from lever_mlflow.comparison.wording import Wording
from lever_mlflow.evaluation.result import Evaluation
from lever_mlflow.exceptions import ParameterError, first_line
from lever_mlflow.invocation import command
from lever_mlflow.pipeline.context import Context, make_step
from lever_mlflow.pipeline.evaluation import EVALUATE, read_evaluation, read_records
from lever_mlflow.runs.artifacts import artifact
from lever_mlflow.runs.links import run_page, server_address, ui_command
from lever_mlflow.runs.metrics import epoch_metrics
from lever_mlflow.runs.search import describe, find_runs
from lever_mlflow.runs.steps import Step, active_run, run_settings
from lever_mlflow.runs.tags import Tag, finished_run_tags, holder_of, set_description
from lever_mlflow.settings import Language, format_beta

__all__ = [
    "COMPARISON_FILE",
    "REPORT_FILE",
    "chosen_evaluations",
    "compare_results_step",
    "compare_step",
    "comparison_summary",
]

COMPARE, COMPARISON_FILE, REPORT_FILE = "compare", "comparison.json", "report.html"
GIT_COMMIT = "mlflow.source.git.commit"  # MLflow's own tag

log = logging.getLogger(__name__)


def compare_step(context: Context, evaluations: Sequence[str], language: Language) -> Step:
    """Prepares the comparison of evaluated betas, given as run ids: a report, its figures and ``comparison.json``."""
    inputs = {**context.identity(), Tag.EVALUATIONS: ",".join(evaluations)}
    execute = partial(_compare_evaluations, context, evaluations, language)
    options = {"evaluations": ",".join(evaluations), **context.reward.options, "model_name": context.model_name}
    return make_step(context, COMPARE, COMPARE, {"lang": language}, inputs, execute, options)


def compare_results_step(context: Context, path: Path, language: Language) -> Step:
    """Prepares the comparison of the runs in a results file; nothing else is read.

    Raises:
        DataError: the file is not there, or not of that shape.
    """
    results = read_results(path)
    execute = partial(_compare_results, results, str(path), language, context.seed)
    settings = {"lang": language, "results": str(path.expanduser().resolve())}
    return Step(COMPARE, COMPARE, settings, {Tag.RESULTS_DIGEST: results.digest}, execute, config={COMPARE: settings})


def chosen_evaluations(references: Sequence[str]) -> list[str]:
    """Returns the ids of finished evaluations of different betas, each given by its id or the beginning of it.

    Raises:
        ParameterError: several evaluations begin so, or two are of the same beta; the message lists them.
        MissingRunError: there is no such finished evaluation in this experiment.
    """
    runs = find_runs(EVALUATE, {})
    chosen: dict[str, str] = {}
    for reference in references:
        matches = [run for run in runs if reference and run.info.run_id.startswith(reference)]
        if len(matches) > 1:
            named = "; ".join(map(describe, matches))
            raise ParameterError(f"evaluations={reference}: several begin so: {named}; give more of the id")
        run_id = matches[0].info.run_id if matches else holder_of(reference)
        beta = finished_run_tags(run_id, EVALUATE)[Tag.KL_BETA]
        if beta in chosen:
            raise ParameterError(f"evaluations: {chosen[beta]} and {run_id} are both of beta {beta}; give one of them")
        chosen[beta] = run_id
    return list(chosen.values())


def comparison_summary(comparison_run: str) -> str:
    """Returns a comparison as a table for the terminal, and the line that opens the active run in the UI.

    The table is in the language of the report.
    """
    comparison = Comparison.read(artifact(comparison_run, COMPARISON_FILE))
    language: Language = run_settings(comparison_run)["lang"]
    return f"{summary(comparison, language)}\n\n{Wording(language)['look']}\n  {ui_command()}"


def _compare_evaluations(context: Context, evaluations: Sequence[str], language: Language) -> None:
    """Compares finished evaluations, given as run ids, and logs the report as ``_log`` does."""
    resources = context.resources
    by_run = {run_id: read_evaluation(run_id) for run_id in evaluations}
    results = Results(
        dataset=resources.dataset,
        vlm=resources.vlm,
        sampler=next(iter(by_run.values())).settings.pool_sampler,
        unit="percent",
        runs=tuple(
            run_of_evaluation(evaluation, commands_of(evaluation), _trained(evaluation)) for evaluation in by_run.values()
        ),
        complete=True,
    )
    records = {evaluation.kl_beta: read_records(run_id) for run_id, evaluation in by_run.items()}
    items = Items(*({sample.question_id: sample for sample in split} for split in (resources.val, resources.train)))
    facts = compare(results, records, seed=context.seed, items=items)
    _log(facts.model_copy(update={"mlflow_runs": _linked_runs(results.runs, language)}), language, items)


def _compare_results(results: Results, file: str, language: Language, seed: int) -> None:
    """Compares the runs of a results file, and logs the report as ``_log`` does."""
    repeat = command(COMPARE, results=str(Path(file).expanduser().resolve()))
    _log(compare(results, {}, seed=seed).model_copy(update={"command": repeat}), language)


def _trained(evaluation: Evaluation) -> dict[int, dict[str, float]]:
    """Returns the metrics of all epochs that a training logged, evaluated or not; none where its run was deleted for good."""
    grpo_run = evaluation.inputs.grpo_run
    try:
        return epoch_metrics(grpo_run)
    except MlflowException as error:
        beta = format_beta(evaluation.kl_beta)
        message = "beta %s: training run %s cannot be read (%s); the report shows its evaluated epochs only"
        log.warning(message, beta, grpo_run, first_line(error))
        return {}


def _linked_runs(runs: Sequence[RunResult], language: Language) -> tuple[LinkedRun, ...]:
    """Names the training and the evaluation of each beta, with their pages where a tracking server shows them."""
    words, server = Wording(language), server_address(mlflow.get_tracking_uri())
    return tuple(
        LinkedRun(
            name=words.say(key, beta=format_beta(run.kl_beta)),
            run_id=run_id,
            url=f"{server}/{run_page(run_id)}" if server else "",
        )
        for run in runs
        for key, run_id in (("run_training", run.training_run), ("run_evaluation", run.run_id))
    )


def _log(facts: Comparison, language: Language, items: Items | None = None) -> None:
    """Logs ``report.md``, ``report.html``, ``comparison.json`` and the figures; the verdict becomes the run's description.

    Args:
        items: of the data set, whose images the report shows beside questions.
    """
    facts = facts.model_copy(
        update={
            "verdict": verdict(facts, language),
            "created_at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "git_commit": active_run().data.tags.get(GIT_COMMIT, ""),
        }
    )
    drawn = figures(facts)
    images = {**drawn, **pictures(facts.examples, items)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, png in drawn.items():
            (folder / file).write_bytes(png)
        (folder / "report.md").write_text(markdown(facts, language, drawn), encoding="utf-8")
        (folder / "report.html").write_text(html(facts, language, images), encoding="utf-8")
        facts.write(folder / COMPARISON_FILE)
        mlflow.log_artifacts(name)
    set_description(facts.verdict)
