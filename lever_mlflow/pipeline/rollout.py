"""Defines the rollout step, which records trials of a starting policy as RL data, and finds RL data again."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import mlflow
import numpy as np
from pydantic import TypeAdapter, ValidationError

from lever_mlflow.data.features import check_sampler
from lever_mlflow.data.pool_answers import answers_in_pools
from lever_mlflow.exceptions import DataError
from lever_mlflow.files.records import first_misfit
from lever_mlflow.pipeline.checkpoints import RANDOM_INIT, initial_selector
from lever_mlflow.pipeline.context import Context, make_step
from lever_mlflow.runs.artifacts import artifact, list_artifacts
from lever_mlflow.runs.metrics import ANSWER_RATE, ROLLOUT
from lever_mlflow.runs.search import absent, find_run, taken
from lever_mlflow.runs.steps import Step, ensure
from lever_mlflow.runs.tags import Tag, holder_of, record, run_tags, set_description
from lever_mlflow.selector.checkpoint import selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import AUTO, RolloutSettings, declaration, preset_of
from lever_mlflow.trials.columns import as_columns
from lever_mlflow.trials.global_search import GLOBAL_SEARCH
from lever_mlflow.trials.item_order import match_items
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rl_data import Group, RLData, save_rl_data
from lever_mlflow.trials.rollout import (
    check_settings,
    choose_queries,
    is_mined,
    most_prompts,
    positive_query_rate,
    rollout,
)

__all__ = [
    "LEFT_OUT",
    "SCORING",
    "find_rl_data",
    "log_rl_data",
    "read_rl_data",
    "record_groups",
    "recorded_settings",
    "rl_data_of_run",
    "rollout_step",
]

STEP = "rollout"
RL_DATA_FILE, LARGE_RL_DATA_FILE = "rl_data.json", "rl_data.parquet"
_MOST_TRIALS_IN_JSON = 100_000  # about 50 MB
SCORING = "scoring"  # in the meta of RL data: how the answers were scored
LEFT_OUT = "skipped_train"  # in the meta of RL data: how many training items were left out when they were recorded


def rollout_step(context: Context, settings: RolloutSettings, init: str = RANDOM_INIT, round_number: int = 1) -> Step:
    """Prepares the recording of trials of a starting policy: ``init`` is ``random`` (an untrained selector) or a checkpoint.

    Each round of GRPO, numbered from 1, has other queries.

    Raises:
        ParameterError: the settings do not fit together.
    """
    check_settings(settings)
    check_sampler(settings.pool_sampler, context.resources.encoder_sides)
    selector = initial_selector(context, init)
    inputs = {
        **context.identity(),
        **context.same_resources(),
        Tag.START_DIGEST: selector_digest(selector),
        Tag.ROUND: round_number,
    }
    name = STEP if round_number == 1 else f"{STEP} round {round_number}"
    execute = partial(_record_trials, context, settings, selector, round_number)
    options = {"init": init} if round_number == 1 else None  # no command records the trials of a later round
    needs: dict[str, Any] = {"shots": settings.shots, "prompts": most_prompts(settings)}
    return make_step(context, STEP, name, asdict(settings), inputs, execute, options, **needs)


def find_rl_data(context: Context, reference: str) -> RLData:
    """Reads RL data by file or run; ``auto`` takes the newest finished rollout on the same resources and seed, or makes one.

    Rollouts of later rounds of GRPO are not taken. A new rollout has the settings of the context's preset.
    """
    if reference != AUTO:
        return read_rl_data(context, reference)
    run = find_run(STEP, {**context.same_resources(), Tag.ROUND: 1})
    if run is None:
        absent("rollout on the same data, models and seed")
        return rl_data_of_run(context, ensure(rollout_step(context, preset_of(RolloutSettings, context.preset))))
    return rl_data_of_run(context, taken("rl_data", STEP, run))


def read_rl_data(context: Context, reference: str, keep_all: bool = False) -> RLData:
    """Reads RL data from a file, or from a run given by its id or as ``runs:/<id>[/<artifact>]``.

    Args:
        context: what the data are matched with.
        reference: the file or run.
        keep_all: whether all fields and the trials that are not used are kept, so that the data can be saved again.

    Raises:
        DataError, MissingRunError: as ``rl_data_of_run``; or the file cannot be read.
    """
    if reference.startswith("runs:/"):
        run_id, _, path = reference.removeprefix("runs:/").partition("/")
        return rl_data_of_run(context, run_id, path, keep_all)
    if re.fullmatch("[0-9a-f]{32}", reference) and not Path(reference).exists():
        return rl_data_of_run(context, reference, keep_all=keep_all)
    return _load(context, reference, keep_all)


def rl_data_of_run(context: Context, run_id: str, path: str = "", keep_all: bool = False) -> RLData:
    """Reads the RL data that a run logged as an artifact, by default a rollout's, or that another step worked on.

    ``keep_all`` is as for ``read_rl_data``.

    Raises:
        MissingRunError: there is no such run. DataError: it has no RL data, or they have changed since the run read them.
    """
    run_id = holder_of(run_id)
    tags = run_tags(run_id)
    origin = tags.get(Tag.RL_DATA_SOURCE)
    if path:
        return _load(context, artifact(run_id, path), keep_all, source=f"runs:/{run_id}/{path}")
    if origin is None or origin in {f"runs:/{run_id}/{name}" for name in (RL_DATA_FILE, LARGE_RL_DATA_FILE)}:
        file = LARGE_RL_DATA_FILE if LARGE_RL_DATA_FILE in list_artifacts(run_id, "") else RL_DATA_FILE
        origin = f"runs:/{run_id}/{file}"
        data = _load(context, artifact(run_id, file), keep_all, source=origin)
    else:
        data = read_rl_data(context, origin, keep_all)
    recorded = tags.get(Tag.RL_DATA_DIGEST, data.digest)  # a step that has just logged its data has not recorded it yet
    if data.digest != recorded:
        raise DataError(
            f"{origin}: its digest is {data.digest}, but run {run_id} worked on {recorded}; the file has changed since"
        )
    return data


def _load(context: Context, path: str | Path, keep_all: bool, source: str | None = None) -> RLData:
    """Reads an RL data file and finds the training items that its indices mean."""
    data = load_rl_data(
        path,
        use_fallback=context.use_fallback,
        keep_records=keep_all,
        keep_dropped=keep_all,
        held=context.gate.gate_engine == "pandas",
        source=source,
    )
    return match_items(data, context.resources.train, context.item_order)


def log_rl_data(groups: Sequence[Group], meta: Mapping[str, Any]) -> str:
    """Logs RL data as an artifact of the active run, many trials as Parquet and fewer as JSON; returns their digest."""
    large = sum(len(group.trials) for group in groups) > _MOST_TRIALS_IN_JSON
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (LARGE_RL_DATA_FILE if large else RL_DATA_FILE)
        save_rl_data(path, groups, meta)
        mlflow.log_artifact(str(path))
        return load_rl_data(path).digest


def recorded_settings(data: RLData) -> RolloutSettings:
    """Returns the settings with which RL data were recorded, so that a later round records further trials in the same way.

    The numbers of queries, shots and candidates, and whether right answers were scored, are those of the data themselves. All
    other settings are read from the meta of the data, or have their defaults where it lacks them.

    Raises:
        DataError: the meta holds a value that a setting does not take.
        ParameterError: the settings do not fit together.
    """
    kinds = get_type_hints(RolloutSettings)
    settings = {
        setting.name: _checked(setting, kinds[setting.name], data)
        for setting in fields(RolloutSettings)
        if setting.name in data.meta
    }
    columns = as_columns(data.groups)
    shots = int(columns.shots_T.max(initial=0)) or RolloutSettings.shots
    settings |= {"n_queries": len(columns), "shots": shots, "gt_prob": not np.isnan(columns.gt_prob_T).all()}
    if data.vintage == "pools":  # in the older vintages, a pool is only what the pointers name
        settings["pool_size"] = int(columns.pool_sizes_Q.max())
    recorded = RolloutSettings(**settings)
    check_settings(recorded)
    return recorded


def _checked(setting: Field[Any], kind: Any, data: RLData) -> Any:
    """Returns the value of a setting in the meta of RL data; raises DataError where it is of another type or out of bounds."""
    value, described = data.meta[setting.name], declaration(setting)
    try:
        checked = TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
        numbers = checked if isinstance(checked, tuple) else (checked,)
        if described.at_least is None or (numbers and all(number >= described.at_least for number in numbers)):
            return checked
        reason = f"expected at least {described.at_least:g}"
    except ValidationError as error:
        reason = first_misfit(error)
    raise DataError(f"{data.source}: _meta: {setting.name} is {value!r} ({reason}); correct or remove it, or give rounds=1")


def record_groups(
    context: Context, settings: RolloutSettings, selector: PointerSelector, round_number: int = 1
) -> tuple[list[Group], dict[str, Any]]:
    """Records trials of a selector, which takes no MLflow run; returns a group for each query, and the meta of their file.

    Each round of GRPO, numbered from 1, has other queries.

    Raises:
        ParameterError: the settings do not fit together or the data set, or the VLM cannot do what they ask for.
    """
    resources = context.resources
    queries = choose_queries(resources.train, settings.n_queries, context.seed, round_number)
    answer = partial(resources.answer, description="rollout")
    score = partial(resources.score, description="rollout, right answers")
    if settings.gt_prob:
        score([])  # a VLM that cannot score is refused now, and not after all answers
    features = resources.features("train")
    groups = rollout(queries, resources.train, features, selector, answer, settings, seed=context.seed, score=score)
    meta = {
        **context.identity(),
        **asdict(settings),
        SCORING: resources.data.scoring,
        "round": round_number,
        "generation": asdict(resources.language_model.profile),
    }
    meta[LEFT_OUT] = resources.left_out["train"]
    return groups, meta


def _record_trials(context: Context, settings: RolloutSettings, selector: PointerSelector, round_number: int) -> None:
    """Records the trials; logs them, their digest and their figures, those of the pools included."""
    groups, meta = record_groups(context, settings, selector, round_number)
    record({Tag.RL_DATA_DIGEST: log_rl_data(groups, meta)})
    trials = [trial for group in groups for trial in group.trials]
    figures = {
        "n_queries": len(groups),
        "n_trials": len(trials),
        "positive_trial_rate": sum(trial.correct for trial in trials) / len(trials),
        "positive_query_rate": positive_query_rate(groups),
    }
    if settings.mine_positives or settings.search_positives:
        figures |= {
            "positive_query_rate_before": positive_query_rate(groups, mined=False),
            "mined_trials": sum(map(is_mined, trials)),
            "mined_queries": sum(any(map(is_mined, group.trials)) for group in groups),
        }
    if settings.search_positives:
        figures["found_trials"] = sum(trial.gen_method == GLOBAL_SEARCH for trial in trials)
    train, pools = context.resources.train, [group.pool for group in groups]
    in_pool = answers_in_pools([train[group.query_id] for group in groups], train, pools)
    mlflow.log_metrics({f"{ROLLOUT}{name}": value for name, value in figures.items()} | {ANSWER_RATE: in_pool.mean()})
    positive = f"{100 * figures['positive_query_rate']:.0f} % of queries positive"
    set_description(f"{len(groups):,} queries, {len(trials):,} trials, {positive}")
