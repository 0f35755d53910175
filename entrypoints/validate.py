"""Checks RL data with the Great Expectations suites; a failed critical expectation fails the run."""

from typing import Any

import click

from entrypoints._cli import launch, make_pipeline, resource_options, reward_mode_option, rl_data_option


@click.command()
@resource_options
@reward_mode_option
@rl_data_option
def main(rl_data: str, **values: Any) -> None:
    """Check RL data and print the table of expectations."""
    from lever_mlflow.tracking import project_run, run_here

    with project_run():
        pipeline = make_pipeline(values)
        run_here(pipeline.validate(pipeline.find_rl_data(rl_data)))


if __name__ == "__main__":
    launch(main)
