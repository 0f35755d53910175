"""Trains a new selector on RL data by reward-weighted cross-entropy."""

from typing import Any

import click

from entrypoints._cli import (
    Positive,
    gate_options,
    in_processes,
    launch,
    make_pipeline,
    option,
    resource_options,
    reward_mode_option,
    rl_data_options,
    training_options,
)
from lever_mlflow.settings import RceSettings


@click.command()
@resource_options
@reward_mode_option
@rl_data_options
@gate_options
@training_options(RceSettings)
@option("temperature_start", Positive(minimum=0.01), RceSettings.temperature_start, "reward temperature at the first step")
@option("temperature_end", Positive(minimum=0.01), RceSettings.temperature_end, "reward temperature at the last step")
@option("normalize_rewards", click.Choice(["z-score", "rank", "none"]), RceSettings.normalize_rewards, "within a group")
@option("dropout", Positive(below=1.0), RceSettings.dropout, "of the training forward pass")
@option("n_layers", Positive(int, 1), RceSettings.n_layers, "cross-attention layers of the selector")
@option("n_heads", Positive(int, 1), RceSettings.n_heads, "attention heads of a layer")
@option("fusion", click.Choice(["mean", "concat"]), RceSettings.fusion, "of image and text features")
@option("state_update", bool, RceSettings.state_update, "each pick moves the query's state, so that later picks depend on it")
@in_processes
def main(rl_data: str, resume: str, **values: Any) -> None:
    """Train by RCE: an MLflow run with a checkpoint per epoch."""
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("rce"):
        pipeline = make_pipeline(values)
        run_here(pipeline.rce(pipeline.find_rl_data(rl_data), RceSettings(**values), resume))


if __name__ == "__main__":
    launch(main)
