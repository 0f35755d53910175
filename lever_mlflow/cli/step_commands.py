"""Runs the commands of steps: reads their configuration file, opens their MLflow run, and plans, reuses or runs them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lever_mlflow import invocation
from lever_mlflow.cli.config_files import Config, read_config
from lever_mlflow.cli.launching import say
from lever_mlflow.cli.options import Part, chosen
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.files.urls import without_secrets
from lever_mlflow.settings import (
    AUTO,
    NONE,
    DataSettings,
    ExperimentSettings,
    GateSettings,
    PresetInputs,
    ResourceSettings,
    RlDataSettings,
    as_text,
)

if TYPE_CHECKING:
    from lever_mlflow.pipeline.context import Context
    from lever_mlflow.runs.planning import Plan
    from lever_mlflow.runs.steps import Step

__all__ = ["COMMANDS", "StepCommand", "check_sections", "make_context", "perform", "values_of_step"]

COMMANDS: dict[str, StepCommand] = {}  # by name, in the order of the experiment
_SHARED = (ResourceSettings, DataSettings, ExperimentSettings, PresetInputs)


class StepCommand(click.Command):
    """Is the command of a step; it takes options from a configuration file, and those given beside it take precedence."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        COMMANDS[self.name or ""] = self
        for option in self.params:
            if option.name == "config":
                option.is_eager, option.callback = True, _take_config

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; commands that it prints then hold the options that other steps share with it."""
        names = {setting.name for part in _SHARED for setting in fields(part)}
        arguments = {name: value for name, value in ctx.params.items() if name in names and _is_given(ctx, name)}
        accepted = {step: frozenset(option.name or "" for option in command.params) for step, command in COMMANDS.items()}
        invocation.begin({name: without_secrets(as_text(value)) for name, value in arguments.items()}, accepted)
        return super().invoke(ctx)


def _is_given(ctx: click.Context, name: str) -> bool:
    """Says whether the user gave an option, on the command line or in the configuration file."""
    return ctx.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)


def perform(
    values: Mapping[str, Any],
    prepare: Callable[[Context], Step],
    *,
    look: Callable[[Context, Plan], None] | None = None,
    show: Callable[[str], str] | None = None,
    check: bool = True,
) -> None:
    """Prepares the step of the present command and runs it, or prints the plan of it.

    Args:
        values: the command's values.
        prepare: makes the step.
        look: adds to a plan what the command would do; by default what preparing the step comes across, and the step.
        show: returns what is printed at the end, by the id of the run that holds the result.
        check: whether data set, models and thresholds are looked at first.
    """
    from lever_mlflow.pipeline.overview import describe_experiment
    from lever_mlflow.pipeline.planning import look_at_steps, summary_of
    from lever_mlflow.runs.optional_runs import passing_run
    from lever_mlflow.runs.planning import planning
    from lever_mlflow.runs.steps import anew, project_run, run_here

    name = click.get_current_context().command.name or ""
    _check_parameters_of_environment_run()
    resumes = values.get("resume", AUTO) != AUTO  # who names what to resume wants the step to run
    with (
        passing_run(f"plan of {name}", "plan") if values["plan"] else project_run(name),
        anew() if values["rerun"] else nullcontext(),
    ):
        describe_experiment()
        context = make_context(values, check=check)
        if values["plan"]:
            with planning() as plan:
                if look is None:
                    look_at_steps(context, plan, lambda: prepare(context), name, values.get("kl_beta"), rerun=resumes)
                else:
                    look(context, plan)
            text = summary_of(context, plan)
        else:
            run_id = run_here(prepare(context), rerun=resumes)
            text = "" if show is None else show(run_id)
    if text:  # a run has succeeded even where its result cannot be printed
        say(text)


def _check_parameters_of_environment_run() -> None:
    """Checks that the run that ``MLFLOW_RUN_ID`` names has no parameters with which the present command does not run.

    Raises:
        ParameterError: it has another value for an option of the command. MissingRunError, StoreError: as ``environment_run``.
    """
    from lever_mlflow.runs.environment_run import RUN_ID, environment_run
    from lever_mlflow.runs.stores import check_stores, store_errors

    if RUN_ID not in os.environ:
        return
    with store_errors():
        check_stores()
        run = environment_run()
    if run is None:
        return
    ctx = click.get_current_context()
    for option in ctx.command.params:
        recorded = run.data.params.get(option.name)
        if recorded is not None and not _means(ctx, option, recorded):
            raise ParameterError(
                f"{RUN_ID}={run.info.run_id}: that run has {option.name}={recorded}, but this command has "
                f"{as_text(ctx.params[option.name])}; unset {RUN_ID}, or give the same value"
            )


def _means(ctx: click.Context, option: click.Parameter, text: str) -> bool:
    """Says whether a recorded text stands for the value that an option of the present command has.

    ``mlflow run`` records a text as it quotes it for the shell, and cuts a long one.
    """
    from lever_mlflow.runs.fields import LONGEST_PARAMETER

    if len(text) >= LONGEST_PARAMETER:
        return True
    with suppress(ValueError):  # a text that the shell would not take
        text = " ".join(shlex.split(text)) if text.startswith("'") else text
    try:
        return bool(option.type_cast_value(ctx, text) == ctx.params[option.name or ""])
    except click.UsageError:
        return False


def make_context(values: Mapping[str, Any], *, check: bool = True) -> Context:
    """Returns what all steps share, by a command's values; ``check`` looks at data set, models and thresholds at once."""
    from lever_mlflow.files.cache_dir import default_cache_dir
    from lever_mlflow.pipeline.context import Context
    from lever_mlflow.pipeline.gate import suite_digest
    from lever_mlflow.pipeline.resources import Resources

    data = DataSettings(**chosen(DataSettings, values))
    resources = Resources(**chosen(ResourceSettings, values), cache_dir=default_cache_dir(), data=data)
    parts = (ExperimentSettings, Part(RlDataSettings, ("use_fallback", "item_order")), PresetInputs)
    shared = {name: value for part in parts for name, value in chosen(part, values).items()}
    context = Context(resources, gate=GateSettings(**chosen(GateSettings, values)), **shared)
    if check:
        resources.check()
        suite_digest(context)
    return context


def values_of_step(step: str, *parts: Part) -> dict[str, Any]:
    """Returns the values of another step's options in the present command, which runs that step too.

    They are taken from the step's section of the configuration file; options of the present command take precedence.

    Args:
        step: the name of the step's command.
        parts: settings of the step that the present command has options for.
    """
    ctx = click.get_current_context()
    config: Config = ctx.meta.get(__name__, {})
    command = COMMANDS[step]
    of_step = click.Context(command, info_name=step, default_map={**config.get("", {}), **config.get(step, {})})
    command.parse_args(of_step, [])
    values = dict(of_step.params)
    section = config.get(step, {})
    for part in parts:
        for name, setting in part.fields():
            if _is_given(ctx, name) or setting.name not in section:
                values[setting.name] = ctx.params[name]
    return values


def check_sections(sections: Mapping[str, Sequence[Part]]) -> None:
    """Checks that the configuration file holds, for steps that the present command runs too, only what it takes from there.

    Args:
        sections: the settings that are taken from the section of each step, by the step's name.

    Raises:
        ParameterError: a section holds another option, such as one that names an input.
    """
    ctx = click.get_current_context()
    config: Config = ctx.meta.get(__name__, {})
    for step, parts in sections.items():
        accepted = {setting.name for part in parts for _, setting in part.fields()}
        for name in config.get(step, {}):
            if name not in accepted:
                raise ParameterError(
                    f"config={ctx.params['config']}: {step}.{name}: {ctx.command.name} does not take this for its step {step}; "
                    f"remove the line, or look among the options of {ctx.command.name}"
                )


def _take_config(ctx: click.Context, option: click.Parameter, value: str) -> str:
    """Reads the configuration file, so that its values replace the defaults of the command's options."""
    if value != NONE:
        config = read_config(value, COMMANDS)
        ctx.meta[__name__] = config
        ctx.default_map = {**config[""], **config.get(ctx.command.name or "", {})}
    return value
