"""Defines the step that merges RL data which were recorded in parts, and has the data gate judge the whole."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.pipeline.context import Context, make_step
from lever_mlflow.pipeline.gate import find_verdict, pass_gate
from lever_mlflow.pipeline.rollout import log_rl_data, read_rl_data, rl_data_of_run
from lever_mlflow.runs.steps import Step, active_run
from lever_mlflow.runs.tags import Tag, record, set_description
from lever_mlflow.trials.merging import merge
from lever_mlflow.trials.rl_data import RLData

__all__ = ["merge_step"]

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


def _merge_parts(context: Context, parts: Sequence[RLData]) -> None:
    """Logs the merged RL data; raises GateError where the data gate refuses them."""
    merged = merge(parts)
    log_rl_data(merged.groups, merged.meta)
    data = rl_data_of_run(context, active_run().info.run_id)
    n_trials = sum(len(group.trials) for group in data.groups)
    repeated = f"; {merged.n_repeated:,} repeated trials left out" if merged.n_repeated else ""
    set_description(f"{len(parts)} parts: {len(data.groups):,} queries, {n_trials:,} trials{repeated}")
    record({Tag.RL_DATA_DIGEST: data.digest})
    pass_gate(context, data, find_verdict(context, data))
