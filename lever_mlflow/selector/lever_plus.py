"""Knows the selectors of Lever-Plus, the predecessor, by the names of their weights.

The names are those of ``lever_lm/models/v2/pointer_selector_v*.py`` in https://github.com/yunsoft2019/Lever-Plus. Its V2 and V3
are this package's selector, and V4-1 is the selector with ``query_update_gate``. The later ones have parts that this package
does not have.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["foreign_selector"]


class _Later(NamedTuple):
    """Describes a later selector of Lever-Plus: its version there, what it does, and names that only it has."""

    version: str
    does: str
    names: tuple[str, ...]


# V4-4 also has the part of V4-3, and nearly all have those of V4-2, so these two come later than what extends them.
_LATER = (
    _Later("V4-4", "lets the candidates attend to each other", ("cand_encoder",)),
    _Later("V4-3", "penalises candidates that are like earlier picks", ("div_lambda",)),
    _Later("V4-5", "scores candidates by another attention", ("attn_Wq", "attn_Wc", "attn_v", "bilinear")),
    _Later("V4-6", "favours topics that no pick covers", ("topic_prototypes", "query_topic_head", "cover_lambda")),
    _Later("V4-7", "favours sets of different candidates", ("dpp_proj", "dpp_lambda")),
    _Later("V4-8", "picks all demonstrations at once", ("slot_emb", "slot_self_attn_layers", "slot_norms", "slot_cand_attn")),
    _Later("V4-9", "scores the best candidates a second time", ("refine_attn", "refine_norm", "refine_score", "refine_mlp")),
    _Later("V4-10", "chooses the number of shots itself", ("stop_token",)),
    _Later("V4-2", "updates the query by a recurrent unit after each pick", ("decoder_gru", "step_emb")),
)


def foreign_selector(names: Iterable[str]) -> str | None:
    """Says in words which later selector of Lever-Plus has weights of these names; None where no name is known.

    Args:
        names: of the weights, without the prefix of a wrapper.
    """
    ordered = sorted(names)
    for later in _LATER:
        its_names = [name for name in ordered if name.split(".")[0] in later.names]
        if its_names:
            return f"a selector {later.version} of Lever-Plus, which {later.does} ({', '.join(its_names[:3])})"
    return None
