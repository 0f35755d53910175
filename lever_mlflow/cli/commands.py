"""The commands: one for each step of the experiment, and the group ``lever-mlflow`` that holds them all.

``MLproject`` runs the same commands as ``python -m entrypoints.<name>``; the names of their options are its parameters.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lever_mlflow import __version__
from lever_mlflow.cli.launching import in_processes, launch
from lever_mlflow.cli.options import Part, chosen, grpo_settings, options
from lever_mlflow.settings import (
    AUTO,
    NONE,
    ComparisonInputs,
    DataSettings,
    EvalSettings,
    EvaluationInputs,
    ExperimentSettings,
    GateSettings,
    GrpoInputs,
    GrpoSettings,
    PromotionSettings,
    RceSettings,
    ResourceSettings,
    RlDataSettings,
    RolloutInputs,
    RolloutSettings,
    SweepInputs,
    TrainingInputs,
    ValidationInputs,
)

if TYPE_CHECKING:
    from lever_mlflow.pipeline.experiment import Pipeline

__all__ = [
    "cli",
    "compare",
    "evaluate",
    "grpo",
    "main",
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
REWARD_MODE = Part(ExperimentSettings, ("reward_mode",))
MODEL_NAME = Part(ExperimentSettings, ("model_name",))
REGISTERED = Part(ResourceSettings, ("dataset", "vlm", "vlm_model"))  # what the registered model is named after
KL_BETA = Part(GrpoSettings, ("kl_beta",))
LANGUAGE = Part(ComparisonInputs, ("lang",))

# what the whole experiment takes of each stage
QUERIES = Part(RolloutSettings, ("n_queries", "pool_sampler"))
JUDGEMENT = Part(GateSettings, ("thresholds", "on_bad_data"))
RCE = Part(RceSettings, ("epochs", "lr"), prefix="rce_")
PRESET = Part(GrpoInputs, ("preset",))
GRPO = Part(GrpoSettings, ("epochs", "lr"), prefix="grpo_")
QUESTIONS = Part(EvalSettings, ("sizes", "shots", "n_selection", "pool_sampler"))

resource_options = options(ResourceSettings, SEED, DataSettings)


@click.command()
@resource_options
@options(REWARD_MODE, MODEL_NAME, JUDGEMENT, SweepInputs, QUESTIONS, QUERIES, RCE, PRESET, GRPO, LANGUAGE)
@in_processes
def main(**values: Any) -> None:
    """Run the whole experiment, each step as a child run.

    The steps are the rollout, the data gate, RCE, GRPO and its evaluation for each KL weight, and the comparison. A finished
    step with the same inputs is reused.
    """
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("main"):
        pipeline = make_pipeline({**values, "max_shots": max(values["shots"])})
        step = pipeline.experiment(
            values["kl_betas"],
            RolloutSettings(**chosen(QUERIES, values)),
            RceSettings(**chosen(RCE, values)),
            grpo_settings(values["preset"], **chosen(GRPO, values)),
            EvalSettings(**chosen(QUESTIONS, values)),
            values["lang"],
        )
        run_here(step)


@click.command()
@resource_options
@options(RolloutInputs, RolloutSettings)
@in_processes
def rollout(**values: Any) -> None:
    """Record trials as RL data.

    Pointers of a starting policy and of baselines are answered by the VLM and scored. The run holds them as rl_data.json.
    """
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("rollout"):
        pipeline = make_pipeline(values)
        run_here(pipeline.rollout(RolloutSettings(**chosen(RolloutSettings, values)), values["init"]))


@click.command()
@resource_options
@options(REWARD_MODE, RlDataSettings, GateSettings, ValidationInputs)
@in_processes
def validate(**values: Any) -> None:
    """Check RL data with the data gate.

    The log shows a table of all expectations of the Great Expectations suites. A failed critical expectation fails the run.
    """
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("validate"):
        pipeline = make_pipeline(values)
        data = pipeline.find_rl_data(values["rl_data"])
        reference = None if values["reference"] == NONE else pipeline.rl_data(values["reference"])
        run_here(pipeline.validate(data, reference))


@click.command()
@resource_options
@options(REWARD_MODE, RlDataSettings, GateSettings, RceSettings, TrainingInputs)
@in_processes
def rce(**values: Any) -> None:
    """Train a new selector by reward-weighted cross-entropy.

    The run holds a checkpoint for each epoch.
    """
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("rce"):
        pipeline = make_pipeline(values)
        data = pipeline.find_rl_data(values["rl_data"])
        run_here(pipeline.rce(data, RceSettings(**chosen(RceSettings, values)), values["resume"]))


@click.command()
@resource_options
@options(REWARD_MODE, RlDataSettings, GateSettings, GrpoInputs, GrpoSettings, TrainingInputs)
@in_processes
def grpo(**values: Any) -> None:
    """Optimise a start checkpoint by GRPO under a KL penalty.

    The run holds a checkpoint for each epoch.
    """
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("grpo"):
        pipeline = make_pipeline(values)
        data = pipeline.find_rl_data(values["rl_data"])
        settings = grpo_settings(values["preset"], **chosen(GrpoSettings, values))
        run_here(pipeline.grpo(data, pipeline.find_start(values["init"], data), settings, values["resume"]))


@click.command()
@resource_options
@options(REWARD_MODE, MODEL_NAME, KL_BETA, EvaluationInputs, EvalSettings)
@in_processes
def evaluate(**values: Any) -> None:
    """Evaluate the epochs of a GRPO run and register the best.

    Every epoch answers the same questions as the start checkpoint and the baselines.
    """
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("evaluate"):
        pipeline = make_pipeline(values)
        settings = EvalSettings(**chosen(EvalSettings, values))
        grpo_run = pipeline.find_grpo(values["grpo_run"], GrpoSettings(**chosen(KL_BETA, values)))
        checkpoints = [] if values["checkpoints"] == NONE else split(values["checkpoints"])
        run_here(pipeline.evaluate(grpo_run, settings, checkpoints))


@click.command()
@resource_options
@options(REWARD_MODE, MODEL_NAME, ComparisonInputs)
@in_processes
def compare(kl_betas: tuple[float, ...], evaluations: str, results: str, lang: Any, **values: Any) -> None:
    """Compare KL weights in a report.

    The run holds report.html, report.md, comparison.json and figures.
    """
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("compare"):
        pipeline = make_pipeline(values)
        if results != NONE:
            step = pipeline.compare_results(Path(results), lang)
        elif evaluations != AUTO:
            step = pipeline.compare(pipeline.given_evaluations(split(evaluations)), lang)
        else:
            step = pipeline.compare([pipeline.find_evaluation(beta, EvalSettings()) for beta in kl_betas], lang)
        click.echo(pipeline.summary(run_here(step)))


@click.command()
@resource_options
@options(MODEL_NAME, KL_BETA, PromotionSettings)
def promote(**values: Any) -> None:
    """Make a registered version the champion.

    The version of a KL weight gets the alias champion if the evidence is for it, and the former champion previous-champion.
    """
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("promote"):
        pipeline = make_pipeline(values, check=False)  # only an evaluation of the champion takes data and models
        run_here(pipeline.promote(values["kl_beta"], PromotionSettings(**chosen(PromotionSettings, values))))


@click.command()
@options(REGISTERED, MODEL_NAME)
def rollback(**values: Any) -> None:
    """Make the previous champion the champion again.

    Swaps the aliases champion and previous-champion.
    """
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("rollback"):
        run_here(make_pipeline(values, check=False).rollback())


@click.command()
@options(REGISTERED, MODEL_NAME)
def status(**values: Any) -> None:
    """List the registered versions.

    The table shows their aliases, accuracies and data.
    """
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("status"):
        pipeline = make_pipeline(values, check=False)
        click.echo(pipeline.listing(run_here(pipeline.status())), nl=False)


@click.command("merge-answers")
@click.argument("into", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("sources", type=click.Path(path_type=Path, dir_okay=False, exists=True), nargs=-1, required=True)
def merge_answers(into: Path, sources: tuple[Path, ...]) -> None:
    """Merge caches of VLM answers.

    Adds the answers that other machines have stored in the files SOURCES to the file INTO. Answers that INTO holds already
    stay as they are. This is no MLflow run, as nothing is computed.
    """
    from lever_mlflow.vlm.answer_cache import merge_answers as merge

    click.echo(f"{into}: {merge(sources, into)} answers added")


class StepGroup(click.Group):
    """Lists its commands in the order of the experiment."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of the commands as they were added."""
        return list(self.commands)


@click.group("lever-mlflow", cls=StepGroup)
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Select in-context demonstrations for vision-language models.

    Each command below is one step, recorded as an MLflow run. An input that is left at auto is taken from the newest matching
    run, or made first.

    This line switches on completion of commands and options in bash; in zsh, zsh_source stands for bash_source:

    \b
      eval "$(_LEVER_MLFLOW_COMPLETE=bash_source lever-mlflow)"
    """


for step in (main, rollout, validate, rce, grpo, evaluate, compare, promote, rollback, status, merge_answers):
    cli.add_command(step)


def run() -> None:
    """Runs ``lever-mlflow``, which prints its help where no command is given."""
    launch(cli, sys.argv[1:] or ["--help"])


def make_pipeline(values: dict[str, Any], *, check: bool = True) -> Pipeline:
    """Returns the pipeline for a command's values; ``check`` looks at the data set and the models at once."""
    from lever_mlflow.pipeline.experiment import Pipeline
    from lever_mlflow.pipeline.resources import Resources, default_cache_dir

    data = DataSettings(**chosen(DataSettings, values))
    resources = Resources(**chosen(ResourceSettings, values), cache_dir=default_cache_dir(), data=data)
    if check:
        resources.check()
    shared = {**chosen(ExperimentSettings, values), **chosen(Part(RlDataSettings, ("use_fallback",)), values)}
    return Pipeline(resources, gate=GateSettings(**chosen(GateSettings, values)), **shared)


def split(references: str) -> list[str]:
    """Returns the parts of a text between its commas."""
    return [reference.strip() for reference in references.split(",")]
