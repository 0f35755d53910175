"""Makes the registered version of a beta the champion."""

import click

from entrypoints._cli import Positive, dataset_option, launch, model_name_option, option, vlm_option
from lever_mlflow.types import GrpoSettings


@click.command()
@dataset_option
@vlm_option
@model_name_option
@option("kl_beta", Positive(), GrpoSettings.kl_beta, "KL weight whose registered version is promoted")
def main(dataset: str, vlm: str, vlm_model: str, model_name: str, kl_beta: float) -> None:
    """Give the alias champion to a beta's version, and previous-champion to the one that had it."""
    from lever_mlflow.pipeline import Pipeline
    from lever_mlflow.resources import Resources
    from lever_mlflow.tracking import project_run, run_here

    with project_run("promote"):
        resources = Resources(dataset=dataset, vlm=vlm, vlm_model=vlm_model)
        run_here(Pipeline(resources, model_name=model_name).promote(kl_beta))


if __name__ == "__main__":
    launch(main)
