"""Trains a new selector on recorded trials by RCE: reward-weighted cross-entropy.

Departures from the predecessor: training uses whole groups unless ``top_k`` asks otherwise, where the predecessor kept the best
three trials in the first epoch; and validation never uses dropout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lever_mlflow.selector.network import PointerSelector, pointer_logprobs
from lever_mlflow.settings import RceSettings
from lever_mlflow.training.batches import GroupBatch, GroupTable, split_tables
from lever_mlflow.training.loop import Epoch, Metrics, StepOutput, TrainingState, train_epochs
from lever_mlflow.training.objectives import rce_loss, rce_temperature
from lever_mlflow.training.validation import validate_selector
from lever_mlflow.trials.rewards import DEFAULT_REWARD, Reward
from lever_mlflow.trials.rl_data import RLData

__all__ = ["RceObjective", "train_rce"]


def train_rce(
    data: RLData,
    features_SD: np.ndarray,
    settings: RceSettings,
    *,
    seed: int,
    reward: Reward = DEFAULT_REWARD,
    device: str = "cpu",
    state: TrainingState | None = None,
) -> Iterator[Epoch]:
    """Trains a freshly initialised selector and yields each epoch, or those after ``state``.

    An epoch has the metrics of ``loop.train_epochs`` and of ``RceObjective.finish``.

    Args:
        data: the recorded trials.
        features_SD: features of the training items, of the fusion that the settings name.
        settings: of the training and of the selector's shape.
        seed: decides the split, the initial weights, the order of queries and dropout.
        reward: how scores become rewards.
        device: ``cpu`` or ``cuda``.
        state: of an earlier run with the same arguments, after whose last epoch training goes on.

    Raises:
        DataError: the data do not fit the features, or too few queries have trials.
        ParameterError: a trial lacks a score that the reward takes.
        LeverError: the loss is not finite.
        CheckpointError: ``state`` is of another selector.
    """
    train_table, val_table = split_tables(data.groups, features_SD, settings, reward, seed)
    torch.manual_seed(seed)
    selector = PointerSelector(
        feature_dim=features_SD.shape[1],
        n_layers=settings.n_layers,
        n_heads=settings.n_heads,
        dropout=settings.dropout,
        state_update=settings.state_update,
        fusion=settings.fusion,
    ).to(device)
    objective = RceObjective(selector, val_table, settings, device)
    return train_epochs(selector, train_table, settings, objective, seed=seed, name="RCE", device=device, state=state)


class RceObjective:
    """Computes the RCE loss at a temperature that changes over the steps, and validates without dropout."""

    def __init__(self, selector: PointerSelector, val_table: GroupTable, settings: RceSettings, device: str) -> None:
        self.selector, self.val_table, self.settings, self.device = selector, val_table, settings, device
        self.temperature = settings.temperature_start
        self.start_reward = validate_selector(selector, val_table, device)["val/expected_reward"]

    def step(self, model: nn.Module, batch: GroupBatch, progress: float) -> StepOutput:
        """Computes the loss of a batch, with dropout if the settings ask for it."""
        model.train()
        settings = self.settings
        self.temperature = rce_temperature(progress, settings.temperature_start, settings.temperature_end)
        logprobs_BG = pointer_logprobs(model(*batch.inputs), batch.pointers_BGK)
        result = rce_loss(
            logprobs_BG, batch.rewards_BG, self.temperature, normalize=settings.normalize_rewards, mask_BG=batch.mask_BG
        )
        return StepOutput(result.loss, counted=len(batch.query_ids))

    def finish(self, metrics: Metrics, values: Mapping[str, Tensor]) -> Metrics:
        """Returns ``val/loss`` and ``val/expected_reward`` of the validation queries, and ``train/temperature`` at the end.

        ``val/expected_reward_start`` is the expected reward of the untrained selector.
        """
        validation = validate_selector(self.selector, self.val_table, self.device)
        return {**validation, "val/expected_reward_start": self.start_reward, "train/temperature": self.temperature}
