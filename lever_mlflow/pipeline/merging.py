"""Defines the step that merges RL data which were recorded in parts, and has the data gate judge the whole."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlflow

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.pipeline.context import Context, make_step
from lever_mlflow.pipeline.gate import find_verdict, pass_gate
from lever_mlflow.pipeline.rollout import LARGE_RL_DATA_FILE, log_rl_data, read_rl_data, rl_data_of_run
from lever_mlflow.runs.steps import Step, active_run
from lever_mlflow.runs.tags import Tag, record, set_description
from lever_mlflow.trials.columns import blocks
from lever_mlflow.trials.merging import merge
from lever_mlflow.trials.parquet import parquet_files
from lever_mlflow.trials.rl_data import RLData
from lever_mlflow.trials.sharding import in_order, merge_shards

__all__ = ["merge_shards_step", "merge_step"]

STEP = "merge"


def merge_step(context: Context, references: Sequence[str]) -> Step:
    """Prepares the merging of RL data, each given by a file or a run.

    Raises:
        DataError, MissingRunError: as ``read_rl_data``. ParameterError: fewer than two are given.
    """
    if len(references) < 2:
        raise ParameterError("parts: name at least two RL data to merge, separated by commas, such as parts=a.json,b.json")
    parts = [read_rl_data(context, reference, keep_all=True) for reference in references]
    inputs: dict[str, Any] = {
        Tag.DATASET_DIGEST: context.identity()[Tag.DATASET_DIGEST],
        Tag.PART_DIGESTS: [part.digest for part in parts],
    }
    options = {"parts": ",".join(part.origin for part in parts), **context.options_of_judgement()}
    return make_step(context, STEP, STEP, {}, inputs, partial(_merge_parts, context, parts), options)


def merge_shards_step(context: Context, references: Sequence[str], parts: Sequence[str] = ()) -> Step:
    """Prepares the merging of all shards of one rollout, each given by a file or a run, or several by their folder.

    Raises:
        DataError, MissingRunError: as ``read_rl_data`` and ``in_order``. ParameterError: parts are named too.
    """
    if parts:
        raise ParameterError("parts and shards: both are given; give the shards of one rollout, or parts of any RL data")
    named = [file for reference in references for file in (_files(reference) or [reference])]
    shards = in_order([read_rl_data(context, reference, held=False) for reference in named])
    inputs: dict[str, Any] = {
        Tag.DATASET_DIGEST: context.identity()[Tag.DATASET_DIGEST],
        Tag.PART_DIGESTS: [shard.digest for shard in shards],
    }
    options = {"shards": ",".join(shard.origin for shard in shards), **context.options_of_judgement()}
    return make_step(context, STEP, STEP, {}, inputs, partial(_merge_shards, context, shards), options)


def _files(reference: str) -> list[str]:
    """Returns the Parquet files of a folder; none where the reference is not a folder."""
    return [str(file) for file in parquet_files(Path(reference))] if Path(reference).is_dir() else []


def _merge_shards(context: Context, shards: Sequence[RLData]) -> None:
    """Logs the whole rollout; raises GateError where the data gate refuses it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / LARGE_RL_DATA_FILE
        merge_shards(file, shards)
        mlflow.log_artifact(str(file))
    _judge(context, f"{len(shards)} shards")


def _merge_parts(context: Context, parts: Sequence[RLData]) -> None:
    """Logs the merged RL data; raises GateError where the data gate refuses them."""
    merged = merge(parts)
    log_rl_data(merged.groups, merged.meta)
    _judge(context, f"{len(parts)} parts", f"; {merged.n_repeated:,} repeated trials left out" if merged.n_repeated else "")


def _judge(context: Context, merged: str, left_out: str = "") -> None:
    """Describes the active run, which has logged RL data, and has the data gate judge them."""
    data = rl_data_of_run(context, active_run().info.run_id)
    n_trials = sum(columns.n_trials for columns in blocks(data.groups))
    set_description(f"{merged}: {len(data.groups):,} queries, {n_trials:,} trials{left_out}")
    record({Tag.RL_DATA_DIGEST: data.digest})
    pass_gate(context, data, find_verdict(context, data))
