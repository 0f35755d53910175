"""Plans commands: says which steps would run, how many prompts they would ask, and how long that takes at the rate seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import mlflow

from lever_mlflow.exceptions import MissingRunError
from lever_mlflow.files.tables import aligned
from lever_mlflow.pipeline.baselines import STEP as BASELINES
from lever_mlflow.pipeline.baselines import most_prompts as prompts_of_baselines
from lever_mlflow.pipeline.context import ANSWERS_PER_SECOND, Context, of_beta
from lever_mlflow.pipeline.evaluation import EVALUATE, prompts_of_policies
from lever_mlflow.pipeline.gate import STEP as VALIDATE
from lever_mlflow.pipeline.grpo import GRPO
from lever_mlflow.pipeline.rollout import STEP as ROLLOUT
from lever_mlflow.pipeline.training import RCE
from lever_mlflow.progress import duration
from lever_mlflow.runs.planning import Plan, Unfinished, active_plan, planning
from lever_mlflow.runs.steps import Step, finished_run
from lever_mlflow.settings import EvalSettings, GrpoSettings, RolloutSettings, RoundSettings, preset_of
from lever_mlflow.trials.rollout import most_prompts as prompts_of_rollout

__all__ = ["expected_steps", "look_ahead", "look_at_steps", "run_or_refuse", "summary_of"]

S = TypeVar("S")


def expected_steps(
    kl_betas: Iterable[float],
    rollout: RolloutSettings,
    grpo: GrpoSettings,
    rounds: RoundSettings,
    evaluation: EvalSettings,
) -> dict[str, int]:
    """Lists the steps from the rollout to the evaluations of betas in the order in which they run.

    Returns:
        The most prompts that each step asks, by its name.
    """
    candidates = grpo.epochs if rounds.rounds == 1 else rounds.rounds
    steps = {ROLLOUT: prompts_of_rollout(rollout), VALIDATE: 0, RCE: 0}
    for kl_beta in kl_betas:
        steps[of_beta(GRPO, kl_beta)] = (rounds.rounds - 1) * prompts_of_rollout(rollout)
        steps.setdefault(BASELINES, prompts_of_baselines(evaluation))
        steps[of_beta(EVALUATE, kl_beta)] = prompts_of_policies(evaluation, learned=1, candidates=candidates)
    return steps


def look_at_steps(
    context: Context, plan: Plan, prepare: Callable[[], Step], command: str, kl_beta: float | None, *, rerun: bool = False
) -> None:
    """Adds to a plan what preparing a step comes across, and the step itself.

    Args:
        context: of the command.
        plan: that is being made.
        prepare: makes the step.
        command: the name of the command that runs the step.
        kl_beta: of the command, where it has one.
        rerun: whether the step runs although a finished run is there.
    """

    def look() -> None:
        step = prepare()
        plan.look(step.name, step.prompts, finished_run(step) if step.repeatable and not rerun else None)

    expected = _of_preset(context, [] if kl_beta is None else [kl_beta])
    name = command if kl_beta is None else of_beta(command, kl_beta)
    steps = list(expected)[: list(expected).index(name) + 1] if name in expected else list(expected)
    look_ahead(plan, look, {step: expected[step] for step in steps})
    if name not in plan.steps and plan.missing:
        plan.look(name, 0, None)


def run_or_refuse(context: Context, actions: Mapping[Callable[[], S], Sequence[float]], *, run_missing: bool) -> list[S]:
    """Returns what actions that look at results return, if no step has to run for them, or missing steps may run.

    Args:
        context: of the command.
        actions: each finds a result, and runs the steps that are missing for it; with the betas whose steps these may be, or
            none where only RL data may be missing.
        run_missing: whether missing steps may run.

    Raises:
        MissingRunError: steps are missing, and may not run; the message names them and what they cost.
        Unfinished: a plan is being made, and steps are missing.
    """
    wanted = active_plan()
    if wanted is None and run_missing:
        return [action() for action in actions]
    with planning() as plan:
        for action, kl_betas in actions.items():
            expected = _of_preset(context, kl_betas)
            look_ahead(plan, action, expected if kl_betas else {ROLLOUT: expected[ROLLOUT]})
    if not plan.missing:
        return [action() for action in actions]
    if wanted is not None:
        wanted.steps |= plan.steps
        raise Unfinished(plan.missing[-1].name)
    names = ", ".join(step.name for step in plan.missing)
    raise MissingRunError(
        f"this experiment lacks what is asked for; these steps would have to run first: {names}. {_cost(context, plan)} "
        "With run_missing=true the same command runs them"
    )


def look_ahead(plan: Plan, action: Callable[[], Any], expected: Mapping[str, int]) -> None:
    """Adds to a plan what an action comes across, and from the first step that is missing on, the steps that are expected.

    Args:
        plan: that is being made.
        action: prepares steps in turn.
        expected: the most prompts of each step by name, in the order in which the steps run.
    """
    try:
        action()
    except Unfinished as missing:
        names = list(expected)
        after = names.index(str(missing)) + 1 if str(missing) in expected else len(names)
        for name in names[after:]:
            plan.look(name, expected[name], None)


def summary_of(context: Context, plan: Plan) -> str:
    """Returns a plan as a table, with the number of prompts and the time that they take."""
    rows = []
    for step in plan.steps.values():
        would = f"would run, at most {step.prompts:,} prompts" if step.prompts else "would run"
        rows.append([step.name, would if step.run_id is None else f"reused from run {step.run_id}"])
    return f"Plan; nothing was run.\n{aligned(rows)}\n{_cost(context, plan)}"


def _of_preset(context: Context, kl_betas: Iterable[float]) -> dict[str, int]:
    """Lists the expected steps with the settings that steps have which are run first for others."""
    preset = context.preset
    return expected_steps(
        kl_betas,
        preset_of(RolloutSettings, preset),
        preset_of(GrpoSettings, preset),
        preset_of(RoundSettings, preset),
        preset_of(EvalSettings, preset),
    )


def _cost(context: Context, plan: Plan) -> str:
    prompts = sum(step.prompts for step in plan.missing)
    if not prompts:
        return "The VLM would answer no prompts."
    rate = _answers_per_second(context)
    if rate is None:
        time = "how long that takes is not known, as no run in this experiment has asked this VLM"
    else:
        time = f"at {rate:.3g} answers a second, as seen last in this experiment, about {duration(prompts / rate)}"
    known = "Prompts that are equal or were answered before cost nothing."
    return f"The VLM would answer at most {prompts:,} prompts: {time}. {known}"


def _answers_per_second(context: Context) -> float | None:
    """Returns the rate of the newest run on these resources that asked the VLM; None where there is none."""
    active = mlflow.active_run()
    assert active is not None, "a plan is made within a run"
    tags = " and ".join(f"tags.`lever.{name}` = '{value}'" for name, value in context.same_resources().items())
    runs: Sequence[Any] = mlflow.search_runs(
        experiment_ids=[active.info.experiment_id],
        filter_string=f"{tags} and metrics.`{ANSWERS_PER_SECOND}` > 0",
        order_by=["attributes.start_time DESC"],
        max_results=1,
        output_format="list",
    )
    return float(runs[0].data.metrics[ANSWERS_PER_SECOND]) if runs else None
