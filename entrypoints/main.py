"""The whole experiment: rollout, validation, RCE, GRPO and evaluation of each beta, comparison."""

from typing import Any

import click

from entrypoints._cli import (
    NumberList,
    Positive,
    grpo_option,
    grpo_settings,
    in_order,
    in_processes,
    language_option,
    launch,
    make_pipeline,
    model_name_option,
    on_bad_data_option,
    option,
    pool_sampler_option,
    preset_option,
    resource_options,
    reward_mode_option,
    thresholds_option,
)
from lever_mlflow.settings import EvalSettings, RceSettings, RolloutSettings


@click.command()
@resource_options
@reward_mode_option
@model_name_option
@thresholds_option
@on_bad_data_option
@option("kl_betas", NumberList(Positive()), (0.12, 0.15), "KL weights to train and compare")
@option("sizes", NumberList(Positive(int, 1)), EvalSettings.sizes, "numbers of evaluation questions, nested")
@option("shots", NumberList(Positive(int, 1)), EvalSettings.shots, "numbers of demonstrations at evaluation")
@option("n_queries", Positive(int, 2), RolloutSettings.n_queries, "training items used as RL queries")
@pool_sampler_option
@option("n_selection", Positive(int, 1), EvalSettings.n_selection, "questions that choose the epoch, apart from the others")
@option("rce_epochs", Positive(int, 1), RceSettings.epochs, "epochs of RCE")
@option("rce_lr", Positive(strict=True), RceSettings.lr, "learning rate of RCE")
@preset_option
@grpo_option("grpo_epochs", Positive(int, 1), "epochs of GRPO", "epochs")
@grpo_option("grpo_lr", Positive(strict=True), "learning rate of GRPO", "lr")
@language_option
@in_processes
def main(**values: Any) -> None:
    """Run every step as a child run; finished steps with the same inputs are reused."""
    from lever_mlflow.runs.steps import project_run, run_here

    with project_run("main"):
        pipeline = make_pipeline({**values, "max_shots": max(values["shots"])})
        step = pipeline.experiment(
            values["kl_betas"],
            RolloutSettings(n_queries=values["n_queries"], pool_sampler=values["pool_sampler"]),
            RceSettings(epochs=values["rce_epochs"], lr=values["rce_lr"]),
            grpo_settings(values["preset"], epochs=values["grpo_epochs"], lr=values["grpo_lr"]),
            EvalSettings(
                in_order(values["sizes"]), in_order(values["shots"]), values["n_selection"], pool_sampler=values["pool_sampler"]
            ),
            values["lang"],
        )
        run_here(step)


if __name__ == "__main__":
    launch(main)
