"""Names the facts that runs record, writes them as tags or in an artifact, and reads them again.

Every name stands here once. The facts that runs are searched by, or that say at a glance what a run is, are tags with the
prefix ``lever.``, so that the UI shows about ten of them. All other facts are in the artifact ``facts.json``. Readers see no
difference.
Versions of registered models have tags of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import mlflow
from mlflow.entities import Run

from lever_mlflow.exceptions import DataError, MissingRunError
from lever_mlflow.runs.artifacts import list_artifacts, living_run, log_json, read_json
from lever_mlflow.runs.fields import LONGEST_DESCRIPTION, LONGEST_RUN_NAME, LONGEST_TAG, fitted
from lever_mlflow.settings import as_text

__all__ = [
    "DESCRIPTION",
    "FACTS_FILE",
    "PREFIX",
    "RUN_NAME",
    "Tag",
    "finished_run_tags",
    "holder_of",
    "name_run",
    "prefixed",
    "record",
    "remove_tags",
    "run_tags",
    "set_description",
    "tags_of",
]

PREFIX = "lever."
DESCRIPTION, RUN_NAME = "mlflow.note.content", "mlflow.runName"  # MLflow's own: what the UI shows of a run
FACTS_FILE = "facts.json"


class Tag(StrEnum):
    """Names a fact that a run records."""

    # what a run is
    STEP = "step"
    KEY = "key"  # digest of all that decides the step's result
    VERSION = "version"  # of this package
    CODE = "code"  # digest of this package's modules
    REUSED = "reused"  # the finished run that holds the result of this one
    PROCESS = "process"  # of a run that has not ended: machine, number and start of its process
    KILLED = "killed"  # why a run was closed from outside
    # what it works on
    IDENTITY = "identity"  # digest of data set, VLM, profile, encoder and seed together
    DATASET_DIGEST = "dataset_digest"
    VLM_DIGEST = "vlm_digest"
    PROFILE_DIGEST = "profile_digest"  # of how the VLM is asked and how its answers are scored
    SCORING = "scoring"
    ENCODER_DIGEST = "encoder_digest"
    SEED = "seed"
    SKIPPED_ITEMS = "skipped_items"  # what on_bad_item=skip left out of the data set, by kind
    REWARD_MODE = "reward_mode"
    RL_DATA_DIGEST = "rl_data_digest"
    RL_DATA_SOURCE = "rl_data_source"
    REFERENCE_DIGEST = "reference_digest"  # of the RL data that others are compared with
    PART_DIGESTS = "part_digests"  # of RL data that are merged
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
    FILTERED = "filtered"  # how many queries and trials the filters left to train on
    STATE_EPOCH = "state_epoch"  # the last epoch that training can go on from
    RESUMED_FROM = "resumed_from"
    THREADS = "threads"  # of torch, on which the last digits of a training on a CPU depend
    CHECKPOINT_DIGEST = "checkpoint_digest"
    # evaluation, registry
    GRPO_RUN = "grpo_run"
    TRAINING_SEED = "training_seed"
    CHECKPOINTS = "checkpoints"  # further ones that are evaluated, by digest
    EVALUATIONS = "evaluations"  # runs that are compared
    REGISTERED = "registered"  # the version that an evaluation registered
    CHAMPION = "champion"  # the champion that a promotion or a rollback left
    RETRIEVER_DIGEST = "retriever_digest"


_TAGGED = frozenset(
    {
        *(Tag.STEP, Tag.KEY, Tag.REUSED),
        *(Tag.IDENTITY, Tag.REWARD_MODE, Tag.RL_DATA_DIGEST, Tag.KL_BETA, Tag.ROUND),
        *(Tag.GATE, Tag.GATE_OVERRIDE, Tag.START_GATE_OVERRIDE, Tag.SKIPPED_ITEMS),
        *(Tag.BEST_EPOCH, Tag.STATE_EPOCH, Tag.PROCESS, Tag.RESUMED_FROM),
        *(Tag.REGISTERED, Tag.CHAMPION),
    }
)


def prefixed(tags: Mapping[str, Any]) -> dict[str, str]:
    """Writes tags as they stand on runs and logged models."""
    return {f"{PREFIX}{name}": fitted(as_text(value), LONGEST_TAG, FACTS_FILE) for name, value in tags.items()}


def record(facts: Mapping[str, Any]) -> None:
    """Records facts on the active run: as tags, or in ``facts.json``, as each name has its place.

    A fact that is too long for a tag is in ``facts.json`` as well, and its tag holds the beginning.
    The artifact is written first, so that a run with one of the tags has all that was recorded together with it.
    """
    active = mlflow.active_run()
    assert active is not None, "facts are recorded in a run"
    tagged = {name: value for name, value in facts.items() if name in _TAGGED}
    texts = {str(name): as_text(value) for name, value in facts.items()}
    others = {name: text for name, text in texts.items() if name not in _TAGGED or len(text) > LONGEST_TAG}
    if others:
        log_json({**_recorded(active.info.run_id), **others}, FACTS_FILE)
    mlflow.set_tags(prefixed(tagged))


def remove_tags(*names: Tag) -> None:
    """Removes tags of the active run that it has."""
    active = mlflow.active_run()
    assert active is not None, "tags are removed from a run"
    present = mlflow.get_run(active.info.run_id).data.tags
    for name in names:
        if f"{PREFIX}{name}" in present:
            mlflow.delete_tag(f"{PREFIX}{name}")


def name_run(name: str) -> None:
    """Names the active run, with the beginning of the name where it is too long."""
    mlflow.set_tag(RUN_NAME, fitted(name, LONGEST_RUN_NAME))


def set_description(text: str) -> None:
    """Sets the description of the active run; a long one is cut after a line, and says so."""
    mlflow.set_tag(DESCRIPTION, fitted(text, LONGEST_DESCRIPTION, "the artifacts"))


def tags_of(run: Run) -> dict[str, str]:
    """Returns those facts of a run that are tags, by name, without the prefix."""
    return {name.removeprefix(PREFIX): text for name, text in run.data.tags.items() if name.startswith(PREFIX)}


def run_tags(run_id: str) -> dict[str, str]:
    """Returns all facts that any run recorded, by name.

    Raises:
        MissingRunError: there is no such run, or it is in MLflow's bin.
        DataError: its ``facts.json`` is gone, or cannot be read.
    """
    tags, recorded = tags_of(living_run(run_id)), _recorded(run_id)
    if Tag.KEY in tags and not recorded and Tag.VERSION not in tags:  # earlier versions of this package had tags alone
        raise DataError(
            f"run {run_id}: its artifact {FACTS_FILE} is gone; restore the folder of its artifacts, or run that step again "
            "with rerun=true"
        )
    return {**tags, **recorded}


def holder_of(run_id: str) -> str:
    """Returns the id of the run that holds the result of a run: its own, or that of the finished one that it reused.

    Raises:
        MissingRunError: there is no such run.
    """
    return run_tags(run_id).get(Tag.REUSED, run_id)


def finished_run_tags(run_id: str, step: str) -> dict[str, str]:
    """Returns all facts that a finished run of a step recorded, by name.

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


def _recorded(run_id: str) -> dict[str, str]:
    """Reads ``facts.json`` of a run; empty where it has none."""
    return read_json(run_id, FACTS_FILE) if FACTS_FILE in list_artifacts(run_id, "") else {}
