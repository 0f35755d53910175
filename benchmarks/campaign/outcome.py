"""Prints as JSON what commands left in a store and a cache: all that must be the same whether they were disturbed or not.

Ids, times and durations, which differ between any two runs, are replaced by words. The store and the cache are those of the
environment, ``MLFLOW_TRACKING_URI`` and ``LEVER_MLFLOW_CACHE``.

    python -m benchmarks.campaign.outcome
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import sys
from collections.abc import Collection, Iterable
from contextlib import closing
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import RegisteredModel

from lever_mlflow.files.cache_dir import default_cache_dir
from lever_mlflow.pipeline.comparison import COMPARISON_FILE
from lever_mlflow.pipeline.evaluation import EVALUATE, RESULT_FILE, read_records
from lever_mlflow.pipeline.promotion import EVIDENCE_FILE, PROMOTE
from lever_mlflow.registry.champion import is_name_of_record
from lever_mlflow.runs.artifacts import read_json
from lever_mlflow.runs.models import checkpoints_of
from lever_mlflow.runs.tags import Tag, run_tags, tags_of

COUNT_OF_CHANGES = ("champion_change", "champion_changes")  # a change that was begun by a killed process counts as one
ID, TIME = r"\b(m-)?[0-9a-f]{32}\b", r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\.\d+)?([+]00:00|Z| UTC)?"


def without_ids(value: Any, ids: Collection[str]) -> Any:
    """Returns JSON without these ids, which are 32 hexadecimal digits as digests are, without times and without seconds."""
    if isinstance(value, dict):
        return {key: without_ids(item, ids) for key, item in value.items() if "seconds" not in key}
    if isinstance(value, list):
        return [without_ids(item, ids) for item in value]
    if isinstance(value, str):
        value = re.sub(ID, lambda match: "ID" if match[0] in ids else match[0], value)
        return re.sub(TIME, "TIME", value)
    return value


def registered(client: MlflowClient, model: RegisteredModel) -> dict[str, Any]:
    """Returns tags, aliases and versions of a registered model."""
    versions = client.search_model_versions(f"name = '{model.name}'")
    return {
        "tags": {name: text for name, text in model.tags.items() if name not in COUNT_OF_CHANGES},
        "description": model.description,
        "aliases": {name: str(number) for name, number in model.aliases.items()},
        "versions": {str(version.version): {"tags": version.tags, "description": version.description} for version in versions},
    }


def is_in_force(name: str, models: Iterable[RegisteredModel]) -> bool:
    """Says whether a name is that of the record of a change that has not ended; one that has ended stays until the next."""
    if not is_name_of_record(name):
        return False
    of, _, number = name.rpartition(".champion-change-")
    ended = next((model.tags.get("champion_changes", "0") for model in models if model.name == of), "0")
    return int(number) > int(ended)


def of_step(runs: Iterable[Run], *steps: str) -> list[Run]:
    """Returns those of the finished runs that did a step of one of these kinds themselves."""
    return [run for run in runs if tags_of(run).get(Tag.STEP) in steps]


def weights(client: MlflowClient, run: Run) -> dict[str, str]:
    """Returns the digests of the weights of each epoch of a training."""
    models = checkpoints_of(run.info.run_id)
    return {str(epoch): client.get_logged_model(model).tags["lever.checkpoint_digest"] for epoch, model in models.items()}


def repeated(finished: Iterable[Run]) -> list[str]:
    """Names the steps that several runs have finished, which could have been reused; once for each run but the first."""
    runs = {run.info.run_id: tags_of(run) for run in finished}
    steps = [
        (tags[Tag.KEY], run_id)
        for run_id, tags in runs.items()
        if tags.get(Tag.STEP) not in (None, "main", PROMOTE, "rollback")
    ]
    first = dict(steps)
    return sorted(runs[run_id][Tag.STEP] for key, run_id in steps if first[key] != run_id)


def promotion(run: Run) -> tuple[str | None, str]:
    """Returns the champion before a promotion, and the one after it."""
    return read_json(run.info.run_id, EVIDENCE_FILE)["champion"], tags_of(run)[Tag.CHAMPION]


def answers() -> int:
    """Returns the number of answers in the cache."""
    total = 0
    for path in default_cache_dir().glob("answers*.sqlite"):
        with closing(sqlite3.connect(path)) as connection:
            total += connection.execute("SELECT count(*) FROM answers").fetchone()[0]
    return total


def ids() -> set[str]:
    """Returns the ids of all runs and logged models."""
    runs = {run.info.run_id for run in mlflow.search_runs(search_all_experiments=True, output_format="list")}
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    models = mlflow.search_logged_models(experiment_ids=experiments, output_format="list")
    return runs | {model.model_id for model in models}


def outcome() -> dict[str, Any]:
    """Returns what is in the store and in the cache."""
    client = MlflowClient()
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    finished = [run for run in runs if run.info.status == "FINISHED"]
    models = client.search_registered_models()
    evaluations = of_step(finished, EVALUATE)
    return {
        "registry": {model.name: registered(client, model) for model in models if not is_name_of_record(model.name)},
        "records of changes": [model.name for model in models if is_in_force(model.name, models)],
        "RL data": sorted({run_tags(run.info.run_id)[Tag.RL_DATA_DIGEST] for run in of_step(finished, "rollout")}),
        "weights": {run.info.run_name: weights(client, run) for run in of_step(finished, "rce", "grpo-round", "grpo")},
        "records": {run.info.run_name: read_records(run.info.run_id).digest for run in evaluations},
        "evaluations": {run.info.run_name: read_json(run.info.run_id, RESULT_FILE) for run in evaluations},
        "comparisons": {run.info.run_name: read_json(run.info.run_id, COMPARISON_FILE) for run in of_step(finished, "compare")},
        "answers": answers(),
        "done more than once": repeated(finished),
        "promotions": [promotion(run) for run in of_step(finished, PROMOTE) if Tag.CHAMPION in tags_of(run)],
        "runs that are RUNNING": sorted(run.info.run_name for run in runs if run.info.status == "RUNNING"),
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    content = json.loads(json.dumps(outcome(), default=str))  # as the entities of MLflow have types of their own
    json.dump(without_ids(content, ids()), sys.stdout, sort_keys=True)
