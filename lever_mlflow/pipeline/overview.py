"""Shows what an experiment came to on its own run, and describes the MLflow experiment: the pages on which the UI opens."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import mlflow

from lever_mlflow.comparison.facts import Comparison
from lever_mlflow.comparison.figures import FIGURE_FILES
from lever_mlflow.comparison.page import opening
from lever_mlflow.pipeline.comparison import COMPARISON_FILE, REPORT_FILE
from lever_mlflow.runs.artifacts import artifact, list_artifacts
from lever_mlflow.runs.links import run_link
from lever_mlflow.runs.steps import active_run
from lever_mlflow.runs.tags import DESCRIPTION, set_description
from lever_mlflow.settings import Language

__all__ = ["describe_experiment", "show_overview"]

_EXPERIMENT = """\
Which solved examples (demonstrations) should stand before a question in the prompt of a frozen vision-language model? A small
selector learns to choose them from recorded trials, and this experiment compares trainings with different KL weights *beta*.

**Where to begin.** A run called `betas ...` is a whole experiment: its description says what came out and links to the report.
Its child runs are the steps: `rollout` records trials, `validate` checks them, `rce` trains the start checkpoint,
`grpo beta ...` optimises it in rounds, `evaluate beta ...` measures its epochs and registers the best one, unless its
description says why not, and `compare` writes the report.

**How to compare betas.** Sort the `evaluate` runs by the metric `accuracy`: the VQA accuracy of the best epoch as a mean
over numbers of demonstrations (`accuracy/shots1` and so on for each number). Whether a difference is more than chance is in the
report, not in the ranking. Trainings log `train/...` and `val/...` with the epoch as step.

**What next.** Registered versions are under Models; `promote` makes one of them the champion if the evidence supports it.
"""


def describe_experiment() -> None:
    """Gives the MLflow experiment of the active run a description, unless it has one."""
    experiment = mlflow.get_experiment(active_run().info.experiment_id)
    if not experiment.tags.get(DESCRIPTION):
        mlflow.MlflowClient().set_experiment_tag(experiment.experiment_id, DESCRIPTION, _EXPERIMENT)


def show_overview(runs: Sequence[str], language: Language) -> None:
    """Gives the active run the report, the figures, the headline metrics, and a description that leads to everything.

    Args:
        runs: the ids of the steps' runs in order, the comparison's last.
        language: of the description.
    """
    comparison_run = runs[-1]
    comparison = Comparison.read(artifact(comparison_run, COMPARISON_FILE))
    with tempfile.TemporaryDirectory() as folder:
        present = list_artifacts(comparison_run, "")
        for path in (REPORT_FILE, *FIGURE_FILES):  # and nothing that others have logged there
            if path in present:
                Path(folder, path).write_bytes(artifact(comparison_run, path).read_bytes())
        mlflow.log_artifacts(folder)
    _log_headlines(comparison)
    experiment_run = active_run().info.run_id
    steps = [f"- {run_link(run_id)}{'' if _is_child(run_id, experiment_run) else ' (reused)'}" for run_id in runs]
    verdict, *further = opening(comparison, language)
    set_description("\n\n".join([verdict, run_link(experiment_run, REPORT_FILE), *further, "Steps:", "\n".join(steps)]))


def _log_headlines(comparison: Comparison) -> None:
    """Logs the accuracy of each beta's best epoch, and of the beta that is recommended, in [0, 1].

    Where none is recommended because all betas have the same accuracy, that accuracy is logged.
    """
    accuracies = {row.run: round(row.accuracy / 100, 6) for row in comparison.ranking if row.accuracy is not None}
    mlflow.log_metrics({f"accuracy/beta {beta}": value for beta, value in accuracies.items()})
    chosen = comparison.choice.run
    if chosen in accuracies:
        mlflow.log_metric("accuracy", accuracies[chosen])
    elif len(equal := set(accuracies.values())) == 1:
        mlflow.log_metric("accuracy", equal.pop())


def _is_child(run_id: str, parent: str) -> bool:
    return mlflow.get_run(run_id).data.tags.get("mlflow.parentRunId") == parent
