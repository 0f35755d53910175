"""Makes the previous champion the champion again."""

import click

from entrypoints._cli import dataset_option, launch, model_name_option, vlm_option


@click.command()
@dataset_option
@vlm_option
@model_name_option
def main(dataset: str, vlm: str, vlm_model: str, model_name: str) -> None:
    """Swap the aliases champion and previous-champion."""
    from lever_mlflow.pipeline.experiment import Pipeline
    from lever_mlflow.pipeline.resources import Resources
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("rollback"):
        run_here(Pipeline(Resources(dataset=dataset, vlm=vlm, vlm_model=vlm_model), model_name=model_name).rollback())


if __name__ == "__main__":
    launch(main)
