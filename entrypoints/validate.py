"""Checks RL data with the Great Expectations suites; a failed critical expectation fails the run."""

from typing import Any

import click

from entrypoints._cli import (
    NONE,
    gate_options,
    in_processes,
    launch,
    make_pipeline,
    option,
    resource_options,
    reward_mode_option,
    rl_data_options,
)


@click.command()
@resource_options
@reward_mode_option
@rl_data_options
@gate_options
@option("reference", str, NONE, "RL data to compare with: a file or a run, as for rl_data")
@in_processes
def main(rl_data: str, reference: str, **values: Any) -> None:
    """Check RL data, or compare them with others, and print the table of expectations."""
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("validate"):
        pipeline = make_pipeline(values)
        data = pipeline.find_rl_data(rl_data)
        run_here(pipeline.validate(data, None if reference == NONE else pipeline.rl_data(reference)))


if __name__ == "__main__":
    launch(main)
