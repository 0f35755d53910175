"""Describes a retriever by all that decides its answers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from lever_mlflow.settings import Order, PoolSampler
from lever_mlflow.vlm.profiles import PromptProfile

__all__ = ["RetrieverSettings"]


@dataclass(frozen=True)
class RetrieverSettings:
    """Holds all that decides what a retriever answers, as it was when the retriever was evaluated.

    Attributes:
        checkpoint_digest: digest of the selector.
        dataset_digest: digest of the data set whose training items are the pool.
        encoder: ``mini``, a folder or a hub name.
        encoder_digest: digest of the encoder's folder.
        profile: texts and image sizes of prompts.
        pool_sampler, pool_size, seed: the way in which candidates are drawn.
        order: whether the first pick stands first in the prompt, or last.
    """

    checkpoint_digest: str
    dataset_digest: str
    encoder: str
    encoder_digest: str
    profile: PromptProfile
    pool_sampler: PoolSampler
    pool_size: int
    seed: int
    order: Order = "similar-first"

    @property
    def digest(self) -> str:
        """Returns a digest of the settings, 32 hex characters, in which the encoder counts by its content, not its place.

        The order counts where it is not the default, so that retrievers from before there was a choice keep their digest.
        """
        content = asdict(replace(self, encoder=""))
        if self.order == RetrieverSettings.order:
            del content["order"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
