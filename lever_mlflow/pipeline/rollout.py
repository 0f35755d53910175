"""The rollout step: records trials of a starting policy as RL data."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import mlflow

from lever_mlflow.pipeline.context import LEFT_OUT, Context
from lever_mlflow.runs.tags import TAG
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import RolloutSettings
from lever_mlflow.trials.rl_data import load_rl_data, save_rl_data
from lever_mlflow.trials.rollout import choose_queries, is_mined, positive_query_rate, rollout

__all__ = ["RL_DATA_FILE", "record_trials"]

RL_DATA_FILE = "rl_data.json"


def record_trials(context: Context, settings: RolloutSettings, selector: PointerSelector) -> None:
    """Rollout: logs ``rl_data.json``, its digest and what mining changed."""
    train = context.resources.train
    queries = choose_queries(train, settings.n_queries, context.seed)
    answer = partial(context.resources.answer, description="rollout")
    score = partial(context.resources.score, description="rollout, right answers")
    if settings.gt_prob:
        score([])  # refused now, if at all, and not after all answers
    features = context.resources.features("train")
    groups = rollout(queries, train, features, selector, answer, settings, seed=context.seed, score=score)
    meta = {**context.identity(), **asdict(settings), "generation": asdict(context.resources.language_model.profile)}
    meta[LEFT_OUT] = context.resources.left_out["train"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / RL_DATA_FILE
        save_rl_data(path, groups, meta)
        data = load_rl_data(path)
        mlflow.log_artifact(str(path))
    mlflow.set_tag(f"{TAG}rl_data_digest", data.digest)
    trials = [trial for group in groups for trial in group.trials]
    mlflow.log_metrics(
        {
            "data/n_queries": len(groups),
            "data/n_trials": len(trials),
            "data/positive_trial_rate": sum(trial.correct for trial in trials) / len(trials),
            "data/positive_query_rate_before": positive_query_rate(groups, mined=False),
            "data/positive_query_rate": positive_query_rate(groups),
            "data/mined_trials": sum(map(is_mined, trials)),
            "data/mined_queries": sum(any(map(is_mined, group.trials)) for group in groups),
        }
    )
