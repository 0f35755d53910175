"""Defines the commands: one for each step of the experiment, and the group ``lever-mlflow`` that holds them all.

``MLproject`` runs the same commands as ``python -m entrypoints.<name>``; the names of their options are its parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lever_mlflow import __version__
from lever_mlflow.cli.launching import in_processes, launch, say, with_output
from lever_mlflow.cli.options import Part, chosen, options, settings_of
from lever_mlflow.cli.step_commands import (
    COMMANDS,
    StepCommand,
    check_sections,
    make_context,
    perform,
    values_of_step,
)
from lever_mlflow.settings import (
    AUTO,
    NONE,
    CommandSettings,
    ComparisonInputs,
    DataSettings,
    EvalSettings,
    EvaluationInputs,
    ExperimentSettings,
    GateSettings,
    GrpoInputs,
    GrpoSettings,
    MergeInputs,
    MissingStepSettings,
    PresetInputs,
    PromotionSettings,
    RceSettings,
    ResourceSettings,
    RlDataSettings,
    RolloutInputs,
    RolloutSettings,
    RoundSettings,
    ShardInputs,
    SweepInputs,
    TrainingInputs,
    ValidationInputs,
)

if TYPE_CHECKING:
    from lever_mlflow.pipeline.context import Context
    from lever_mlflow.runs.steps import Step

__all__ = [
    "cli",
    "compare",
    "convert",
    "evaluate",
    "grpo",
    "main",
    "merge",
    "merge_answers",
    "promote",
    "rce",
    "rollback",
    "rollout",
    "run",
    "status",
    "validate",
]

SEED = Part(ExperimentSettings, ("seed",))
REWARD = Part(ExperimentSettings, ("reward_mode", "reward_weights"))
MODEL_NAME = Part(ExperimentSettings, ("model_name",))
REGISTRATION = Part(ExperimentSettings, ("model_name", "register"))
REGISTERED = Part(ResourceSettings, ("dataset", "vlm", "vlm_model"))  # what the registered model is named after
KL_BETA = Part(GrpoSettings, ("kl_beta",))
READING = Part(RlDataSettings, ("use_fallback", "item_order"))
PLAN = Part(CommandSettings, ("plan",))
LANGUAGE = Part(ComparisonInputs, ("lang",))

# what the whole experiment takes of each stage
QUERIES = Part(RolloutSettings, ("n_queries", "pool_sampler"))
JUDGEMENT = Part(GateSettings, ("thresholds", "on_bad_data", "gate_engine"))
RCE = Part(RceSettings, ("epochs", "lr"), prefix="rce_")
FUSION = Part(RceSettings, ("fusion",))
GRPO = Part(GrpoSettings, ("epochs", "lr"), prefix="grpo_")
ROUNDS = Part(RoundSettings)
QUESTIONS = Part(EvalSettings, ("sizes", "shots", "n_selection", "pool_sampler", "order"))

# what the whole experiment takes from the sections of a configuration file
SECTIONS = {
    "rollout": (Part(RolloutSettings),),
    "validate": (),
    "rce": (Part(RceSettings),),
    "grpo": (Part(GrpoSettings, tuple(setting.name for setting in fields(GrpoSettings) if setting.name != "kl_beta")), ROUNDS),
    "evaluate": (Part(EvalSettings),),
    "compare": (LANGUAGE,),
}

step_command = partial(click.command, cls=StepCommand)
resource_options = options(ResourceSettings, SEED, DataSettings, CommandSettings)


@step_command()
@resource_options
@options(
    REWARD, REGISTRATION, JUDGEMENT, SweepInputs, QUESTIONS, QUERIES, RCE, FUSION, PresetInputs, RoundSettings, GRPO, LANGUAGE
)
@with_output
@in_processes
def main(**values: Any) -> None:
    """Run the whole experiment, each step as a child run.

    The steps are the rollout, the data gate, RCE, the baselines, GRPO in rounds and its evaluation for each KL weight, and the
    comparison. A finished step with the same inputs is reused.
    """
    from lever_mlflow.pipeline.experiment import Experiment, experiment_step, plan_experiment

    check_sections(SECTIONS)
    grpo_values = {**values_of_step("grpo", GRPO, ROUNDS), "preset": values["preset"]}
    experiment = Experiment(
        kl_betas=values["kl_betas"],
        rollout=settings_of(RolloutSettings, {**values_of_step("rollout", QUERIES), "preset": values["preset"]}),
        rce=settings_of(RceSettings, values_of_step("rce", RCE, FUSION)),
        rounds=settings_of(RoundSettings, grpo_values),
        grpo=settings_of(GrpoSettings, grpo_values),
        evaluation=settings_of(EvalSettings, {**values_of_step("evaluate", QUESTIONS), "preset": values["preset"]}),
        language=values_of_step("compare", LANGUAGE)["lang"],
        options={name: value for name, value in values.items() if name not in chosen(CommandSettings, values)},
    )
    shared = {**values, "max_shots": max(experiment.evaluation.shots)}
    perform(shared, partial(experiment_step, experiment=experiment), look=partial(plan_experiment, experiment=experiment))


@step_command()
@resource_options
@options(RolloutInputs, PresetInputs, RolloutSettings, ShardInputs)
@with_output
@in_processes
def rollout(**values: Any) -> None:
    """Record trials as RL data.

    The VLM answers behind the pointers of a starting policy and of baselines, and its answers are scored. The run holds the
    trials as rl_data.json. A shard, and any rollout of more than 100,000 trials, is held as rl_data.parquet.
    """
    from lever_mlflow.pipeline.rollout import rollout_step
    from lever_mlflow.trials.sharding import Shard

    settings, shard = settings_of(RolloutSettings, values), Shard(values["shard"], values["n_shards"])
    perform(values, lambda context: rollout_step(context, settings, values["init"], shard=shard))


@step_command()
@resource_options
@options(REWARD, READING, GateSettings, MergeInputs)
@with_output
@in_processes
def merge(**values: Any) -> None:
    """Merge RL data that were recorded in parts.

    The run holds the merged data as rl_data.json, and more than 100,000 trials or merged shards as rl_data.parquet. The data
    gate judges the merged data, and a failed critical expectation fails the run.
    """
    from lever_mlflow.pipeline.merging import merge_shards_step, merge_step

    parts, shards = ([] if values[name] == NONE else split(values[name]) for name in ("parts", "shards"))
    perform(values, lambda context: merge_shards_step(context, shards, parts) if shards else merge_step(context, parts))


@step_command()
@resource_options
@options(REWARD, RlDataSettings, GateSettings, ValidationInputs, MissingStepSettings)
@with_output
@in_processes
def validate(**values: Any) -> None:
    """Check RL data with the data gate.

    The log shows a table of the expectations of the Great Expectations suites that failed, or with -v of all. A failed critical
    expectation fails the run.
    """
    from lever_mlflow.pipeline.gate import validate_step
    from lever_mlflow.pipeline.planning import run_or_refuse
    from lever_mlflow.pipeline.rollout import find_rl_data, read_rl_data

    def prepare(context: Context) -> Step:
        reference = None if values["reference"] == NONE else read_rl_data(context, values["reference"])
        find = partial(find_rl_data, context, values["rl_data"])
        (data,) = run_or_refuse(context, {find: []}, run_missing=values["run_missing"])
        return validate_step(context, data, reference)

    perform(values, prepare)


@step_command()
@resource_options
@options(REWARD, RlDataSettings, GateSettings, RceSettings, TrainingInputs)
@with_output
@in_processes
def rce(**values: Any) -> None:
    """Train a new selector by reward-weighted cross-entropy.

    The run holds a checkpoint for each epoch.
    """
    from lever_mlflow.pipeline.rollout import find_rl_data
    from lever_mlflow.pipeline.training import rce_step

    settings = settings_of(RceSettings, values)

    def prepare(context: Context) -> Step:
        return rce_step(context, find_rl_data(context, values["rl_data"]), settings, resumed(values))

    perform(values, prepare)


@step_command()
@resource_options
@options(REWARD, RlDataSettings, GateSettings, GrpoInputs, PresetInputs, RoundSettings, GrpoSettings, TrainingInputs)
@with_output
@in_processes
def grpo(**values: Any) -> None:
    """Optimise a start checkpoint by GRPO under a KL penalty.

    Each round after the first records fresh trials of the policy that was reached. The run holds a checkpoint for each epoch.
    """
    from lever_mlflow.pipeline.checkpoints import read_selector
    from lever_mlflow.pipeline.grpo import grpo_step
    from lever_mlflow.pipeline.rollout import find_rl_data
    from lever_mlflow.pipeline.training import find_start

    settings, rounds = settings_of(GrpoSettings, values), settings_of(RoundSettings, values)

    def prepare(context: Context) -> Step:
        if values["init"] != AUTO:
            read_selector(context, values["init"])  # a rollout may take hours: report a wrong one before it
        data = find_rl_data(context, values["rl_data"])
        start = find_start(context, values["init"], data)
        return grpo_step(context, data, start, settings, rounds, resumed(values))

    perform(values, prepare)


@step_command()
@resource_options
@options(REWARD, REGISTRATION, KL_BETA, EvaluationInputs, PresetInputs, EvalSettings)
@with_output
@in_processes
def evaluate(**values: Any) -> None:
    """Evaluate the epochs of a GRPO run and register the best.

    The last epoch of each round, or every epoch of a single round, answers the same questions as the start checkpoint and the
    baselines.
    """
    from lever_mlflow.pipeline.baselines import baselines_step
    from lever_mlflow.pipeline.evaluation import evaluate_step, read_checkpoints
    from lever_mlflow.pipeline.grpo import find_grpo
    from lever_mlflow.runs.steps import ensure

    settings = settings_of(EvalSettings, values)
    checkpoints = [] if values["checkpoints"] == NONE else split(values["checkpoints"])

    def prepare(context: Context) -> Step:
        if values["grpo_run"] == AUTO:
            read_checkpoints(context, checkpoints)  # report a wrong one before a training begins
        context.resources.try_longest_prompt(max(settings.shots))
        grpo_run = find_grpo(context, values["grpo_run"], values["kl_beta"])
        ensure(baselines_step(context, settings))
        return evaluate_step(context, grpo_run, settings, checkpoints)

    perform(values, prepare)


@step_command()
@resource_options
@options(REWARD, MODEL_NAME, ComparisonInputs, MissingStepSettings)
@with_output
@in_processes
def compare(**values: Any) -> None:
    """Compare KL weights, or runs that differ in anything else, in a report.

    The run holds report.html, report.md, comparison.json and figures.
    """
    from lever_mlflow.pipeline.comparison import chosen_evaluations, compare_results_step, compare_step, comparison_summary
    from lever_mlflow.pipeline.evaluation import find_evaluation
    from lever_mlflow.pipeline.planning import run_or_refuse

    kl_betas, how = values["kl_betas"], {"language": values["lang"], "vary": values["vary"]}

    def prepare(context: Context) -> Step:
        if values["results"] != NONE:
            return compare_results_step(context, Path(values["results"]), **how)
        if values["evaluations"] != AUTO:
            return compare_step(context, chosen_evaluations(split(values["evaluations"])), **how)
        find: dict[Callable[[], str], list[float]] = {partial(find_evaluation, context, beta): [beta] for beta in kl_betas}
        return compare_step(context, run_or_refuse(context, find, run_missing=values["run_missing"]), **how)

    perform(values, prepare, show=comparison_summary)


@step_command()
@resource_options
@options(MODEL_NAME, KL_BETA, PromotionSettings)
@with_output
def promote(**values: Any) -> None:
    """Make a registered version the champion.

    The version of a KL weight gets the alias champion if the evidence is for it, and the former champion previous-champion.
    """
    from lever_mlflow.pipeline.promotion import plan_promotion, promote_step

    settings = PromotionSettings(**chosen(PromotionSettings, values))
    # only an evaluation of the champion takes data and models
    prepare = partial(promote_step, kl_beta=values["kl_beta"], settings=settings)
    perform(values, prepare, look=partial(plan_promotion, kl_beta=values["kl_beta"]), check=False)


@step_command()
@options(REGISTERED, MODEL_NAME, PLAN)
@with_output
def rollback(**values: Any) -> None:
    """Make the previous champion the champion again.

    Swaps the aliases champion and previous-champion. A tag of the new champion records this. Only mlflow run makes
    an MLflow run for it.
    """
    from lever_mlflow.pipeline.promotion import roll_back

    roll_back(make_context(values, check=False), plan=values["plan"])


@step_command()
@options(REGISTERED, MODEL_NAME)
@with_output
def status(**values: Any) -> None:
    """List the registered versions.

    The table shows their aliases, accuracies and data. This leaves no MLflow run, as nothing is computed.
    """
    from lever_mlflow.pipeline.promotion import list_versions
    from lever_mlflow.runs.optional_runs import placeholder_run

    with placeholder_run("status"):
        say(list_versions(make_context(values, check=False)))


@click.command("merge-answers")
@click.argument("into", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("sources", type=click.Path(path_type=Path, dir_okay=False, exists=True), nargs=-1, required=True)
def merge_answers(into: Path, sources: tuple[Path, ...]) -> None:
    """Merge caches of VLM answers.

    Adds the answers that other machines have stored in the files SOURCES to the file INTO. Answers that INTO holds already
    stay as they are. This is no MLflow run, as nothing is computed.
    """
    from lever_mlflow.vlm.answer_cache import merge_answers as merge_caches

    say(f"{into}: {merge_caches(sources, into)} answers added")


@click.command()
@click.argument("source", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
def convert(source: Path, target: Path) -> None:
    """Convert RL data between JSON and Parquet.

    Writes the RL data of the file SOURCE to the new file TARGET, whose name ends in .json or .parquet. Both hold the same and
    have the same digest. This is no MLflow run, as nothing is computed.
    """
    from lever_mlflow.trials.columns import as_columns
    from lever_mlflow.trials.converting import convert as convert_rl_data

    data = convert_rl_data(source, target)
    n_trials = as_columns(data.groups).n_trials
    click.echo(f"{target}: {len(data.groups):,} queries with {n_trials:,} usable trials, digest {data.digest}")


class StepGroup(click.Group):
    """Lists its commands in the order of the experiment."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of the commands as they were added."""
        return list(self.commands)


@click.group("lever-mlflow", cls=StepGroup)
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Select in-context demonstrations for vision-language models.

    Each command below is one step. All but rollback and status are recorded as MLflow runs. An input that is left at auto is
    taken from the newest matching run, or made first.

    This line switches on completion of commands and options in bash; in zsh, zsh_source stands for bash_source:

    \b
      eval "$(_LEVER_MLFLOW_COMPLETE=bash_source lever-mlflow)"
    """


for command in (*COMMANDS.values(), convert, merge_answers):
    cli.add_command(command)


def run() -> None:
    """Runs ``lever-mlflow``, which prints its help where no command is given."""
    launch(cli, sys.argv[1:] or ["--help"])


def resumed(values: dict[str, Any]) -> str:
    """Returns the interrupted training that a command goes on from: none where the training is to be run anew."""
    return NONE if values["rerun"] and values["resume"] == AUTO else str(values["resume"])


def split(references: str) -> list[str]:
    """Returns the parts of a text between its commas."""
    return [reference.strip() for reference in references.split(",")]
