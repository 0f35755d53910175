"""Defines the rollout step, which records trials of a starting policy as RL data, and finds RL data again."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, asdict, fields
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import mlflow
import numpy as np
from pydantic import TypeAdapter, ValidationError

from lever_mlflow.data.features import check_sampler
from lever_mlflow.data.pool_answers import answers_in_pools
from lever_mlflow.exceptions import DataError
from lever_mlflow.files.records import first_misfit
from lever_mlflow.pipeline.checkpoints import RANDOM_INIT, Start, start_selector
from lever_mlflow.pipeline.context import Context, make_step
from lever_mlflow.runs.artifacts import artifact, list_artifacts
from lever_mlflow.runs.metrics import ANSWER_RATE, ROLLOUT
from lever_mlflow.runs.search import absent, auto_run_id, find_run
from lever_mlflow.runs.steps import Step, ensure
from lever_mlflow.runs.tags import Tag, holder_of, record, run_tags, set_description
from lever_mlflow.settings import AUTO, RolloutSettings, declaration, preset_of
from lever_mlflow.trials.columns import as_columns
from lever_mlflow.trials.global_search import GLOBAL_SEARCH
from lever_mlflow.trials.item_order import match_items
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rl_data import Group, RLData, is_positive, save_rl_data
from lever_mlflow.trials.rollout import (
    check_settings,
    choose_queries,
    is_mined,
    most_prompts,
    rollout,
)
from lever_mlflow.trials.sharding import SHARD, Shard

if TYPE_CHECKING:
    from lever_mlflow.selector.network import PointerSelector

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
_QUERIES_AT_A_TIME = 10_000  # of which the trials are objects in memory, about 100 MB
WHOLE = Shard()
SCORING = "scoring"  # in the meta of RL data: how the answers were scored
LEFT_OUT = "skipped_train"  # in the meta of RL data: how many training items were left out when they were recorded


def rollout_step(
    context: Context, settings: RolloutSettings, init: str = RANDOM_INIT, round_number: int = 1, shard: Shard = WHOLE
) -> Step:
    """Prepares the recording of trials of a starting policy: ``init`` is ``random`` (an untrained selector) or a checkpoint.

    Each round of GRPO, numbered from 1, has other queries. A shard has a part of them, and is never taken for the rollout.

    Raises:
        ParameterError: the settings do not fit together.
    """
    check_settings(settings)
    shard.rows(settings.n_queries)
    check_sampler(settings.pool_sampler, context.resources.encoder_sides)
    start = start_selector(context, init)
    inputs: dict[str, Any] = {
        **context.identity(),
        **context.same_resources(),
        Tag.START_DIGEST: start.digest,
    }
    if shard == WHOLE:
        inputs[Tag.ROUND] = round_number
    name = STEP if round_number == 1 else f"{STEP} round {round_number}"
    choices = asdict(settings)
    if shard != WHOLE:
        name, choices = f"{STEP} shard {shard}", {**choices, "shard": shard.number, "n_shards": shard.of}
    execute = partial(_record_trials, context, settings, start, round_number, shard)
    options = {"init": init} if round_number == 1 else None  # no command records the trials of a later round
    needs: dict[str, Any] = {"shots": settings.shots, "prompts": math.ceil(most_prompts(settings) / shard.of)}
    return make_step(context, STEP, name, choices, inputs, execute, options, **needs)


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
    return rl_data_of_run(context, auto_run_id("rl_data", STEP, run))


def read_rl_data(context: Context, reference: str, keep_all: bool = False, held: bool | None = None) -> RLData:
    """Reads RL data from a file, or from a run given by its id or as ``runs:/<id>[/<artifact>]``.

    Args:
        context: what the data are matched with.
        reference: the file or run.
        keep_all: whether all fields and the trials that are not used are kept, so that the data can be saved again.
        held: whether the data are held in memory, as for ``load_rl_data``; if None, the engine of the data gate decides it.

    Raises:
        DataError, MissingRunError: as ``rl_data_of_run``; or the file cannot be read.
    """
    if reference.startswith("runs:/"):
        run_id, _, path = reference.removeprefix("runs:/").partition("/")
        return rl_data_of_run(context, run_id, path, keep_all, held)
    if re.fullmatch("[0-9a-f]{32}", reference) and not Path(reference).exists():
        return rl_data_of_run(context, reference, keep_all=keep_all, held=held)
    return _load(context, reference, keep_all, held)


def rl_data_of_run(context: Context, run_id: str, path: str = "", keep_all: bool = False, held: bool | None = None) -> RLData:
    """Reads the RL data that a run logged as an artifact, by default a rollout's, or that another step worked on.

    ``keep_all`` and ``held`` are as for ``read_rl_data``.

    Raises:
        MissingRunError: there is no such run. DataError: it has no RL data, or they have changed since the run read them.
    """
    run_id = holder_of(run_id)
    tags = run_tags(run_id)
    origin = tags.get(Tag.RL_DATA_SOURCE)
    if path:
        return _load(context, artifact(run_id, path), keep_all, held, source=f"runs:/{run_id}/{path}")
    if origin is None or origin in {f"runs:/{run_id}/{name}" for name in (RL_DATA_FILE, LARGE_RL_DATA_FILE)}:
        file = LARGE_RL_DATA_FILE if LARGE_RL_DATA_FILE in list_artifacts(run_id, "") else RL_DATA_FILE
        origin = f"runs:/{run_id}/{file}"
        data = _load(context, artifact(run_id, file), keep_all, held, source=origin)
    else:
        data = read_rl_data(context, origin, keep_all, held)
    recorded = tags.get(Tag.RL_DATA_DIGEST, data.digest)  # a step that has just logged its data has not recorded it yet
    if data.digest != recorded:
        raise DataError(
            f"{origin}: its digest is {data.digest}, but run {run_id} worked on {recorded}; the file has changed since"
        )
    return data


def _load(context: Context, path: str | Path, keep_all: bool, held: bool | None, source: str | None = None) -> RLData:
    """Reads an RL data file and finds the training items that its indices mean."""
    data = load_rl_data(
        path,
        use_fallback=context.use_fallback,
        keep_records=keep_all,
        keep_dropped=keep_all,
        held=context.gate.gate_engine == "pandas" if held is None else held,
        source=source,
    )
    return match_items(data, context.resources.train, context.item_order)


def log_rl_data(groups: Iterable[Group], meta: Mapping[str, Any], *, shard: bool = False) -> str:
    """Logs RL data as an artifact of the active run, many trials as Parquet and fewer as JSON; returns their digest.

    Groups are written as they come, so that many need not be in memory. A ``shard`` is Parquet whatever its size is.
    """
    groups, first, n_trials = iter(groups), [], 0
    for group in groups:
        first.append(group)
        n_trials += len(group.trials)
        if n_trials > _MOST_TRIALS_IN_JSON:
            break
    large = shard or n_trials > _MOST_TRIALS_IN_JSON
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (LARGE_RL_DATA_FILE if large else RL_DATA_FILE)
        save_rl_data(path, chain(first, groups), meta)
        mlflow.log_artifact(str(path))
        return load_rl_data(path, held=False).digest


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
    context: Context, settings: RolloutSettings, selector: PointerSelector, round_number: int = 1, shard: Shard = WHOLE
) -> tuple[Iterator[Group], dict[str, Any]]:
    """Records trials of a selector, which takes no MLflow run.

    Each round of GRPO, numbered from 1, has other queries.

    Returns:
        A group for each query, recorded when it is asked for, together with at most 9,999 that follow; the meta of their file.

    Raises:
        ParameterError: the settings do not fit together or the data set, or the VLM cannot do what they ask for.
    """
    resources = context.resources
    queries = choose_queries(resources.train, settings.n_queries, context.seed, round_number)[shard.rows(settings.n_queries)]
    answer = partial(resources.answer, description="rollout")
    score = partial(resources.score, description="rollout, right answers")
    if settings.gt_prob:
        score([])  # a VLM that cannot score is refused now, and not after all answers
    features = resources.features("train")
    groups = chain.from_iterable(
        rollout(chunk, resources.train, features, selector, answer, settings, seed=context.seed, score=score)
        for chunk in (queries[start : start + _QUERIES_AT_A_TIME] for start in range(0, len(queries), _QUERIES_AT_A_TIME))
    )
    meta = {
        **context.identity(),
        **asdict(settings),
        SCORING: resources.data.scoring,
        "round": round_number,
        "generation": asdict(resources.language_model.profile),
    }
    meta[LEFT_OUT] = resources.left_out["train"]
    if shard != WHOLE:
        meta[SHARD] = str(shard)
    return groups, meta


def _record_trials(context: Context, settings: RolloutSettings, start: Start, round_number: int, shard: Shard) -> None:
    """Records the trials and logs them as they come; logs their digest and their figures, those of the pools included."""
    groups, meta = record_groups(context, settings, start.load(), round_number, shard)
    counts: Counter[str] = Counter()

    def counted() -> Iterator[Group]:
        while some := list(islice(groups, _QUERIES_AT_A_TIME)):
            counts.update(_counts(context, some))
            yield from some

    record({Tag.RL_DATA_DIGEST: log_rl_data(counted(), meta, shard=shard != WHOLE)})
    n_queries, n_trials = counts["queries"], counts["trials"]
    figures = {
        "n_queries": n_queries,
        "n_trials": n_trials,
        "positive_trial_rate": counts["correct"] / n_trials,
        "positive_query_rate": counts["positive"] / n_queries,
    }
    if settings.mine_positives or settings.search_positives:
        figures |= {
            "positive_query_rate_before": counts["positive_before"] / n_queries,
            "mined_trials": counts["mined_trials"],
            "mined_queries": counts["mined_queries"],
        }
    if settings.search_positives:
        figures["found_trials"] = counts["found_trials"]
    answer_rate = {ANSWER_RATE: counts["answer_in_pool"] / n_queries}
    mlflow.log_metrics({f"{ROLLOUT}{name}": value for name, value in figures.items()} | answer_rate)
    positive = f"{100 * figures['positive_query_rate']:.0f} % of queries positive"
    set_description(f"{n_queries:,} queries, {n_trials:,} trials, {positive}")


def _counts(context: Context, groups: Sequence[Group]) -> dict[str, int]:
    """Returns how many queries and trials of some groups are of which kind."""
    train, trials = context.resources.train, [trial for group in groups for trial in group.trials]
    in_pool = answers_in_pools([train[group.query_id] for group in groups], train, [group.pool for group in groups])
    return {
        "queries": len(groups),
        "trials": len(trials),
        "correct": sum(trial.correct == 1.0 for trial in trials),
        "positive": sum(is_positive(group.trials) for group in groups),
        "positive_before": sum(is_positive(t for t in group.trials if not is_mined(t)) for group in groups),
        "mined_trials": sum(map(is_mined, trials)),
        "mined_queries": sum(any(map(is_mined, group.trials)) for group in groups),
        "found_trials": sum(trial.gen_method == GLOBAL_SEARCH for trial in trials),
        "answer_in_pool": int(in_pool.sum()),
    }
