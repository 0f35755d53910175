"""Losses of whole groups and the gradient of every parameter, against numpy and central differences in float64."""

import numpy as np
import pytest
import torch
from helpers.reference_selector import numpy_logits

from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.training.objectives import group_advantages, grpo_loss, rce_loss

POINTERS = [[[0, 3], [2, 1], [4, 0]], [[1, 4], [3, 2], [0, 1]]]  # the last one of the second group is padding
REWARDS = [[2.0, 0.0, 1.3], [0.0, 1.6, 9.0]]
MASK = [[True, True, True], [True, True, False]]
BETA, EPSILON = 0.3, 0.1


def make_selector(seed):
    torch.manual_seed(seed)
    selector = PointerSelector(feature_dim=6, hidden_dim=4)
    with torch.no_grad():
        for parameter in selector.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return selector.eval()


def make_inputs():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 6, generator=generator), torch.randn(2, 5, 6, generator=generator)


@pytest.fixture
def inputs():
    return make_inputs()


def numpy_logprob(logits_N, pointer):
    masked, total = logits_N.copy(), 0.0
    for pick in pointer:
        total += masked[pick] - np.log(np.exp(masked).sum())
        masked[pick] = -100.0
    return total


class Weights:
    """A selector's weights as float64, with the interface that ``numpy_logits`` reads."""

    def __init__(self, selector):
        self.weights = {name: tensor.detach().double() for name, tensor in selector.state_dict().items()}

    def state_dict(self):
        return self.weights


def numpy_rce(weights, inputs, old, temperature):
    total = 0.0
    for b in range(2):
        n = sum(MASK[b])
        logits = numpy_logits(weights, inputs[0][b].double().numpy(), inputs[1][b].double().numpy())
        rewards = np.array(REWARDS[b][:n])
        z = (rewards - rewards.mean()) / rewards.std(ddof=1)
        w = np.exp(z / temperature) / np.exp(z / temperature).sum()
        total -= w @ [numpy_logprob(logits, pointer) for pointer in POINTERS[b][:n]]
    return total / 2


def numpy_grpo(weights, inputs, old, _):
    total = 0.0
    for b in range(2):
        n = sum(MASK[b])
        sides = [numpy_logits(w, inputs[0][b].double().numpy(), inputs[1][b].double().numpy()) for w in (weights, old)]
        new, start = (np.array([numpy_logprob(logits, pointer) for pointer in POINTERS[b][:n]]) for logits in sides)
        rewards = np.array(REWARDS[b][:n])
        advantages = (rewards - rewards.mean()) / max(rewards.std(ddof=1), 0.1)
        ratio = np.exp(new - start)
        surrogate = np.minimum(ratio * advantages, np.clip(ratio, 1 - EPSILON, 1 + EPSILON) * advantages)
        total += -surrogate.mean() + BETA * (ratio - 1 - (new - start)).mean()
    return total / 2


def torch_loss(kind, selector, inputs, old, temperature):
    pointers_BGK, rewards_BG, mask_BG = torch.tensor(POINTERS), torch.tensor(REWARDS), torch.tensor(MASK)
    logprobs_BG = selector.logprobs(*inputs, pointers_BGK)
    if kind is numpy_rce:
        return rce_loss(logprobs_BG, rewards_BG, temperature, mask_BG=mask_BG).loss
    old_BG = old.logprobs(*inputs, pointers_BGK).detach()
    return grpo_loss(logprobs_BG, old_BG, group_advantages(rewards_BG, mask_BG), BETA, EPSILON, mask_BG=mask_BG).loss


@pytest.mark.parametrize(("kind", "temperature"), [(numpy_rce, 2.0), (numpy_rce, 0.5), (numpy_grpo, 0.0)])
def test_loss_and_gradient_of_every_parameter(inputs, kind, temperature):
    selector, old = make_selector(0), make_selector(0)
    with torch.no_grad():
        for parameter in selector.parameters():  # a little away from the start, so that some ratios are clipped
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    loss = torch_loss(kind, selector, inputs, old, temperature)
    loss.backward()
    weights, old_weights = Weights(selector), Weights(old)
    assert loss.item() == pytest.approx(kind(weights, inputs, old_weights, temperature), abs=1e-5)
    for name, parameter in selector.named_parameters():
        flat = weights.weights[name].view(-1)
        expected = []
        for i in range(len(flat)):
            value, sides = flat[i].item(), []
            for moved in (value + 1e-6, value - 1e-6):
                flat[i] = moved
                sides.append(kind(weights, inputs, old_weights, temperature))
            flat[i] = value
            expected.append((sides[0] - sides[1]) / 2e-6)
        np.testing.assert_allclose(parameter.grad.view(-1), expected, atol=2e-5, rtol=1e-4, err_msg=name)
