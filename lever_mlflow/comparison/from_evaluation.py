"""Turns an evaluation of this package into the results of a run, as a comparison takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from lever_mlflow.comparison.results import EpochResult, RegisteredModel, RunResult, Scalar
from lever_mlflow.evaluation.policies import epoch_policy
from lever_mlflow.evaluation.result import Evaluation, EvaluationInputs, Registration
from lever_mlflow.exceptions import DataError
from lever_mlflow.files.records import first_misfit
from lever_mlflow.invocation import command
from lever_mlflow.settings import as_text
from lever_mlflow.trials.rewards import Reward

__all__ = ["commands_of", "run_of_evaluation"]

# metric of training -> its name in a results file; the others have their name there without what stands before the "/"
_IN_RESULTS = {"train/loss": "train_loss", "val/loss": "val_loss", "val/kl_exact": "val_kl_exact"}
_MEASUREMENTS = frozenset({"n_oracle", "random_draws"})  # settings that decide only how baselines are measured


def run_of_evaluation(
    evaluation: Evaluation, commands: Sequence[str] = (), trained: Mapping[int, Mapping[str, float]] | None = None
) -> RunResult:
    """Returns an evaluation as the results of a run, with accuracies in percent and epochs apart from baselines.

    Args:
        commands: what trains and evaluates this run again.
        trained: the metrics of all epochs of the training. Those that were not evaluated become epochs without an accuracy.

    Raises:
        DataError: the parts of the evaluation do not belong together, as where somebody has edited its file.
    """
    try:
        return _run_of_evaluation(evaluation, commands, trained or {})
    except ValidationError as error:
        raise DataError(
            f"run {evaluation.run_id}: evaluation.json is not consistent ({first_misfit(error)}); run the evaluate step again "
            "with rerun=true"
        ) from None


def _run_of_evaluation(
    evaluation: Evaluation, commands: Sequence[str], trained: Mapping[int, Mapping[str, float]]
) -> RunResult:
    metrics = {**trained, **{row.epoch: row.metrics for row in evaluation.epochs}}
    cells: dict[str, dict[int, dict[int, float]]] = {}
    for cell in evaluation.accuracy:
        cells.setdefault(cell.policy, {}).setdefault(cell.size, {})[cell.shots] = 100.0 * cell.accuracy
    epochs = tuple(_epoch(epoch, metrics[epoch], cells.pop(epoch_policy(epoch), {})) for epoch in sorted(metrics))
    registration = evaluation.registration
    return RunResult(
        kl_beta=evaluation.kl_beta,
        config=_config(evaluation),
        rl_data={"digest": evaluation.inputs.rl_data_digest, **dict(evaluation.rl_data)},
        epochs=epochs,
        baselines=cells,
        best_epoch=evaluation.best_epoch,
        selection_accuracy={epoch: 100.0 * value for epoch, value in evaluation.selection_accuracy.items()},
        best_digest=registration.checkpoint_digest,
        registered=_registered(registration),
        overlap=evaluation.overlap,
        best_single=evaluation.best_single,
        profile=", ".join(f"{name}={value!r}" for name, value in asdict(evaluation.profile).items()),
        run_id=evaluation.run_id,
        training_run=evaluation.inputs.grpo_run,
        git_commit=evaluation.git_commit,
        commands=tuple(commands),
    )


def commands_of(evaluation: Evaluation) -> list[str]:
    """Returns the commands that train and evaluate a beta again, on the RL data and with the names that were given then."""
    inputs = evaluation.inputs
    training = {
        "rl_data": evaluation.rl_data.source,
        **asdict(evaluation.rounds),
        **asdict(evaluation.training),
        "init": inputs.start_uri,
        "seed": inputs.training_seed,
        **Reward.of_label(inputs.reward_mode).options,
    }
    checkpoints = {"checkpoints": evaluation.checkpoints} if evaluation.checkpoints else {}
    testing = {
        "kl_beta": evaluation.kl_beta,
        "grpo_run": inputs.grpo_run,
        "seed": inputs.seed,
        **asdict(evaluation.settings),
        **checkpoints,
    }
    return [command("grpo", **training), command("evaluate", **testing)]


def _registered(registration: Registration) -> RegisteredModel | None:
    if registration.refusal:
        return None
    return RegisteredModel(name=registration.name, version=registration.version, alias=registration.alias)


def _epoch(number: int, metrics: Mapping[str, float], accuracy: Mapping[int, Mapping[int, float]]) -> EpochResult:
    """Returns an epoch with its metrics under the names of a results file."""
    named = {_IN_RESULTS.get(name, name.rpartition("/")[2]): value for name, value in metrics.items()}
    return EpochResult.model_validate({**named, "epoch": number, "accuracy": accuracy})


def _config(evaluation: Evaluation) -> dict[str, Scalar]:
    """Returns everything that decides a run beside its RL data, by name.

    Digests decide whether models and data are the same; the names under which the user gave them tell of the digests.
    """
    sections = {
        "training": {**asdict(evaluation.rounds), **asdict(evaluation.training)},
        "evaluation": asdict(evaluation.settings),
    }
    settings = {
        f"{section}.{name}": _scalar(value)
        for section, values in sections.items()
        for name, value in values.items()
        if name not in _MEASUREMENTS
    }
    return {**dict(evaluation.resources), **_compared_inputs(evaluation.inputs), **settings}


def _compared_inputs(inputs: EvaluationInputs) -> dict[str, Scalar]:
    """Returns the inputs that are compared.

    Names of runs and checkpoints are not among them, as their digests are compared. The digest of the RL data stands with these
    data.
    """
    return {
        "dataset_digest": inputs.dataset_digest,
        "vlm_digest": inputs.vlm_digest,
        "profile_digest": inputs.profile_digest,
        "scoring": inputs.scoring,
        "encoder_digest": inputs.encoder_digest,
        "seed": inputs.seed,
        "reward_mode": inputs.reward_mode,
        "start_digest": inputs.start_digest,
        "start": inputs.start,
        "gate": inputs.gate,
        **inputs.overrides,
        "training_seed": inputs.training_seed,
    }


def _scalar(value: Any) -> Scalar:
    """Returns the value of a setting as a results file holds it: mappings and sequences become text."""
    scalar: Scalar = as_text(value) if isinstance(value, Mapping | list | tuple) else value
    return scalar
