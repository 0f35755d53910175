"""The pointer selector: a small network that points at demonstrations in a candidate pool.

Shapes: B queries, N candidates of a pool, G pointers of a group, K shots, D feature dimensions.

The features of a query and its pool do not depend on the picks, so they are encoded once and all pointers are scored
from the same logits; only the mask of positions picked before changes from shot to shot.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lever_mlflow.exceptions import ParameterError

__all__ = ["BeamOutput", "PointerSelector"]

LOGIT_TEMPERATURE = 0.1
PICKED_LOGIT = -100.0
_FROZEN_BACKBONE = ("input_proj.", "query_proj.", "cand_proj.")


class BeamOutput(NamedTuple):
    """Pointers of a beam search, int64 [B, W, K], best first, and their log-probs [B, W]."""

    pointers_BWK: Tensor
    logprobs_BW: Tensor


class PointerSelector(nn.Module):
    """Scores ordered tuples of pool positions for a query; 525,824 parameters at the default sizes.

    ``h = W_in x``; per layer ``h_q = LayerNorm(h_q + Attention(h_q; h_1..h_N))``; the logit of candidate n is the
    cosine of ``W_q h_q`` and ``W_c h_n`` divided by 0.1. W_q and W_c start as the identity plus 0.01 times standard
    normal noise, so that an untrained selector is near similarity search.

    Args:
        feature_dim: D, size of the input features.
        hidden_dim: size of the hidden state.
        n_layers: cross-attention layers.
        n_heads: attention heads per layer.
        dropout: applied to hidden states and attention while the module is in training mode.
    """

    def __init__(
        self, feature_dim: int = 512, hidden_dim: int = 256, n_layers: int = 1, n_heads: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if hidden_dim % n_heads:
            raise ParameterError(f"n_heads={n_heads} does not divide hidden_dim={hidden_dim}; choose a divisor")
        self.config = {
            "feature_dim": feature_dim,
            "hidden_dim": hidden_dim,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "dropout": dropout,
        }
        self.input_proj = nn.Linear(feature_dim, hidden_dim, bias=False)
        self.cross_attn_layers = nn.ModuleList(
            nn.MultiheadAttention(hidden_dim, n_heads, dropout=dropout, batch_first=True) for _ in range(n_layers)
        )
        self.attn_norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(n_layers))
        self.query_proj = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.cand_proj = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.input_proj.weight)
        with torch.no_grad():
            for projection in (self.query_proj, self.cand_proj):
                projection.weight.copy_(torch.eye(hidden_dim) + 0.01 * torch.randn(hidden_dim, hidden_dim))

    def freeze_backbone(self) -> None:
        """Freezes input_proj, query_proj and cand_proj: 263,680 parameters (50.1 %) stay trainable at default sizes."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(_FROZEN_BACKBONE))

    def logits(self, query_BD: Tensor, candidates_BND: Tensor, pool_mask_BN: Tensor | None = None) -> Tensor:
        """Logits of the candidates before any pick, [B, N]; ``pool_mask_BN`` is False at padding, whose logit is -inf."""
        B, _, D = candidates_BND.shape
        if query_BD.shape != (B, D) or self.config["feature_dim"] != D:
            raise ParameterError(
                f"features of shape {tuple(query_BD.shape)} and {tuple(candidates_BND.shape)} do not fit a selector "
                f"of feature_dim {self.config['feature_dim']}: expected [B, D] and [B, N, D]"
            )
        hidden_B1H = self.dropout(self.input_proj(query_BD)).unsqueeze(1)
        hidden_BNH = self.dropout(self.input_proj(candidates_BND))
        padding_BN = None if pool_mask_BN is None else ~pool_mask_BN
        for attention, norm in zip(self.cross_attn_layers, self.attn_norms, strict=True):
            attended_B1H, _ = attention(hidden_B1H, hidden_BNH, hidden_BNH, key_padding_mask=padding_BN, need_weights=False)
            hidden_B1H = norm(hidden_B1H + attended_B1H)
        z_B1H = F.normalize(self.query_proj(hidden_B1H), dim=-1)
        z_BNH = F.normalize(self.cand_proj(hidden_BNH), dim=-1)
        logits_BN = (z_BNH @ z_B1H.transpose(1, 2)).squeeze(2) / LOGIT_TEMPERATURE
        return logits_BN if padding_BN is None else logits_BN.masked_fill(padding_BN, -torch.inf)

    def step_logprobs(
        self, query_BD: Tensor, candidates_BND: Tensor, pointers_BGK: Tensor, pool_mask_BN: Tensor | None = None
    ) -> Tensor:
        """Log-distribution over the pool at each shot, given the picks before it, [B, G, K, N].

        Raises:
            ParameterError: shapes do not fit, or a pointer names a position outside the pool.
        """
        B, N, _ = candidates_BND.shape
        if pointers_BGK.ndim != 3 or len(pointers_BGK) != B:
            raise ParameterError(f"pointers of shape {tuple(pointers_BGK.shape)}, expected [{B}, G, K]")
        if pointers_BGK.numel() and (int(pointers_BGK.min()) < 0 or int(pointers_BGK.max()) >= N):
            raise ParameterError(f"a pointer names a position outside the pool of {N} candidates")
        logits_BN = self.logits(query_BD, candidates_BND, pool_mask_BN)
        picks_BGKN = F.one_hot(pointers_BGK, N)
        picked_before_BGKN = (picks_BGKN.cumsum(2) - picks_BGKN).bool()
        logits_BGKN = logits_BN[:, None, None, :].expand_as(picks_BGKN)
        return logits_BGKN.masked_fill(picked_before_BGKN, PICKED_LOGIT).log_softmax(-1)

    def logprobs(
        self, query_BD: Tensor, candidates_BND: Tensor, pointers_BGK: Tensor, pool_mask_BN: Tensor | None = None
    ) -> Tensor:
        """Log-prob of each pointer, the sum over its shots, [B, G]; errors as ``step_logprobs``."""
        steps_BGKN = self.step_logprobs(query_BD, candidates_BND, pointers_BGK, pool_mask_BN)
        return pointer_logprobs(steps_BGKN, pointers_BGK)

    @torch.no_grad()
    def greedy(self, query_BD: Tensor, candidates_BND: Tensor, shots: int, pool_mask_BN: Tensor | None = None) -> Tensor:
        """The most probable candidate at each shot, pointers [B, K]; earlier positions first among equals.

        Raises:
            ParameterError: ``shots`` is below 1 or above the pool size.
        """
        logits_BN = self.logits(query_BD, candidates_BND, pool_mask_BN)
        _check_shots(shots, logits_BN, pool_mask_BN)
        return logits_BN.argsort(dim=-1, descending=True, stable=True)[:, :shots]

    @torch.no_grad()
    def sample(
        self,
        query_BD: Tensor,
        candidates_BND: Tensor,
        shots: int,
        count: int,
        temperature: float,
        generator: torch.Generator,
    ) -> Tensor:
        """``count`` pointers per query drawn shot by shot at ``temperature``, [B, count, K]; errors as ``greedy``."""
        logits_BN = self.logits(query_BD, candidates_BND)
        _check_shots(shots, logits_BN, None)
        probs_BN = (logits_BN / temperature).softmax(-1)
        # multinomial without replacement draws in order from the renormalised rest: the policy's own shot-by-shot law
        repeated = probs_BN.repeat_interleave(count, dim=0)
        return torch.multinomial(repeated, shots, generator=generator).unflatten(0, (len(probs_BN), count))

    @torch.no_grad()
    def beam(self, query_BD: Tensor, candidates_BND: Tensor, shots: int, width: int) -> BeamOutput:
        """Beam search over ordered pointers; errors as ``greedy``."""
        logits_BN = self.logits(query_BD, candidates_BND)
        _check_shots(shots, logits_BN, None)
        B, N = logits_BN.shape
        pointers_BWK = torch.empty(B, 1, 0, dtype=torch.long, device=logits_BN.device)
        scores_BW = logits_BN.new_zeros(B, 1)
        for _ in range(shots):
            masked_BWN = logits_BN[:, None, :].expand(B, pointers_BWK.shape[1], N).scatter(2, pointers_BWK, PICKED_LOGIT)
            steps_BWN = masked_BWN.log_softmax(-1).scatter(2, pointers_BWK, -torch.inf)
            total_BX = (scores_BW[:, :, None] + steps_BWN).flatten(1)
            keep = min(width, int(torch.isfinite(total_BX[0]).sum()))
            scores_BW, flat_BW = total_BX.topk(keep, dim=1)
            parent_BWK = (flat_BW // N)[:, :, None].expand(-1, -1, pointers_BWK.shape[2])
            pointers_BWK = torch.cat([pointers_BWK.gather(1, parent_BWK), (flat_BW % N)[:, :, None]], dim=2)
        return BeamOutput(pointers_BWK, scores_BW)


def pointer_logprobs(step_logprobs_BGKN: Tensor, pointers_BGK: Tensor) -> Tensor:
    """Sum over shots of the log-prob of the pick, [B, G], from the log-distributions of ``step_logprobs``."""
    return step_logprobs_BGKN.gather(3, pointers_BGK[..., None]).squeeze(3).sum(2)


def _check_shots(shots: int, logits_BN: Tensor, pool_mask_BN: Tensor | None) -> None:
    size = logits_BN.shape[1] if pool_mask_BN is None else int(pool_mask_BN.sum(1).min())
    if not 1 <= shots <= size:
        raise ParameterError(f"shots={shots} with a pool of {size} candidates; choose 1 to {size} shots or a larger pool")
