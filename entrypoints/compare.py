"""Compares two or more evaluated betas in a Markdown and JSON report."""

from typing import Any

import click

from entrypoints._cli import (
    NumberList,
    Positive,
    in_processes,
    launch,
    make_pipeline,
    model_name_option,
    option,
    resource_options,
    reward_mode_option,
)
from lever_mlflow.types import EvalSettings


@click.command()
@resource_options
@reward_mode_option
@model_name_option
@option("kl_betas", NumberList(Positive(), least=2), (0.12, 0.15), "KL weights; for each the newest evaluation is taken")
@in_processes
def main(kl_betas: tuple[float, ...], **values: Any) -> None:
    """Compare betas: report.md and comparison.json."""
    from lever_mlflow.tracking import project_run, run_here

    with project_run("compare"):
        pipeline = make_pipeline(values)
        run_id = run_here(pipeline.compare([pipeline.find_evaluation(beta, EvalSettings()) for beta in kl_betas]))
        click.echo(pipeline.summary(run_id))


if __name__ == "__main__":
    launch(main)
