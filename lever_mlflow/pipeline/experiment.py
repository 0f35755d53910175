"""Defines the whole experiment as one step: every other step in turn, each a child run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from lever_mlflow.data.features import check_fusion, check_sampler
from lever_mlflow.evaluation.questions import split_questions
from lever_mlflow.pipeline.baselines import baselines_step
from lever_mlflow.pipeline.comparison import compare_step, comparison_summary
from lever_mlflow.pipeline.context import Context, make_step
from lever_mlflow.pipeline.evaluation import ensure_evaluated
from lever_mlflow.pipeline.gate import validate_step
from lever_mlflow.pipeline.grpo import grpo_step
from lever_mlflow.pipeline.overview import show_overview
from lever_mlflow.pipeline.planning import expected_steps, look_ahead
from lever_mlflow.pipeline.rollout import rl_data_of_run, rollout_step
from lever_mlflow.pipeline.training import rce_step, start_of_run
from lever_mlflow.runs.planning import Plan
from lever_mlflow.runs.steps import Step, ensure
from lever_mlflow.settings import (
    EvalSettings,
    GrpoSettings,
    Language,
    RceSettings,
    RolloutSettings,
    RoundSettings,
    format_beta,
)
from lever_mlflow.trials.rl_data import RLData
from lever_mlflow.trials.rollout import check_settings, choose_queries

__all__ = ["Experiment", "experiment_step", "plan_experiment"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """Holds the settings of all steps of an experiment; ``grpo`` is trained once for each of ``kl_betas``.

    Attributes:
        options: the options of the command ``main`` as the user gave them, by name.
    """

    kl_betas: Sequence[float]
    rollout: RolloutSettings
    rce: RceSettings
    rounds: RoundSettings
    grpo: GrpoSettings
    evaluation: EvalSettings
    language: Language
    options: dict[str, Any]


def experiment_step(context: Context, experiment: Experiment) -> Step:
    """Prepares every step in turn as a child run; those that finished before with the same inputs are reused.

    Raises:
        ParameterError: questions or pools do not suffice for the settings, or the encoder does not give what they take, which
            is found out before any work.
    """
    check_settings(experiment.rollout)
    sides = context.resources.encoder_sides
    check_fusion(experiment.rce.fusion, sides)
    for sampler in (experiment.rollout.pool_sampler, experiment.evaluation.pool_sampler):
        check_sampler(sampler, sides)
    choose_queries(context.resources.train, experiment.rollout.n_queries, context.seed)
    split_questions(context.resources.val, experiment.evaluation, context.seed)

    def execute() -> None:
        runs: list[str] = []
        _run(context, experiment, runs)
        log.info("\n%s", comparison_summary(runs[-1]))
        show_overview(runs, experiment.language)

    betas = ", ".join(map(format_beta, experiment.kl_betas))
    return make_step(
        context,
        "main",
        f"betas {betas}, seed {context.seed}",
        experiment.options,
        context.common(),
        execute,
        config=_config(context, experiment),
        shots=max(experiment.rollout.shots, *experiment.evaluation.shots),
        repeatable=False,
    )


def plan_experiment(context: Context, plan: Plan, experiment: Experiment) -> None:
    """Adds to a plan what the experiment would reuse and what it would run."""
    expected = partial(
        expected_steps,
        rollout=experiment.rollout,
        grpo=experiment.grpo,
        rounds=experiment.rounds,
        evaluation=experiment.evaluation,
    )
    everything = {**expected(experiment.kl_betas), "compare": 0}
    evaluations: list[str] = []

    def train_and_evaluate(data: RLData, start: str, kl_beta: float) -> None:
        evaluations.extend(_runs_of_beta(context, experiment, data, start, kl_beta)[1:])

    def look() -> None:
        data, start = _start(context, experiment, [])
        ensure(baselines_step(context, experiment.evaluation))
        for kl_beta in experiment.kl_betas:
            look_ahead(plan, partial(train_and_evaluate, data, start, kl_beta), expected([kl_beta]))
        if plan.missing:
            plan.look("compare", 0, None)
        else:
            ensure(compare_step(context, evaluations, experiment.language))

    look_ahead(plan, look, everything)


def _run(context: Context, experiment: Experiment, runs: list[str]) -> None:
    """Runs the steps, and adds the ids of their runs in order; the last one is that of the comparison."""
    data, start = _start(context, experiment, runs)
    runs.append(ensure(baselines_step(context, experiment.evaluation)))
    evaluations = []
    for kl_beta in experiment.kl_betas:
        grpo_run, evaluation = _runs_of_beta(context, experiment, data, start, kl_beta)
        runs += [grpo_run, evaluation]
        evaluations.append(evaluation)
    runs.append(ensure(compare_step(context, evaluations, experiment.language)))


def _start(context: Context, experiment: Experiment, runs: list[str]) -> tuple[RLData, str]:
    """Runs the steps that all betas share, and returns the RL data and the start checkpoint's URI."""
    runs.append(ensure(rollout_step(context, experiment.rollout)))
    data = rl_data_of_run(context, runs[-1])
    runs.append(ensure(validate_step(context, data)))
    runs.append(ensure(rce_step(context, data, experiment.rce)))
    return data, start_of_run(runs[-1])


def _runs_of_beta(context: Context, experiment: Experiment, data: RLData, start: str, kl_beta: float) -> tuple[str, str]:
    """Trains and evaluates a beta, and returns the ids of both runs."""
    grpo_run = ensure(grpo_step(context, data, start, replace(experiment.grpo, kl_beta=kl_beta), experiment.rounds))
    return grpo_run, ensure_evaluated(context, grpo_run, experiment.evaluation)


def _config(context: Context, experiment: Experiment) -> dict[str, Any]:
    """Returns the content of a configuration file that repeats the experiment."""
    judgement = {**context.reward.options, "thresholds": context.gate.thresholds}
    grpo = {name: value for name, value in asdict(experiment.grpo).items() if name != "kl_beta"}
    return {
        **context.shared_options(),
        "main": {
            "kl_betas": experiment.kl_betas,
            **judgement,
            "on_bad_data": context.gate.on_bad_data,
            "model_name": context.model_name,
            "register": context.register,
        },
        "rollout": asdict(experiment.rollout),
        "rce": asdict(experiment.rce),
        "grpo": {**asdict(experiment.rounds), **grpo},
        "evaluate": asdict(experiment.evaluation),
        "compare": {"lang": experiment.language},
    }
