"""Measures what a selector is worth on validation groups, by the figures that both trainers report."""

from __future__ import annotations

import numpy as np
import torch

from lever_mlflow import distributed
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.training.batches import GroupTable
from lever_mlflow.training.objectives import categorical_kl, rce_loss

__all__ = ["exact_kl", "picks_changed", "validate_selector"]

_BATCH = 32


@torch.no_grad()
def validate_selector(selector: PointerSelector, groups: GroupTable, device: str = "cpu") -> dict[str, float]:
    """Measures a selector without dropout, as means over ``groups``; each process of a training takes a part of them.

    ``val_loss``: RCE loss with raw rewards at temperature 1, the predecessor's figure. It rises when a policy grows sure of
    itself, even rightly so, since every recorded trial keeps a weight; so epochs are not chosen by it.
    ``expected_reward``: mean reward of the recorded trials weighted by the policy's probabilities of them, renormalised
    within the group.
    """
    selector.eval()
    processes = distributed.join(device)
    loss = reward = 0.0
    for batch in groups.batches(distributed.share(processes, np.arange(len(groups))), _BATCH, str(processes.device)):
        logprobs_BG = selector.logprobs(batch.query_BD, batch.candidates_BND, batch.pointers_BGK, batch.pool_mask_BN)
        result = rce_loss(logprobs_BG, batch.rewards_BG, 1.0, normalize="none", mask_BG=batch.mask_BG)
        loss += float(result.loss) * len(batch.query_ids)
        weights_BG = logprobs_BG.masked_fill(~batch.mask_BG, -torch.inf).softmax(1)
        reward += float((weights_BG * batch.rewards_BG).sum())
    loss, reward = distributed.total(processes, (loss, reward))
    return {"val_loss": loss / len(groups), "expected_reward": reward / len(groups)}


@torch.no_grad()
def picks_changed(selector: PointerSelector, reference: PointerSelector, groups: GroupTable, device: str = "cpu") -> float:
    """Returns the share of queries whose greedy picks, in order, differ between two selectors.

    There are as many picks as the recorded pointers have shots.
    """
    processes = distributed.join(device)
    changed = 0
    for batch in groups.batches(distributed.share(processes, np.arange(len(groups))), _BATCH, str(processes.device)):
        pool, shots = (batch.query_BD, batch.candidates_BND), batch.pointers_BGK.shape[2]
        picks_BK, reference_BK = (model.greedy(*pool, shots, batch.pool_mask_BN) for model in (selector, reference))
        changed += int((picks_BK != reference_BK).any(1).sum())
    return distributed.total(processes, [changed])[0] / len(groups)


@torch.no_grad()
def exact_kl(selector: PointerSelector, reference: PointerSelector, groups: GroupTable, device: str = "cpu") -> float:
    """Returns the exact KL(reference || selector) of the recorded pointers' shots, as the mean over queries.

    Computed by ``objectives.categorical_kl``.
    """
    processes = distributed.join(device)
    kl = 0.0
    for batch in groups.batches(distributed.share(processes, np.arange(len(groups))), _BATCH, str(processes.device)):
        inputs = (batch.query_BD, batch.candidates_BND, batch.pointers_BGK, batch.pool_mask_BN)
        steps_BGKN, reference_BGKN = (model.step_logprobs(*inputs) for model in (selector, reference))
        kl += float(categorical_kl(steps_BGKN, reference_BGKN, batch.mask_BG)) * len(batch.query_ids)
    return distributed.total(processes, [kl])[0] / len(groups)
