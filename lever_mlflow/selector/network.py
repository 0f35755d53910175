"""Defines the pointer selector, a small network that picks demonstrations from a candidate pool.

A pointer is an ordered tuple of K different positions in a pool. A query and its pool are encoded once, and all pointers are
scored from the same encoding. Without ``state_update`` the picks of earlier shots change nothing but the mask of positions that
were picked. With it, each pick moves the query's hidden state: h_q + W_s (sum of h of the picks before), a departure from the
predecessor. With ``query_update_gate``, each pick n moves the query's unit vector: z_q becomes normalise(g z_q + (1 - g) z_n),
where g = sigmoid(W_g [z_q; z_n] + b_g) has a value for each dimension. The predecessor's later checkpoints have this gate
(``lever_lm/models/v2/pointer_selector_v2.py`` of Lever-Plus, under the name V4-1).

Shapes: B queries, N candidates of a pool, G pointers of a group, P partial pointers of k picks, K shots, C samples, W beams,
D feature dimensions, H hidden dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.settings import Fusion

__all__ = ["BeamOutput", "Encoding", "PointerSelector", "pointer_logprobs"]

_LOGIT_TEMPERATURE = 0.1
_PICKED_LOGIT = -100.0  # of positions that were picked before
_FROZEN_BACKBONE = ("input_proj.", "query_proj.", "cand_proj.")


class Encoding(NamedTuple):
    """Holds encoded queries and their pools.

    Attributes:
        hidden_BH: hidden states of the queries.
        hidden_BNH: hidden states of the candidates.
        z_BNH: unit vectors of the candidates, with which logits are computed.
        padding_BN: True at padded candidates; None where there is no padding.
    """

    hidden_BH: Tensor
    hidden_BNH: Tensor
    z_BNH: Tensor
    padding_BN: Tensor | None


class BeamOutput(NamedTuple):
    """Holds the pointers of a beam search, best first, int64 [B, W, K], and their log-probs [B, W]."""

    pointers_BWK: Tensor
    logprobs_BW: Tensor


class PointerSelector(nn.Module):
    """Scores pointers for a query; it has 525,824 parameters at the default sizes.

    ``h = W_in x``; per layer ``h_q = LayerNorm(h_q + Attention(h_q; h_1..h_N))``; the logit of candidate n is the
    cosine of ``W_q h_q`` and ``W_c h_n`` divided by 0.1. W_q and W_c start as the identity plus 0.01 times standard
    normal noise, so that an untrained selector is near similarity search.

    Args:
        feature_dim: D, size of the input features.
        hidden_dim: size of the hidden state.
        n_layers: cross-attention layers.
        n_heads: attention heads per layer.
        dropout: applied to hidden states and attention while the module is in training mode.
        state_update: whether each pick moves the query's state by W_s, which starts at 0 and so at first changes nothing.
        fusion: features that the selector takes: ``mean`` of image and text, ``concat``, both in a row of twice the length, or
            ``image`` or ``text`` alone.
        query_update_gate: whether each pick moves the query's unit vector by a learned gate, as the module's docstring says.

    Raises:
        ParameterError: ``n_heads`` does not divide ``hidden_dim``, or there is no such ``fusion``.
    """

    def __init__(
        self,
        feature_dim: int = 512,
        hidden_dim: int = 256,
        n_layers: int = 1,
        n_heads: int = 1,
        dropout: float = 0.0,
        state_update: bool = False,
        fusion: Fusion = "mean",
        query_update_gate: bool = False,
    ) -> None:
        super().__init__()
        if hidden_dim % n_heads:
            raise ParameterError(f"n_heads={n_heads} does not divide hidden_dim={hidden_dim}; choose a divisor")
        if fusion not in get_args(Fusion):
            raise ParameterError(f"fusion={fusion!r}; choose one of {', '.join(get_args(Fusion))}")
        self.fusion: Fusion = fusion
        self.config = {
            "feature_dim": feature_dim,
            "hidden_dim": hidden_dim,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "dropout": dropout,
            "state_update": state_update,
            "fusion": fusion,
            "query_update_gate": query_update_gate,
        }
        self.input_proj = nn.Linear(feature_dim, hidden_dim, bias=False)
        self.cross_attn_layers = nn.ModuleList(
            nn.MultiheadAttention(hidden_dim, n_heads, dropout=dropout, batch_first=True) for _ in range(n_layers)
        )
        self.attn_norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in range(n_layers))
        self.query_proj = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.cand_proj = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        if not self.input_proj.weight.is_meta:  # where there is no memory to fill, and to draw for it takes over a second
            self._initialise(hidden_dim)
        self.state_proj = nn.Linear(hidden_dim, hidden_dim, bias=False) if state_update else None
        if self.state_proj is not None:
            nn.init.zeros_(self.state_proj.weight)
        self.query_update_gate = nn.Linear(2 * hidden_dim, hidden_dim) if query_update_gate else None

    def _initialise(self, hidden_dim: int) -> None:
        """Draws the weights that the class's docstring describes."""
        nn.init.xavier_uniform_(self.input_proj.weight)
        with torch.no_grad():
            for projection in (self.query_proj, self.cand_proj):
                projection.weight.copy_(torch.eye(hidden_dim) + 0.01 * torch.randn(hidden_dim, hidden_dim))

    def freeze_backbone(self) -> None:
        """Freezes input_proj, query_proj and cand_proj: 263,680 parameters (50.1 %) stay trainable at default sizes."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(_FROZEN_BACKBONE))

    def encode(self, query_BD: Tensor, candidates_BND: Tensor, pool_mask_BN: Tensor | None = None) -> Encoding:
        """Computes all that does not depend on picks.

        Args:
            query_BD: features of the queries.
            candidates_BND: features of the candidates.
            pool_mask_BN: False at padded candidates; None where there is no padding.

        Raises:
            ParameterError: the shapes of the features do not fit each other or the selector.
        """
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
        z_BNH = F.normalize(self.cand_proj(hidden_BNH), dim=-1)
        return Encoding(hidden_B1H.squeeze(1), hidden_BNH, z_BNH, padding_BN)

    def pick_logits(self, encoding: Encoding, before_BPk: Tensor) -> Tensor:
        """Returns logits of the next pick of partial pointers, [B, P, N].

        They are -100 at the k positions that were picked before, ``before_BPk``, and -inf at padding.
        """
        hidden_B1H = encoding.hidden_BH[:, None]
        if self.state_proj is not None:
            moved_BNH = self.state_proj(encoding.hidden_BNH)
            chosen_BNP = F.one_hot(before_BPk, moved_BNH.shape[1]).sum(2).to(moved_BNH.dtype).transpose(1, 2)
            hidden_B1H = hidden_B1H + chosen_BNP.transpose(1, 2) @ moved_BNH
        z_BPH = self._gated(F.normalize(self.query_proj(hidden_B1H), dim=-1), encoding.z_BNH, before_BPk)
        logits_BPN = z_BPH @ encoding.z_BNH.transpose(1, 2) / _LOGIT_TEMPERATURE
        if encoding.padding_BN is not None:
            logits_BPN = logits_BPN.masked_fill(encoding.padding_BN[:, None], -torch.inf)
        logits_BPN = logits_BPN.expand(-1, before_BPk.shape[1], -1)
        return logits_BPN.scatter(2, before_BPk, _PICKED_LOGIT)

    def _gated(self, z_BPH: Tensor, z_BNH: Tensor, before_BPk: Tensor) -> Tensor:
        """Moves the unit vectors of the queries by the gate for one pick after the other; without a gate they stay."""
        if self.query_update_gate is None:
            return z_BPH
        z_BPH = z_BPH.expand(-1, before_BPk.shape[1], -1)
        for picks_BP in before_BPk.unbind(2):
            chosen_BPH = F.one_hot(picks_BP, z_BNH.shape[1]).to(z_BNH.dtype) @ z_BNH
            gate_BPH = torch.sigmoid(self.query_update_gate(torch.cat([z_BPH, chosen_BPH], dim=-1)))
            z_BPH = F.normalize(gate_BPH * z_BPH + (1 - gate_BPH) * chosen_BPH, dim=-1)
        return z_BPH

    def step_logprobs(
        self, query_BD: Tensor, candidates_BND: Tensor, pointers_BGK: Tensor, pool_mask_BN: Tensor | None = None
    ) -> Tensor:
        """Returns the log-distribution over the pool at each shot, given the picks before it, [B, G, K, N].

        Raises:
            ParameterError: shapes do not fit, or a pointer names a position outside the pool.
        """
        B, N, _ = candidates_BND.shape
        if pointers_BGK.ndim != 3 or len(pointers_BGK) != B:
            raise ParameterError(f"pointers of shape {tuple(pointers_BGK.shape)}, expected [{B}, G, K]")
        if pointers_BGK.numel() and (int(pointers_BGK.min()) < 0 or int(pointers_BGK.max()) >= N):
            raise ParameterError(f"a pointer names a position outside the pool of {N} candidates")
        encoding = self.encode(query_BD, candidates_BND, pool_mask_BN)
        steps = [self.pick_logits(encoding, pointers_BGK[:, :, :k]).log_softmax(-1) for k in range(pointers_BGK.shape[2])]
        return torch.stack(steps, dim=2)

    forward = step_logprobs

    def logprobs(
        self, query_BD: Tensor, candidates_BND: Tensor, pointers_BGK: Tensor, pool_mask_BN: Tensor | None = None
    ) -> Tensor:
        """Returns the log-prob of each pointer, the sum over its shots, [B, G]; errors as ``step_logprobs``."""
        steps_BGKN = self.step_logprobs(query_BD, candidates_BND, pointers_BGK, pool_mask_BN)
        return pointer_logprobs(steps_BGKN, pointers_BGK)

    @torch.no_grad()
    def greedy(self, query_BD: Tensor, candidates_BND: Tensor, shots: int, pool_mask_BN: Tensor | None = None) -> Tensor:
        """Picks the most probable candidate at each shot, the earliest among equals; returns pointers, int64 [B, K].

        Raises:
            ParameterError: ``shots`` is below 1 or above the pool size.
        """
        return self.scored_greedy(query_BD, candidates_BND, shots, pool_mask_BN)[0]

    @torch.no_grad()
    def scored_greedy(
        self, query_BD: Tensor, candidates_BND: Tensor, shots: int, pool_mask_BN: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the pointers of ``greedy``, int64 [B, K], and their log-probs [B]; errors as ``greedy``."""
        return self.scored_greedy_of(self.encode(query_BD, candidates_BND, pool_mask_BN), shots)

    @torch.no_grad()
    def scored_greedy_of(self, encoding: Encoding, shots: int) -> tuple[Tensor, Tensor]:
        """Returns what ``scored_greedy`` does for queries and pools that are encoded already."""
        _check_shots(shots, encoding)
        pointers_B1K = _no_picks(encoding)
        logprobs_B = encoding.hidden_BH.new_zeros(len(encoding.hidden_BH))
        for _ in range(shots):
            logits_B1N = self.pick_logits(encoding, pointers_B1K)
            allowed_B1N = logits_B1N.scatter(2, pointers_B1K, -torch.inf)
            first_B11 = allowed_B1N.argsort(dim=-1, descending=True, stable=True)[:, :, :1]
            logprobs_B = logprobs_B + logits_B1N.log_softmax(-1).gather(2, first_B11)[:, 0, 0]
            pointers_B1K = torch.cat([pointers_B1K, first_B11], dim=2)
        return pointers_B1K[:, 0], logprobs_B

    @torch.no_grad()
    def sample(
        self,
        query_BD: Tensor,
        candidates_BND: Tensor,
        shots: int,
        count: int,
        temperature: float,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Draws C = ``count`` pointers per query shot by shot at a temperature, int64 [B, C, K].

        Each query has its own generator, so that its draws do not depend on the other queries. Errors are those of ``greedy``.
        """
        encoding = self.encode(query_BD, candidates_BND)
        _check_shots(shots, encoding)
        pointers_BCK = _no_picks(encoding).expand(-1, count, -1)
        # multinomial without replacement draws in order from the renormalised rest: the policy's law where picks move nothing
        draws = shots if self.state_proj is None and self.query_update_gate is None else 1
        for _ in range(0, shots, draws):
            logits_BCN = self.pick_logits(encoding, pointers_BCK).scatter(2, pointers_BCK, -torch.inf)
            probs_BCN = (logits_BCN / temperature).softmax(-1)
            drawn = [torch.multinomial(probs_CN, draws, generator=g) for probs_CN, g in zip(probs_BCN, generators, strict=True)]
            pointers_BCK = torch.cat([pointers_BCK, torch.stack(drawn)], dim=2)
        return pointers_BCK

    @torch.no_grad()
    def beam(self, query_BD: Tensor, candidates_BND: Tensor, shots: int, width: int) -> BeamOutput:
        """Searches the most probable pointers with W = ``width`` beams, fewer where the pool has not so many pointers.

        Errors are those of ``greedy``.
        """
        encoding = self.encode(query_BD, candidates_BND)
        _check_shots(shots, encoding)
        pointers_BWK = _no_picks(encoding)
        scores_BW = encoding.hidden_BH.new_zeros(len(encoding.hidden_BH), 1)
        for _ in range(shots):
            steps_BWN = self.pick_logits(encoding, pointers_BWK).log_softmax(-1).scatter(2, pointers_BWK, -torch.inf)
            N = steps_BWN.shape[2]
            total_BX = (scores_BW[:, :, None] + steps_BWN).flatten(1)
            keep = min(width, int(torch.isfinite(total_BX[0]).sum()))
            scores_BW, flat_BW = total_BX.topk(keep, dim=1)
            parent_BWK = (flat_BW // N)[:, :, None].expand(-1, -1, pointers_BWK.shape[2])
            pointers_BWK = torch.cat([pointers_BWK.gather(1, parent_BWK), (flat_BW % N)[:, :, None]], dim=2)
        return BeamOutput(pointers_BWK, scores_BW)


def pointer_logprobs(step_logprobs_BGKN: Tensor, pointers_BGK: Tensor) -> Tensor:
    """Sums the log-probs of the picks over the shots, [B, G]; the log-distributions are those of ``step_logprobs``."""
    return step_logprobs_BGKN.gather(3, pointers_BGK[..., None]).squeeze(3).sum(2)


def _no_picks(encoding: Encoding) -> Tensor:
    """Returns a partial pointer without picks for each query, int64 [B, 1, 0]."""
    return torch.empty(len(encoding.hidden_BH), 1, 0, dtype=torch.long, device=encoding.hidden_BH.device)


def _check_shots(shots: int, encoding: Encoding) -> None:
    """Raises ParameterError when the smallest pool has not as many candidates as there are shots."""
    padding_BN = encoding.padding_BN
    size = encoding.z_BNH.shape[1] if padding_BN is None else int((~padding_BN).sum(1).min())
    if not 1 <= shots <= size:
        raise ParameterError(f"shots={shots} with a pool of {size} candidates; choose 1 to {size} shots or a larger pool")
