"""Lists the registered versions with their aliases, accuracies and data."""

import click

from entrypoints._cli import dataset_option, launch, model_name_option, vlm_option


@click.command()
@dataset_option
@vlm_option
@model_name_option
def main(dataset: str, vlm: str, vlm_model: str, model_name: str) -> None:
    """Print the versions of the registered model."""
    from lever_mlflow.pipeline.experiment import Pipeline
    from lever_mlflow.pipeline.resources import Resources
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("status"):
        pipeline = Pipeline(Resources(dataset=dataset, vlm=vlm, vlm_model=vlm_model), model_name=model_name)
        click.echo(pipeline.listing(run_here(pipeline.status())), nl=False)


if __name__ == "__main__":
    launch(main)
