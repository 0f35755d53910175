"""Records trials: pointers of a starting policy, answered by the VLM and scored, as RL data."""

from typing import Any

import click

from entrypoints._cli import (
    NumberList,
    Positive,
    in_processes,
    launch,
    make_pipeline,
    option,
    pool_sampler_option,
    resource_options,
)
from lever_mlflow.settings import RolloutSettings


@click.command()
@resource_options
@option("init", str, "random", "starting policy: random, a checkpoint or a model URI")
@option("n_queries", Positive(int, 2), RolloutSettings.n_queries, "training items used as RL queries")
@option("shots", Positive(int, 1), RolloutSettings.shots, "demonstrations of a pointer")
@option("pool_size", Positive(int, 2), RolloutSettings.pool_size, "candidates per query")
@pool_sampler_option
@option("beam_width", Positive(int), RolloutSettings.beam_width, "pointers by beam search; 0: none")
@option("temperatures", NumberList(Positive(minimum=0.05)), RolloutSettings.temperatures, "of sampled pointers")
@option("samples_per_temperature", Positive(int), RolloutSettings.samples_per_temperature, "pointers sampled at each; 0: none")
@option("retrieval_per_feature", Positive(int), RolloutSettings.retrieval_per_feature, "pointers by each feature; 0: none")
@option("random_pointers", Positive(int), RolloutSettings.random_pointers, "pointers drawn at random; 0: none")
@option("mine_positives", Positive(int), RolloutSettings.mine_positives, "most further trials of a query without a right one")
@option("gt_prob", bool, RolloutSettings.gt_prob, "record how probable the right answers were; reads all again")
@in_processes
def main(init: str, **values: Any) -> None:
    """Record RL data: an MLflow run with rl_data.json."""
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("rollout"):
        pipeline = make_pipeline(values)
        run_here(pipeline.rollout(RolloutSettings(**values), init))


if __name__ == "__main__":
    launch(main)
