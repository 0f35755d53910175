"""Trains a new selector on RL data by reward-weighted cross-entropy."""

from typing import Any

import click

from entrypoints._cli import (
    Positive,
    gate_options,
    launch,
    make_pipeline,
    option,
    resource_options,
    reward_mode_option,
    rl_data_options,
)
from lever_mlflow.types import RceSettings


@click.command()
@resource_options
@reward_mode_option
@rl_data_options
@gate_options
@option("epochs", Positive(int, 1), RceSettings.epochs, "passes over the training queries")
@option("lr", Positive(strict=True), RceSettings.lr, "learning rate of AdamW")
@option("batch_size", Positive(int, 1), RceSettings.batch_size, "queries per step")
@option("temperature_start", Positive(strict=True), RceSettings.temperature_start, "reward temperature at the first step")
@option("temperature_end", Positive(strict=True), RceSettings.temperature_end, "reward temperature at the last step")
@option("dropout", Positive(below=1.0), RceSettings.dropout, "of the training forward pass")
@option("grad_clip", Positive(strict=True), RceSettings.grad_clip, "largest norm of a gradient")
@option("val_share", Positive(strict=True, below=1.0), RceSettings.val_share, "share of queries held out")
def main(rl_data: str, **values: Any) -> None:
    """Train by RCE: an MLflow run with a checkpoint per epoch."""
    from lever_mlflow.tracking import project_run, run_here

    with project_run("rce"):
        pipeline = make_pipeline(values)
        run_here(pipeline.rce(pipeline.find_rl_data(rl_data), RceSettings(**values)))


if __name__ == "__main__":
    launch(main)
