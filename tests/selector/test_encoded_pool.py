"""A pool that is encoded once: what is looked up is what the selector computes for each query."""

import numpy as np
import pytest
import torch

from lever_mlflow.selector.encoded_pool import EncodedPool
from lever_mlflow.selector.network import PointerSelector

KINDS = [
    {},
    {"n_heads": 4},
    {"n_layers": 3, "n_heads": 2},
    {"n_layers": 0},
    {"state_update": True},
    {"query_update_gate": True},
]


def unit(*shape):
    array = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def selector_of(**kind):
    torch.manual_seed(0)
    selector = PointerSelector(feature_dim=24, hidden_dim=16, **kind).eval()
    for parameter in selector.parameters():  # biases and the state's projection too, which start at 0
        torch.nn.init.normal_(parameter, std=0.3)
    return selector


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_picks_and_logprobs_are_those_of_the_selector(kind):
    selector, items_SD, queries_BD = selector_of(**kind), unit(50, 24), torch.tensor(unit(7, 24))
    pools_BN = torch.tensor(np.random.default_rng(1).permuted(np.tile(np.arange(50), (7, 1)), axis=1)[:, :20])
    expected = selector.scored_greedy(queries_BD, torch.tensor(items_SD)[pools_BN], 4)
    pointers_BK, logprobs_B = selector.scored_greedy_of(EncodedPool(selector, items_SD).encode(queries_BD, pools_BN), 4)
    assert pointers_BK.tolist() == expected[0].tolist()
    assert len({tuple(pointer) for pointer in pointers_BK.tolist()}) > 3
    torch.testing.assert_close(logprobs_B, expected[1], rtol=1e-5, atol=1e-5)


def test_attention_with_two_heads_derived_by_hand():
    """H is 2 and each head has one dimension, so that a head attends by products of numbers."""
    selector = PointerSelector(feature_dim=2, hidden_dim=2, n_heads=2).eval()
    layer = selector.cross_attn_layers[0]
    with torch.no_grad():
        selector.input_proj.weight.copy_(torch.eye(2))
        layer.in_proj_weight.copy_(torch.tensor([[1.0, 0], [0, 1], [2, 0], [0, 1], [1, 0], [0, 3]]))
        layer.in_proj_bias.copy_(torch.tensor([0.0, 0, 0, 0, 0.5, 0]))
        layer.out_proj.weight.copy_(torch.eye(2))
    selector.attn_norms[0] = torch.nn.Identity()
    pool = EncodedPool(selector, np.array([[1, 0], [0, 1]], dtype=np.float32))
    hidden_BH = pool.encode(torch.tensor([[0.6, 0.8]]), torch.tensor([[0, 1]])).hidden_BH
    first = 1 / (1 + np.exp(-1.2))  # head 1: query 0.6, keys 2 and 0, values 1.5 and 0.5
    second = 1 / (1 + np.exp(0.8))  # head 2: query 0.8, keys 0 and 1, values 0 and 3
    expected = [0.6 + 1.5 * first + 0.5 * (1 - first), 0.8 + 3 * (1 - second)]
    assert hidden_BH[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_equal_items_stay_equal_wherever_they_stand():
    """The earliest of equal candidates is picked, which needs equal numbers for all of them."""
    selector = PointerSelector(feature_dim=64, hidden_dim=32).eval()
    pool = EncodedPool(selector, np.repeat(unit(1, 64), 5_003, axis=0))
    encoding = pool.encode(torch.tensor(unit(1, 64)), torch.arange(5_003)[None])
    assert len(encoding.z_BNH[0].unique(dim=0)) == 1
