"""Optimises a start checkpoint with GRPO under a KL penalty of weight beta."""

from typing import Any

import click

from entrypoints._cli import (
    AUTO,
    Positive,
    gate_options,
    grpo_option,
    grpo_settings,
    in_processes,
    launch,
    make_pipeline,
    option,
    preset_option,
    resource_options,
    reward_mode_option,
    rl_data_options,
    training_options,
)
from lever_mlflow.settings import GrpoSettings


@click.command()
@resource_options
@reward_mode_option
@rl_data_options
@gate_options
@option("kl_beta", Positive(), GrpoSettings.kl_beta, "KL weight")
@option("adaptive_beta", bool, GrpoSettings.adaptive_beta, "after an epoch, KL weight * 1.5 if KL > 0.1, / 1.5 if < 0.01")
@option("init", str, AUTO, "start checkpoint: a folder, .pt, .ckpt, model URI, or auto (the best epoch of the newest RCE run)")
@preset_option
@training_options(GrpoSettings)
@grpo_option("epsilon", Positive(strict=True, below=1.0), "the ratio is clipped at 1 - epsilon")
@grpo_option("epsilon_high", Positive(), "and at 1 + epsilon_high; 0, and auto beside a given epsilon: epsilon")
@option("scale_rewards", click.Choice(["group", "batch", "none"]), GrpoSettings.scale_rewards, "whose std divides advantages")
@option("mask_zero_std_groups", bool, GrpoSettings.mask_zero_std_groups, "leave groups of equal rewards out of the loss")
@option("entropy_coef", Positive(), GrpoSettings.entropy_coef, "weight of the policy's entropy as a bonus")
@grpo_option("freeze_backbone", bool, "train attention and norms only")
@in_processes
def main(rl_data: str, init: str, resume: str, **values: Any) -> None:
    """Train by GRPO: an MLflow run with a checkpoint per epoch."""
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("grpo"):
        pipeline = make_pipeline(values)
        data = pipeline.find_rl_data(rl_data)
        run_here(pipeline.grpo(data, pipeline.find_start(init, data), grpo_settings(**values), resume))


if __name__ == "__main__":
    launch(main)
