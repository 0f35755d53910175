"""Makes the registered version of a beta the champion, if the evidence is for it."""

from typing import Any

import click

from entrypoints._cli import Positive, launch, make_pipeline, model_name_option, option, resource_options
from lever_mlflow.settings import GrpoSettings, PromotionSettings


@click.command()
@resource_options
@model_name_option
@option("kl_beta", Positive(), GrpoSettings.kl_beta, "KL weight whose registered version is promoted")
@option("min_gain", Positive(), PromotionSettings.min_gain, "points over the champion; 0: just not significantly worse")
@option("force", bool, PromotionSettings.force, "promote in spite of the evidence, tagged")
def main(kl_beta: float, min_gain: float, force: bool, **values: Any) -> None:
    """Give the alias champion to a beta's version, and previous-champion to the one that had it."""
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("promote"):
        pipeline = make_pipeline(values, check=False)  # only an evaluation of the champion takes data and models
        run_here(pipeline.promote(kl_beta, PromotionSettings(min_gain=min_gain, force=force)))


if __name__ == "__main__":
    launch(main)
