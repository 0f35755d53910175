"""What a run works with, resolved from the names a user gives: data set, VLM and encoder, each with a digest.

``mini`` names the embedded default of each; anything else is a folder or, for models, a hub name. All three go through the
same readers; only the path differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from lever_mlflow import mini
from lever_mlflow.answer_cache import AnswerCache, cached_answers
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.features import FeatureTable, sample_features
from lever_mlflow.images import image_digest
from lever_mlflow.mini.dataset import ensure_dataset
from lever_mlflow.model_files import check_model, folder_digest, model_folder
from lever_mlflow.okvqa import load_split
from lever_mlflow.pools import random_pool
from lever_mlflow.types import Prompt, Sample
from lever_mlflow.vlm import LocalVLM
from lever_mlflow.vlm_server import AUTO, ServerVLM, is_server

__all__ = ["MINI", "Resources", "default_cache_dir"]

MINI = "mini"
_BATCH_SIZE = {"mini": 64, "qwen2.5-vl": 8}


def default_cache_dir() -> Path:
    """``$LEVER_MLFLOW_CACHE``, or ``~/.cache/lever-mlflow``: embedded data set, features and answers, safe to delete."""
    return Path(os.environ.get("LEVER_MLFLOW_CACHE") or Path.home() / ".cache" / "lever-mlflow")


@dataclass(frozen=True)
class Resources:
    """Data set, VLM and encoder by name; everything is resolved, read or loaded when first used.

    Attributes:
        dataset: ``mini`` or the folder of the official OK-VQA files.
        vlm: ``mini``, a folder or a hub name of a Qwen2.5-VL, or the URL of an OpenAI-compatible server.
        vlm_model: the model's name on that server; ``auto`` is the only one it has.
        encoder: ``mini``, a folder or a hub name of a CLIP model.
        device: ``auto``, ``cpu`` or ``cuda``.
        cache_dir: where downloads of the embedded data set, features and answers are kept.
    """

    dataset: str = MINI
    vlm: str = MINI
    vlm_model: str = AUTO
    encoder: str = MINI
    device: str = "auto"
    cache_dir: Path = Path()

    def __post_init__(self) -> None:
        """Refuses a model's name where there is no server (ParameterError)."""
        if self.vlm_model != AUTO and not is_server(self.vlm):
            raise ParameterError(f"vlm_model={self.vlm_model}: vlm={self.vlm} is not the URL of a server; leave vlm_model=auto")

    @cached_property
    def torch_device(self) -> str:
        """``cpu`` or ``cuda``.

        Raises:
            ParameterError: ``cuda`` was asked for and there is none.
        """
        import torch

        available = torch.cuda.is_available()
        if self.device == "cuda" and not available:
            raise ParameterError("device=cuda, but PyTorch sees no CUDA device; use device=auto or device=cpu")
        return "cuda" if available and self.device != "cpu" else "cpu"

    @cached_property
    def dataset_root(self) -> Path:
        """Folder of the official files; the embedded data set is written on first use."""
        return ensure_dataset(self.cache_dir) if self.dataset == MINI else Path(self.dataset).expanduser()

    @cached_property
    def dataset_digest(self) -> str:
        """SHA-256 over all items of both splits, their images' contents included, 16 hex characters."""
        digest = hashlib.sha256()
        for sample in (*self.train, *self.val):
            item = (sample.question_id, sample.image_id, sample.question, sample.answers, image_digest(sample.image_path))
            digest.update(json.dumps(item).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def train(self) -> list[Sample]:
        """Training items: the candidate pool and the RL queries."""
        return self._load("train")

    @cached_property
    def val(self) -> list[Sample]:
        """Evaluation items."""
        return self._load("val")

    def _load(self, split: Literal["train", "val"]) -> list[Sample]:
        try:
            return load_split(self.dataset_root, split)
        except DataError as error:
            remedy = f"; or delete {self.dataset_root}: it is written again" if self.dataset == MINI else ""
            raise DataError(f"{error}{remedy}") from None

    @cached_property
    def encoder_folder(self) -> Path:
        """The CLIP model's local folder."""
        return mini.CLIP_PATH if self.encoder == MINI else model_folder(self.encoder)

    @cached_property
    def encoder_digest(self) -> str:
        """Names the encoder's files, 16 hex characters."""
        return folder_digest(self.encoder_folder, self.cache_dir / "digests")

    @cached_property
    def served(self) -> ServerVLM | None:
        """The VLM where it is on a server."""
        return ServerVLM(self.vlm, self.vlm_model) if is_server(self.vlm) else None

    @cached_property
    def language_model(self) -> LocalVLM | ServerVLM:
        """The VLM; its weights are loaded when it first has to generate."""
        if self.served is not None:
            return self.served
        profile = "mini" if self.vlm == MINI else "qwen2.5-vl"
        folder = mini.VLM_PATH if self.vlm == MINI else model_folder(self.vlm)
        digest = folder_digest(folder, self.cache_dir / "digests")
        return LocalVLM(folder, digest, profile, self.torch_device, _BATCH_SIZE[profile])

    def features(self, split: Literal["train", "val"]) -> FeatureTable:
        """CLIP features of one split, computed once per content."""
        samples = self.train if split == "train" else self.val
        return sample_features(samples, self.encoder_folder, self.encoder_digest, self.cache_dir, self.torch_device)

    def pools(self, queries: Sequence[Sample], size: int, seed: int) -> np.ndarray:
        """Candidate pool of each query, train indices [Q, N]."""
        return np.stack([random_pool(self.train, query, size, seed) for query in queries])

    def answer(self, prompts: Sequence[Prompt], description: str) -> list[str]:
        """Raw generations for prompts, in their order; equal prompts and prompts answered before cost nothing."""
        with AnswerCache(self.cache_dir / "answers.sqlite") as cache:
            model = self.language_model
            return cached_answers(prompts, model.key, model.generate, cache, description).texts

    def check(self) -> None:
        """Reads both splits and resolves both models, asking a server for its own: a wrong name ends the run before any work.

        Raises:
            DataError, ParameterError, ServerError: one of the names leads to nothing usable.
        """
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.cache_dir}: cannot be the cache folder ({error}); set LEVER_MLFLOW_CACHE") from None
        check_model(self.encoder_folder, "clip")
        if isinstance(model := self.language_model, ServerVLM):
            _ = model.card
        else:
            check_model(model.folder, "qwen2_5_vl")
        _ = self.dataset_digest

    @property
    def label(self) -> str:
        """Data set and VLM in a form fit for the names of registered models, such as ``mini-mini``."""
        names = (self.dataset, self.vlm_name)
        return "-".join(re.sub(r"[^A-Za-z0-9]+", "-", Path(name).name).strip("-").lower() for name in names)

    @property
    def vlm_name(self) -> str:
        """What the VLM is called: on a server, its name there."""
        if self.served is None:
            return self.vlm
        return self.served.model if self.vlm_model == AUTO else self.vlm_model
