"""Evaluates every epoch of one beta's GRPO run beside the baselines and registers the best."""

from typing import Any

import click

from entrypoints._cli import (
    AUTO,
    NONE,
    NumberList,
    Positive,
    in_order,
    in_processes,
    launch,
    make_pipeline,
    model_name_option,
    option,
    pool_sampler_option,
    resource_options,
    reward_mode_option,
)
from lever_mlflow.settings import EvalSettings, GrpoSettings


@click.command()
@resource_options
@reward_mode_option
@model_name_option
@option("kl_beta", Positive(), GrpoSettings.kl_beta, "KL weight of the GRPO run")
@option("grpo_run", str, AUTO, "id of a GRPO run, or auto (the newest of this beta)")
@option("checkpoints", str, NONE, "others to evaluate beside, with commas: folders, .pt, .ckpt, model URIs")
@option("sizes", NumberList(Positive(int, 1)), EvalSettings.sizes, "numbers of questions, nested")
@option("shots", NumberList(Positive(int, 1)), EvalSettings.shots, "numbers of demonstrations")
@option("n_selection", Positive(int, 1), EvalSettings.n_selection, "questions that choose the epoch, apart from the others")
@option("pool_size", Positive(int, 2), EvalSettings.pool_size, "candidates per question")
@pool_sampler_option
@option("random_draws", Positive(int, 1), EvalSettings.random_draws, "draws of the random baseline")
@option("n_oracle", Positive(int, 0), EvalSettings.n_oracle, "questions on which every candidate is tried alone; 0: none")
@in_processes
def main(kl_beta: float, grpo_run: str, checkpoints: str, **values: Any) -> None:
    """Evaluate one beta: accuracies per epoch, a registered version."""
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("evaluate"):
        pipeline = make_pipeline(values)
        settings = EvalSettings(**{**values, "sizes": in_order(values["sizes"]), "shots": in_order(values["shots"])})
        others = [] if checkpoints == NONE else [reference.strip() for reference in checkpoints.split(",")]
        run_here(pipeline.evaluate(pipeline.find_grpo(grpo_run, GrpoSettings(kl_beta=kl_beta)), settings, others))


if __name__ == "__main__":
    launch(main)
