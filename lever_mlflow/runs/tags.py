"""Names the tags of our runs and logged models, writes values as texts, and reads them again.

Every name stands here once; on runs and logged models it carries the prefix ``lever.``. Versions have tags of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from lever_mlflow.exceptions import MissingRunError, first_line
from lever_mlflow.settings import format_number

__all__ = [
    "DESCRIPTION",
    "PREFIX",
    "RUN_NAME",
    "Tag",
    "as_text",
    "finished_run_tags",
    "prefixed",
    "run_tags",
    "set_description",
    "set_tags",
    "tags_of",
]

PREFIX = "lever."
DESCRIPTION, RUN_NAME = "mlflow.note.content", "mlflow.runName"  # MLflow's own: what the UI shows of a run
_LONGEST_DESCRIPTION = 4_000  # characters; MLflow refuses descriptions above 5,000


class Tag(StrEnum):
    """Names a tag."""

    # what a run is
    STEP = "step"
    KEY = "key"  # digest of all that decides the step's result
    VERSION = "version"  # of this package
    CODE = "code"  # digest of this package's modules
    # what it works on
    DATASET_DIGEST = "dataset_digest"
    VLM_DIGEST = "vlm_digest"
    PROFILE_DIGEST = "profile_digest"
    ENCODER_DIGEST = "encoder_digest"
    SEED = "seed"
    SKIPPED_ITEMS = "skipped_items"  # what on_bad_item=skip left out of the data set, by kind
    REWARD_MODE = "reward_mode"
    RL_DATA_DIGEST = "rl_data_digest"
    RL_DATA_SOURCE = "rl_data_source"
    REFERENCE_DIGEST = "reference_digest"  # of the RL data that others are compared with
    RESULTS_DIGEST = "results_digest"  # of a file of results from elsewhere
    # the data gate
    SUITE_DIGEST = "suite_digest"
    GATE = "gate"  # its verdict
    COMPARISON = "comparison"  # of RL data with a reference, in words
    GATE_OVERRIDE = "gate_override"  # critical expectations that on_bad_data=warn let through
    START_GATE_OVERRIDE = "start_gate_override"  # the same, in the training of the start checkpoint
    # training
    KL_BETA = "kl_beta"
    ROUND = "round"  # of GRPO, from 1
    ROUNDS_DONE = "rounds_done"
    ROUNDS_ENDED = "rounds_ended"  # why no further round was begun
    REFERENCE_POLICY = "reference_policy"  # digest of the selector that the KL penalty of a round refers to
    START = "start"  # the start checkpoint in words
    START_DIGEST = "start_digest"
    START_URI = "start_uri"
    BEST_EPOCH = "best_epoch"
    BEST_MODEL = "best_model"
    DIAGNOSIS = "diagnosis"
    STATE_EPOCH = "state_epoch"  # the last epoch that training can go on from
    RESUMED_FROM = "resumed_from"
    THREADS = "threads"  # of torch, on which the last digits of a training on a CPU depend
    PROCESS = "process"  # machine, number and start of the process that trains
    CHECKPOINT_DIGEST = "checkpoint_digest"
    # evaluation, registry
    GRPO_RUN = "grpo_run"
    TRAINING_SEED = "training_seed"
    CHECKPOINTS = "checkpoints"  # further ones that are evaluated, by digest
    EVALUATIONS = "evaluations"  # runs that are compared
    REGISTERED = "registered"  # the version that an evaluation registered
    CHAMPION = "champion"  # the champion that a promotion or a rollback left
    RETRIEVER_DIGEST = "retriever_digest"


def as_text(value: Any) -> str:
    """Writes a value as the text of a tag or parameter: numbers in their shortest form, lists and mappings with commas."""
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, Mapping):
        return ",".join(f"{name}={as_text(item)}" for name, item in value.items()) or "none"
    return ",".join(map(as_text, value)) if isinstance(value, list | tuple) else str(value)


def prefixed(tags: Mapping[str, Any]) -> dict[str, str]:
    """Writes tags as they stand on runs and logged models."""
    return {f"{PREFIX}{name}": as_text(value) for name, value in tags.items()}


def set_tags(tags: Mapping[str, Any]) -> None:
    """Sets tags of the active run."""
    mlflow.set_tags(prefixed(tags))


def set_description(text: str) -> None:
    """Sets the description of the active run, cut to what MLflow holds."""
    mlflow.set_tag(DESCRIPTION, text[:_LONGEST_DESCRIPTION])


def tags_of(run: Run) -> dict[str, str]:
    """Returns our tags of a run by name, without the prefix."""
    return {name.removeprefix(PREFIX): text for name, text in run.data.tags.items() if name.startswith(PREFIX)}


def run_tags(run_id: str) -> dict[str, str]:
    """Returns our tags of any run by name, without the prefix.

    Raises:
        MissingRunError: there is no such run.
    """
    try:
        return tags_of(mlflow.get_run(run_id))
    except MlflowException as error:
        raise MissingRunError(f"run {run_id}: {first_line(error)}; look its id up in the MLflow UI") from None


def finished_run_tags(run_id: str, step: str) -> dict[str, str]:
    """Returns our tags of a finished run of a step by name, without the prefix.

    Raises:
        MissingRunError: there is no such run, or it is of another step, or it has not finished.
    """
    tags = run_tags(run_id)
    if tags.get(Tag.STEP) != step:
        raise MissingRunError(f"run {run_id} is not a {step} run but {tags.get(Tag.STEP, 'none of this project')!r}")
    status = mlflow.get_run(run_id).info.status
    if status != "FINISHED":
        raise MissingRunError(f"run {run_id} is {status}, not FINISHED; run the {step} step again")
    return tags
