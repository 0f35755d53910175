"""Short trainings on small problems, and what their tests compare."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from lever_mlflow.selector.checkpoint import selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import GrpoSettings, RceSettings
from lever_mlflow.training.batches import tabulate
from lever_mlflow.training.grpo import train_grpo
from lever_mlflow.training.loop import TrainingState
from lever_mlflow.training.rce import train_rce
from lever_mlflow.trials.rewards import Reward
from lever_mlflow.trials.rl_data import Group, RLData

QUICK = {"lr": 1e-3, "batch_size": 8}


class Problem(NamedTuple):
    """Holds features [S, D] and the groups to train on."""

    features_SD: np.ndarray
    groups: list[Group]

    @property
    def data(self):
        """The groups as RL data."""
        return RLData(tuple(self.groups), "digest", "pools", {}, {}, "x.json")

    def table(self, groups):
        """Returns some groups as a table."""
        return tabulate(groups, self.features_SD, Reward())

    def batch(self, groups):
        """Returns some groups as one batch."""
        return self.table(groups).batch(np.arange(len(groups)))


class TrainedEpoch(NamedTuple):
    """Holds the metrics of an epoch, the digest of the selector's weights after it, and its state."""

    metrics: dict[str, float]
    digest: str
    state: TrainingState

    @property
    def repeatable(self):
        """All that must be the same when a training is repeated."""
        return {**self.metrics, "train/seconds": 0}, self.digest


def untrained_selector(seed=1, **shape):
    """Returns a selector that fits the features of ``learnable_groups``."""
    torch.manual_seed(seed)
    return PointerSelector(feature_dim=16, **shape).eval()


def run_rce(problem, epochs=1, seed=0, state=None, **settings):
    """Trains by RCE and returns all epochs."""
    chosen = RceSettings(**{**QUICK, "epochs": epochs, **settings})
    return _epochs(train_rce(problem.data, problem.features_SD, chosen, seed=seed, state=state))


def run_grpo(problem, epochs=1, seed=0, state=None, **settings):
    """Trains by GRPO from an untrained selector and returns all epochs."""
    chosen = GrpoSettings(**{**QUICK, "epochs": epochs, **settings})
    return _epochs(train_grpo(untrained_selector(), problem.data, problem.features_SD, chosen, seed=seed, state=state))


def _epochs(training):
    return [TrainedEpoch(epoch.metrics, selector_digest(epoch.selector), epoch.state) for epoch in training]


def with_equal_rewards(group):
    """Returns a group with the same pointers, all of which are right."""
    return replace(group, trials=tuple(replace(trial, correct=1.0, accuracy=1.0) for trial in group.trials))
