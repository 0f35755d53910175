"""Compares evaluated betas, or the runs in a results file, in a report."""

from pathlib import Path
from typing import Any

import click

from entrypoints._cli import (
    AUTO,
    NONE,
    NumberList,
    Positive,
    in_processes,
    language_option,
    launch,
    make_pipeline,
    model_name_option,
    option,
    resource_options,
    reward_mode_option,
)
from lever_mlflow.settings import EvalSettings


@click.command()
@resource_options
@reward_mode_option
@model_name_option
@option("kl_betas", NumberList(Positive(), least=2), (0.12, 0.15), "KL weights; for each the newest evaluation is taken")
@option("evaluations", str, AUTO, "these instead, with commas: run ids or how they begin")
@option("results", str, NONE, "a file of results from elsewhere instead (docs/report.md)")
@language_option
@in_processes
def main(kl_betas: tuple[float, ...], evaluations: str, results: str, lang: Any, **values: Any) -> None:
    """Compare betas: report.html, report.md, comparison.json and figures."""
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("compare"):
        pipeline = make_pipeline(values)
        if results != NONE:
            step = pipeline.compare_results(Path(results), lang)
        elif evaluations != AUTO:
            given = [reference.strip() for reference in evaluations.split(",")]
            step = pipeline.compare(pipeline.given_evaluations(given), lang)
        else:
            step = pipeline.compare([pipeline.find_evaluation(beta, EvalSettings()) for beta in kl_betas], lang)
        click.echo(pipeline.summary(run_here(step)))


if __name__ == "__main__":
    launch(main)
