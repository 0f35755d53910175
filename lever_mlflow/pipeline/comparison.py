"""Defines the comparison step, which compares evaluations, or the runs of a results file, and logs the report."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from lever_mlflow.comparison.comparing import compare, named_runs
from lever_mlflow.comparison.facts import Comparison, LinkedRun
from lever_mlflow.comparison.figures import figures
from lever_mlflow.comparison.from_evaluation import commands_of, run_of_evaluation
from lever_mlflow.comparison.page import html, markdown, verdict
from lever_mlflow.comparison.picks import Items
from lever_mlflow.comparison.pictures import pictures
from lever_mlflow.comparison.results import Results, read_results
from lever_mlflow.comparison.terminal import summary
from lever_mlflow.comparison.wording import Wording
from lever_mlflow.evaluation.result import Evaluation
from lever_mlflow.exceptions import DataError, ParameterError, first_line
from lever_mlflow.invocation import command
from lever_mlflow.pipeline.context import Context, make_step
from lever_mlflow.pipeline.evaluation import EVALUATE, read_evaluation, read_records
from lever_mlflow.runs.artifacts import artifact
from lever_mlflow.runs.links import run_page, server_address, ui_command
from lever_mlflow.runs.metrics import epoch_metrics
from lever_mlflow.runs.search import describe, find_runs
from lever_mlflow.runs.steps import Step, active_run, run_settings
from lever_mlflow.runs.tags import Tag, finished_run_tags, holder_of, set_description
from lever_mlflow.settings import AUTO, Language, format_beta

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


def compare_step(context: Context, evaluations: Sequence[str], language: Language, vary: str = AUTO) -> Step:
    """Prepares the comparison of evaluations, given as run ids: a report, its figures and ``comparison.json``.

    Args:
        vary: the fields that are meant to differ, separated by commas; ``auto`` finds them out.

    Raises:
        ParameterError: the evaluations do not differ in what is meant to differ.
    """
    if vary != AUTO:
        named_runs(_results({run_id: read_evaluation(run_id) for run_id in evaluations}), _varying_fields(vary))
    inputs = {**context.identity(), Tag.EVALUATIONS: ",".join(evaluations)}
    execute = partial(_compare_evaluations, context, evaluations, language, _varying_fields(vary))
    options = {"evaluations": ",".join(evaluations), **context.reward.options, "model_name": context.model_name}
    return make_step(context, COMPARE, COMPARE, {"lang": language, "vary": vary}, inputs, execute, options)


def compare_results_step(context: Context, path: Path, language: Language, vary: str = AUTO) -> Step:
    """Prepares the comparison of the runs in a results file; nothing else is read.

    Args:
        vary: as that of ``compare_step``.

    Raises:
        DataError: the file is not there, or not of that shape.
        ParameterError: the runs do not differ in what is meant to differ.
    """
    results = read_results(path)
    try:
        named_runs(results, _varying_fields(vary))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    execute = partial(_compare_results, results, str(path), language, context.seed, _varying_fields(vary))
    settings = {"lang": language, "vary": vary, "results": str(path.expanduser().resolve())}
    return Step(COMPARE, COMPARE, settings, {Tag.RESULTS_DIGEST: results.digest}, execute, config={COMPARE: settings})


def chosen_evaluations(references: Sequence[str]) -> list[str]:
    """Returns the ids of finished evaluations, each given by its id or the beginning of it.

    Raises:
        ParameterError: several evaluations begin so, and the message lists them; or an evaluation is named twice.
        MissingRunError: there is no such finished evaluation in this experiment.
    """
    runs = find_runs(EVALUATE, {})
    chosen: list[str] = []
    for reference in references:
        matches = [run for run in runs if reference and run.info.run_id.startswith(reference)]
        if len(matches) > 1:
            named = "; ".join(map(describe, matches))
            raise ParameterError(f"evaluations={reference}: several begin so: {named}; give more of the id")
        run_id = matches[0].info.run_id if matches else holder_of(reference)
        finished_run_tags(run_id, EVALUATE)  # refuses any other run
        if run_id in chosen:
            raise ParameterError(f"evaluations={reference}: run {run_id} is named twice; name each run once")
        chosen.append(run_id)
    return chosen


def comparison_summary(comparison_run: str) -> str:
    """Returns a comparison as a table for the terminal, and the line that opens the active run in the UI.

    The table is in the language of the report.
    """
    comparison = Comparison.read(artifact(comparison_run, COMPARISON_FILE))
    language: Language = run_settings(comparison_run)["lang"]
    return f"{summary(comparison, language)}\n\n{Wording(language)['look']}\n  {ui_command()}"


def _varying_fields(vary: str) -> list[str]:
    """Returns the fields that a user named as meant to differ; none for ``auto``."""
    return [] if vary == AUTO else [name.strip() for name in vary.split(",")]


def _compare_evaluations(context: Context, evaluations: Sequence[str], language: Language, vary: Sequence[str]) -> None:
    """Compares finished evaluations, given as run ids, and logs the report as ``_log`` does."""
    by_run = {run_id: read_evaluation(run_id) for run_id in evaluations}
    results = _results(by_run, {run_id: _trained(evaluation) for run_id, evaluation in by_run.items()})
    records, items = {run_id: read_records(run_id) for run_id in by_run}, _items(context, by_run.values())
    facts = compare(results, records, seed=context.seed, vary=vary, items=items)
    _log(facts.model_copy(update={"mlflow_runs": _linked_runs(facts, language)}), language, items)


def _results(evaluations: Mapping[str, Evaluation], trained: Mapping[str, Mapping[int, Mapping[str, float]]] = {}) -> Results:
    """Returns evaluations as results.

    Args:
        evaluations: by run id.
        trained: the metrics of all epochs of their trainings, by the same ids.
    """
    runs = evaluations.values()
    return Results(
        dataset=_common(run.resources.dataset for run in runs),
        vlm=_common(run.resources.vlm for run in runs),
        sampler=_common(run.settings.pool_sampler for run in runs),
        unit="percent",
        runs=tuple(run_of_evaluation(run, commands_of(run), trained.get(run_id)) for run_id, run in evaluations.items()),
        complete=True,
    )


def _common(values: Iterable[str]) -> str:
    """Returns the value if all of the values are equal, else an empty text."""
    different = {*values}
    return different.pop() if len(different) == 1 else ""


def _items(context: Context, evaluations: Iterable[Evaluation]) -> Items | None:
    """Returns the items of the data set, if all evaluations asked about this data set."""
    resources = context.resources
    if any(evaluation.inputs.dataset_digest != resources.dataset_digest for evaluation in evaluations):
        return None
    return Items(*({sample.question_id: sample for sample in split} for split in (resources.val, resources.train)))


def _compare_results(results: Results, file: str, language: Language, seed: int, vary: Sequence[str]) -> None:
    """Compares the runs of a results file, and logs the report as ``_log`` does."""
    further = {"vary": vary} if vary else {}
    repeat = command(COMPARE, results=str(Path(file).expanduser().resolve()), **further)
    _log(compare(results, {}, seed=seed, vary=vary).model_copy(update={"command": repeat}), language)


def _trained(evaluation: Evaluation) -> dict[int, dict[str, float]]:
    """Returns the metrics of all epochs that a training logged, evaluated or not; none where its run was deleted for good."""
    grpo_run = evaluation.inputs.grpo_run
    try:
        return epoch_metrics(grpo_run)
    except (MlflowException, DataError) as error:
        beta = format_beta(evaluation.kl_beta)
        message = "beta %s: training run %s cannot be read (%s); the report shows its evaluated epochs only"
        log.warning(message, beta, grpo_run, first_line(error))
        return {}


def _linked_runs(facts: Comparison, language: Language) -> tuple[LinkedRun, ...]:
    """Names the training and the evaluation of each run, with their pages where a tracking server shows them."""
    words, server = Wording.of(facts, language), server_address(mlflow.get_tracking_uri())
    return tuple(
        LinkedRun(
            name=words.say(key, run=words.run(run.label, short=True)),
            run_id=run_id,
            url=f"{server}/{run_page(run_id)}" if server else "",
        )
        for run in facts.runs
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
