"""Encodes the items of a fixed pool once, so that a selector picks among them for any number of queries.

All that a selector computes of a candidate depends on the candidate alone: its unit vector, and its keys and values in the
attention of every layer. ``PointerSelector.encode`` computes them anew for each query, as training needs their gradients. Here
they are looked up, and only the query is encoded. The results are those of ``PointerSelector.encode``: the same operations on
the same numbers. Whether they agree to the last bit is up to the library that multiplies matrices, which may add the terms of a
product in another order for another number of rows.

Shapes: B queries, N candidates of a query, S items of the pool, D feature dimensions, H hidden dimensions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lever_mlflow.selector.network import Encoding, PointerSelector

__all__ = ["EncodedPool"]

_BLOCK = 4_096  # items that are encoded at a time


class EncodedPool:
    """Holds what a selector in evaluation mode computes of the items of a pool.

    It takes (1 + 2 x layers) x H numbers of float32 for each item, 3 kB at the default sizes; a selector with ``state_update``
    takes H more.

    Args:
        selector: the selector; later changes of its weights change nothing here.
        items_SD: features of the items, float32; may be memory-mapped.
    """

    @torch.inference_mode()
    def __init__(self, selector: PointerSelector, items_SD: np.ndarray) -> None:
        self._selector = selector
        blocks = [torch.tensor(items_SD[start : start + _BLOCK]) for start in range(0, len(items_SD), _BLOCK)]
        hidden = [selector.input_proj(items_CD) for items_CD in blocks]
        self._z_SH = torch.cat([F.normalize(selector.cand_proj(hidden_CH), dim=-1) for hidden_CH in hidden])
        self._keys_values = [
            torch.cat([F.linear(hidden_CH, *_of_keys_and_values(layer)) for hidden_CH in hidden]) for layer in _layers(selector)
        ]
        self._hidden_SH = torch.cat(hidden) if selector.state_proj is not None else self._z_SH[:, :0]

    @torch.inference_mode()
    def encode(self, query_BD: Tensor, pools_BN: Tensor) -> Encoding:
        """Returns what ``PointerSelector.encode`` returns for these queries and candidates.

        Hidden states of the candidates, which only a selector with ``state_update`` uses, have no dimensions for any other one.

        Args:
            query_BD: features of the queries.
            pools_BN: candidates of the queries, as indices of items, int64.
        """
        selector = self._selector
        hidden_BH = selector.input_proj(query_BD)
        for layer, norm, keys_values in zip(_layers(selector), selector.attn_norms, self._keys_values, strict=True):
            hidden_BH = norm(hidden_BH + _attended(layer, hidden_BH, keys_values[pools_BN]))
        return Encoding(hidden_BH, self._hidden_SH[pools_BN], self._z_SH[pools_BN], None)


def _layers(selector: PointerSelector) -> list[nn.MultiheadAttention]:
    return [layer for layer in selector.cross_attn_layers if isinstance(layer, nn.MultiheadAttention)]


def _of_keys_and_values(layer: nn.MultiheadAttention) -> tuple[Tensor, Tensor]:
    """Returns weight and bias of the projection to keys and values, which stand below those of the projection to queries."""
    assert layer.in_proj_weight is not None
    return layer.in_proj_weight[layer.embed_dim :], layer.in_proj_bias[layer.embed_dim :]


def _attended(layer: nn.MultiheadAttention, hidden_BH: Tensor, keys_values_BNX: Tensor) -> Tensor:
    """Computes the attention of one query to its candidates as ``torch.nn.MultiheadAttention`` defines it, [B, H].

    X is 2 H: the keys of all heads, then the values.
    """
    assert layer.in_proj_weight is not None
    B, N, _ = keys_values_BNX.shape
    query_BH = F.linear(hidden_BH, layer.in_proj_weight[: layer.embed_dim], layer.in_proj_bias[: layer.embed_dim])
    keys, values = keys_values_BNX.view(B, N, 2, layer.num_heads, layer.head_dim).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(query_BH.view(B, layer.num_heads, 1, layer.head_dim), keys, values)
    return F.linear(attended.reshape(B, -1), layer.out_proj.weight, layer.out_proj.bias)
