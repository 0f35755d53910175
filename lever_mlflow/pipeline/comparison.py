"""Compares evaluated betas, or the runs of a results file, and logs the report."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import mlflow

from lever_mlflow.comparison.comparing import compare
from lever_mlflow.comparison.facts import Comparison
from lever_mlflow.comparison.figures import figures
from lever_mlflow.comparison.from_evaluation import commands_of, option_value, run_of_evaluation
from lever_mlflow.comparison.page import html, markdown, verdict
from lever_mlflow.comparison.results import Results
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.evaluation import read_evaluation, read_records
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.settings import Language

__all__ = ["COMPARISON_FILE", "compare_betas", "compare_results"]

COMPARISON_FILE = "comparison.json"


def compare_betas(context: Context, evaluations: Sequence[str], language: Language) -> None:
    """Compares finished evaluations, given as run ids, and logs the report as ``_log`` does."""
    resources, project = context.resources, _project(context.resources)
    by_run = {run_id: read_evaluation(run_id) for run_id in evaluations}
    results = Results(
        dataset=resources.dataset,
        vlm=resources.vlm,
        sampler=next(iter(by_run.values())).settings.pool_sampler,
        unit="percent",
        runs=tuple(run_of_evaluation(evaluation, commands_of(evaluation, project)) for evaluation in by_run.values()),
        complete=True,
    )
    records = {evaluation.kl_beta: read_records(run_id) for run_id, evaluation in by_run.items()}
    questions = {sample.question_id: sample.question for sample in resources.val}
    _log(compare(results, records, seed=context.seed, questions=questions, project=project), language)


def compare_results(results: Results, file: str, language: Language, seed: int) -> None:
    """Compares the runs of a results file, and logs the report as ``_log`` does."""
    command = f"mlflow run . -e compare -P {shlex.quote(f'results={file}')}"
    _log(compare(results, {}, seed=seed).model_copy(update={"command": command}), language)


def _log(facts: Comparison, language: Language) -> None:
    """Logs ``report.md``, ``report.html``, ``comparison.json`` and the figures; the verdict becomes the run's description."""
    facts = facts.model_copy(update={"verdict": verdict(facts, language)})
    drawn = figures(facts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, png in drawn.items():
            (folder / file).write_bytes(png)
        (folder / "report.md").write_text(markdown(facts, language, drawn), encoding="utf-8")
        (folder / "report.html").write_text(html(facts, language, drawn), encoding="utf-8")
        facts.write(folder / COMPARISON_FILE)
        mlflow.log_artifacts(name)
    mlflow.set_tag("mlflow.note.content", facts.verdict)


def _project(resources: Resources) -> str:
    """Returns how a command of this experiment begins, with the names that are not defaults."""
    active = mlflow.active_run()
    assert active is not None, "a comparison needs an active run"
    experiment = mlflow.get_experiment(active.info.experiment_id).name
    defaults = Resources()
    names = {name: getattr(resources, name) for name in ("dataset", "vlm", "vlm_model", "encoder")}
    names = {name: value for name, value in names.items() if value != getattr(defaults, name)}
    choices = asdict(resources.data)
    names |= {name: option_value(value) for name, value in choices.items() if value != asdict(defaults.data)[name]}
    options = [f"-P {shlex.quote(f'{name}={value}')}" for name, value in names.items()]
    return " ".join(["mlflow run .", f"--experiment-name {shlex.quote(experiment)}", *options])
