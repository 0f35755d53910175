"""Comparison of evaluated betas, of MLflow's runs or of a results file."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow

from lever_mlflow.comparison.facts import compare, read_records
from lever_mlflow.comparison.figures import figures as draw_figures
from lever_mlflow.comparison.page import html, markdown
from lever_mlflow.comparison.page import verdict as verdict_of
from lever_mlflow.comparison.results import EpochResult, Results, RunResult
from lever_mlflow.exceptions import DataError
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.evaluation import RECORDS_FILE, read_evaluation
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.runs import artifacts
from lever_mlflow.settings import Language

__all__ = ["COMPARISON_FILE", "compare_betas", "compare_results"]

COMPARISON_FILE = "comparison.json"
_NAMES = frozenset({"models", "grpo_run", "start_uri", "checkpoints"})  # of runs and models; their digests are compared
_OF_DATA = "rl_data_digest"  # stands with what else is known of the RL data
_MEASURED = frozenset({"n_oracle", "random_draws"})  # what was measured of the baselines decides nothing
_CURVE_NAMES = {"adv_std": "advantage_std", "adv_max": "advantage_max"}


def compare_betas(context: Context, evaluations: Sequence[str], language: Language) -> None:
    """Comparison of finished evaluations, given as run ids; logs it as ``_log`` does."""
    found = {run_id: read_evaluation(run_id) for run_id in evaluations}
    runs = sorted(
        (_result(run_id, evaluation, _project(context.resources)) for run_id, evaluation in found.items()),
        key=lambda run: run.kl_beta,
    )
    records = {found[run_id]["kl_beta"]: read_records(artifacts.artifact(run_id, RECORDS_FILE)) for run_id in evaluations}
    resources, settings = context.resources, next(iter(found.values()))["settings"]
    results = Results(tuple(runs), resources.dataset, resources.vlm, settings["pool_sampler"], complete=True)
    questions = {sample.question_id: sample.question for sample in resources.val}
    project = _project(resources)
    _log(compare(results, records, seed=context.seed, questions=questions, project=project), language)


def compare_results(results: Results, file: str, language: Language, seed: int) -> None:
    """Comparison of a results file's runs; logs it as ``_log`` does."""
    facts = compare(results, {}, seed=seed)
    _log({**facts, "command": f"mlflow run . -e compare -P {shlex.quote(f'results={file}')}"}, language)


def _log(facts: dict[str, Any], language: Language) -> None:
    """Logs ``report.md``, ``html``, ``comparison.json`` and the figures; the verdict becomes the run's description."""
    figures = draw_figures(facts)
    verdict = verdict_of(facts, language)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, png in figures.items():
            (folder / file).write_bytes(png)
        (folder / "report.md").write_text(markdown(facts, language, figures), encoding="utf-8")
        (folder / "html").write_text(html(facts, language, figures), encoding="utf-8")
        comparison = json.dumps({"verdict": verdict, **facts}, indent=2, ensure_ascii=False)
        (folder / COMPARISON_FILE).write_text(comparison, encoding="utf-8")
        mlflow.log_artifacts(name)
    mlflow.set_tag("mlflow.note.content", verdict)


def _project(resources: Resources) -> str:
    """How a command of this experiment begins, with the names that are not defaults."""
    active = mlflow.active_run()
    assert active is not None, "a comparison needs an active run"
    experiment = mlflow.get_experiment(active.info.experiment_id).name
    defaults = Resources()
    names = {name: getattr(resources, name) for name in ("dataset", "vlm", "vlm_model", "encoder")}
    names = {name: value for name, value in names.items() if value != getattr(defaults, name)}
    choices = asdict(resources.data)
    names |= {name: _scalar(value) for name, value in choices.items() if value != asdict(defaults.data)[name]}
    given = [f"-P {shlex.quote(f'{name}={value}')}" for name, value in names.items()]
    return " ".join(["mlflow run .", f"--experiment-name {shlex.quote(experiment)}", *given])


def _result(run_id: str, evaluation: Mapping[str, Any], project: str) -> RunResult:
    try:
        return _run(run_id, evaluation, project)
    except KeyError as error:
        raise DataError(f"run {run_id}: its evaluation has no {error}, it is of an older version; evaluate again") from None


def _run(run_id: str, evaluation: Mapping[str, Any], project: str) -> RunResult:
    """An evaluation as one beta's results: accuracies in percent, epochs apart from baselines."""
    inputs = evaluation["inputs"]
    sections = {"training": evaluation["training"], "evaluation": evaluation["settings"]}
    config = {name: _scalar(value) for name, value in inputs.items() if name not in _NAMES and name != _OF_DATA}
    config |= {
        f"{section}.{name}": _scalar(value)
        for section, settings in sections.items()
        for name, value in settings.items()
        if name not in _MEASURED
    }
    cells: dict[str, dict[tuple[int, int], float]] = {}
    for row in evaluation["accuracy"]:
        cells.setdefault(row["policy"], {})[row["size"], row["shots"]] = 100.0 * row["accuracy"]
    epochs = tuple(
        EpochResult(
            int(metrics["epoch"]),
            {_CURVE_NAMES.get(name, name): value for name, value in metrics.items() if name != "epoch"},
            cells.pop(f"epoch {int(metrics['epoch'])}"),
        )
        for metrics in evaluation["epochs"]
    )
    return RunResult(
        evaluation["kl_beta"],
        config,
        {"digest": inputs[_OF_DATA], **evaluation["rl_data"]},
        epochs,
        baselines=cells,
        best_epoch=evaluation["best_epoch"],
        selection={int(epoch): 100.0 * value for epoch, value in evaluation["selection_accuracy"].items()},
        registered=evaluation["registered"],
        overlap=tuple(evaluation["overlap"]),
        best_single=evaluation["best_single"],
        best_digest=evaluation["registration"]["checkpoint_digest"],
        profile=", ".join(f"{name}={value!r}" for name, value in evaluation["profile"].items()),
        run_id=run_id,
        commands=tuple(_commands(evaluation, project)),
    )


def _scalar(value: Any) -> Any:
    """A setting as the command line takes it."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={item}" for name, item in value.items()) or "none"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _commands(evaluation: Mapping[str, Any], project: str) -> list[str]:
    """The commands that train and evaluate one beta again, on the RL data and with the names given then."""
    inputs, training = evaluation["inputs"], evaluation["training"]
    settings = {name: _scalar(value) for name, value in evaluation["settings"].items()}
    others = {"checkpoints": ",".join(evaluation["checkpoints"])} if evaluation["checkpoints"] else {}
    train = {
        "rl_data": evaluation["rl_data"]["source"],
        **training,
        "init": inputs["start_uri"],
        "seed": inputs["training_seed"],
        "reward_mode": inputs["reward_mode"],
    }
    test = {"kl_beta": evaluation["kl_beta"], "grpo_run": inputs["grpo_run"], "seed": inputs["seed"], **settings, **others}
    return [
        f"{project} -e {step} " + " ".join(f"-P {shlex.quote(f'{name}={value}')}" for name, value in parameters.items())
        for step, parameters in (("grpo", train), ("evaluate", test))
    ]
