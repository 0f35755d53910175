"""Measures a selector on validation groups, for both trainers and in all processes of a training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from lever_mlflow import distributed
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.training.batches import GroupBatch, GroupTable
from lever_mlflow.training.objectives import categorical_kl, rce_loss

__all__ = ["exact_kl", "picks_changed", "validate_selector"]

_BATCH_SIZE = 32


@torch.no_grad()
def validate_selector(selector: PointerSelector, groups: GroupTable, device: str = "cpu") -> dict[str, float]:
    """Returns ``val/loss`` and ``val/expected_reward``: means over the queries of ``groups``, computed without dropout.

    ``val/loss`` is the RCE loss with raw rewards at temperature 1, as the predecessor reports it. It rises when a policy
    becomes certain, even rightly so, because every recorded trial keeps a weight; so the best epoch is not chosen by it.
    ``val/expected_reward`` is the mean reward of the recorded trials, weighted by their probabilities under the policy,
    renormalised within each group.
    """
    selector.eval()
    loss = reward = 0.0
    for batch in _own_batches(groups, device):
        logprobs_BG = selector.logprobs(*batch.inputs)
        result = rce_loss(logprobs_BG, batch.rewards_BG, 1.0, normalize="none", mask_BG=batch.mask_BG)
        loss += float(result.loss) * len(batch.query_ids)
        weights_BG = logprobs_BG.masked_fill(~batch.mask_BG, -torch.inf).softmax(1)
        reward += float((weights_BG * batch.rewards_BG).sum())
    loss, reward = distributed.total(distributed.join(device), (loss, reward))
    return {"val/loss": loss / len(groups), "val/expected_reward": reward / len(groups)}


@torch.no_grad()
def picks_changed(selector: PointerSelector, reference: PointerSelector, groups: GroupTable, device: str = "cpu") -> float:
    """Returns the share of queries for which two selectors pick differently by greedy search, or in another order.

    Both pick as many shots as the recorded pointers have.
    """
    n_changed = 0
    for batch in _own_batches(groups, device):
        pool, shots = (batch.query_BD, batch.candidates_BND), batch.pointers_BGK.shape[2]
        picks_BK, reference_BK = (model.greedy(*pool, shots, batch.pool_mask_BN) for model in (selector, reference))
        n_changed += int((picks_BK != reference_BK).any(1).sum())
    return distributed.total(distributed.join(device), [n_changed])[0] / len(groups)


@torch.no_grad()
def exact_kl(selector: PointerSelector, reference: PointerSelector, groups: GroupTable, device: str = "cpu") -> float:
    """Returns the exact KL(reference || selector) of the shots of recorded pointers, mean over queries.

    It is computed by ``objectives.categorical_kl``.
    """
    kl = 0.0
    for batch in _own_batches(groups, device):
        steps_BGKN, reference_BGKN = (model.step_logprobs(*batch.inputs) for model in (selector, reference))
        kl += float(categorical_kl(steps_BGKN, reference_BGKN, batch.mask_BG)) * len(batch.query_ids)
    return distributed.total(distributed.join(device), [kl])[0] / len(groups)


def _own_batches(groups: GroupTable, device: str) -> Iterator[GroupBatch]:
    """Yields this process's share of the groups in batches."""
    processes = distributed.join(device)
    rows = distributed.share(processes, np.arange(len(groups)))
    return groups.batches(rows, _BATCH_SIZE, str(processes.device))
