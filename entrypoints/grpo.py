"""Optimises a start checkpoint with GRPO under a KL penalty of weight beta."""

from typing import Any

import click

from entrypoints._cli import (
    AUTO,
    Positive,
    gate_options,
    launch,
    make_pipeline,
    option,
    resource_options,
    reward_mode_option,
    rl_data_options,
)
from lever_mlflow.types import GrpoSettings


@click.command()
@resource_options
@reward_mode_option
@rl_data_options
@gate_options
@option("kl_beta", Positive(), GrpoSettings.kl_beta, "KL weight")
@option("init", str, AUTO, "start checkpoint: a folder, .pt, .ckpt, model URI, or auto (the best epoch of the newest RCE run)")
@option("epochs", Positive(int, 1), GrpoSettings.epochs, "passes over the training queries")
@option("lr", Positive(strict=True), GrpoSettings.lr, "learning rate of AdamW")
@option("batch_size", Positive(int, 1), GrpoSettings.batch_size, "queries per step")
@option("epsilon", Positive(strict=True), GrpoSettings.epsilon, "clip range of the ratio")
@option("freeze_backbone", bool, GrpoSettings.freeze_backbone, "train attention and norms only")
@option("grad_clip", Positive(strict=True), GrpoSettings.grad_clip, "largest norm of a gradient")
@option("val_share", Positive(strict=True, below=1.0), GrpoSettings.val_share, "share of queries held out")
def main(rl_data: str, init: str, **values: Any) -> None:
    """Train by GRPO: an MLflow run with a checkpoint per epoch."""
    from lever_mlflow.tracking import project_run, run_here

    with project_run("grpo"):
        pipeline = make_pipeline(values)
        data = pipeline.find_rl_data(rl_data)
        run_here(pipeline.grpo(data, pipeline.find_start(init, data), GrpoSettings(**values)))


if __name__ == "__main__":
    launch(main)
