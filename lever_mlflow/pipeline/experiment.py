"""Defines the whole experiment as one step: every other step in turn, each a child run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from lever_mlflow.evaluation.questions import split_questions
from lever_mlflow.pipeline.baselines import baselines_step
from lever_mlflow.pipeline.comparison import compare_step, comparison_summary
from lever_mlflow.pipeline.context import Context, make_step
from lever_mlflow.pipeline.evaluation import ensure_evaluated
from lever_mlflow.pipeline.gate import validate_step
from lever_mlflow.pipeline.grpo import grpo_step
from lever_mlflow.pipeline.rollout import rl_data_of_run, rollout_step
from lever_mlflow.pipeline.training import rce_step, start_of_run
from lever_mlflow.runs.steps import Step, ensure
from lever_mlflow.settings import EvalSettings, GrpoSettings, Language, RceSettings, RolloutSettings, RoundSettings
from lever_mlflow.trials.rollout import check_settings, choose_queries

__all__ = ["Experiment", "experiment_step"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """Holds the settings of all steps of an experiment; ``grpo`` is trained once for each of ``kl_betas``."""

    kl_betas: Sequence[float]
    rollout: RolloutSettings
    rce: RceSettings
    rounds: RoundSettings
    grpo: GrpoSettings
    evaluation: EvalSettings
    language: Language


def experiment_step(context: Context, experiment: Experiment) -> Step:
    """Prepares every step in turn as a child run; those that finished before with the same inputs are reused.

    Raises:
        ParameterError: questions or pools do not suffice for the settings, which is found out before any work.
    """
    check_settings(experiment.rollout)
    choose_queries(context.resources.train, experiment.rollout.n_queries, context.seed)
    split_questions(context.resources.val, experiment.evaluation, context.seed)
    settings = {
        "kl_betas": tuple(experiment.kl_betas),
        **{f"rollout_{name}": value for name, value in asdict(experiment.rollout).items()},
        **{f"rce_{name}": value for name, value in asdict(experiment.rce).items()},
        **asdict(experiment.rounds),
        **{f"grpo_{name}": value for name, value in asdict(experiment.grpo).items() if name != "kl_beta"},
        **{f"evaluation_{name}": value for name, value in asdict(experiment.evaluation).items()},
        "lang": experiment.language,
    }

    def execute() -> None:
        log.info("\n%s", comparison_summary(_run(context, experiment)))

    return make_step(context, "main", "experiment", settings, context.common(), execute)


def _run(context: Context, experiment: Experiment) -> str:
    """Runs the steps, and returns the id of the comparison's run."""
    data = rl_data_of_run(context, ensure(rollout_step(context, experiment.rollout)))
    ensure(validate_step(context, data))
    start = start_of_run(ensure(rce_step(context, data, experiment.rce)))
    ensure(baselines_step(context, experiment.evaluation))
    evaluations = []
    for kl_beta in experiment.kl_betas:
        grpo_run = ensure(grpo_step(context, data, start, replace(experiment.grpo, kl_beta=kl_beta), experiment.rounds))
        evaluations.append(ensure_evaluated(context, grpo_run, experiment.evaluation))
    return ensure(compare_step(context, evaluations, experiment.language))
