"""The demonstration retriever: a selector with all that it needs to pick demonstrations for any question about any image.

In a folder: ``checkpoint`` (of the selector), ``pool`` and ``retriever.json``, the settings. The encoder is not in it: it is
named there with its digest, and read from its folder or the hub, or from the folder that ``LEVER_MLFLOW_ENCODER`` names.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from lever_mlflow import mini
from lever_mlflow.data.candidate_pools import candidate_pools, nearest
from lever_mlflow.data.features import Encoder, FeatureTable, fused_features, shared_encoder
from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.files.images import decode_image, fit_image, png_data_url
from lever_mlflow.files.model_folders import model_folder
from lever_mlflow.files.strict_json import read_object
from lever_mlflow.selector.checkpoint import load_selector
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.serving.pool_files import DemonstrationPool, load_pool, save_pool
from lever_mlflow.serving.requests import Query
from lever_mlflow.settings import PoolSampler, ServingSettings
from lever_mlflow.vlm.prompt import PromptProfile, build_messages, with_image_urls

__all__ = ["CHECKPOINT", "ENCODER", "Retrieval", "Retriever", "RetrieverSettings", "load_retriever", "save_retriever"]

CHECKPOINT, POOL, SETTINGS_FILE = "checkpoint", "pool", "retriever.json"
ENCODER = "LEVER_MLFLOW_ENCODER"
_IMAGES = 16  # decoded at a time: a large one takes 48 MB
_ROWS = 32  # of the selector at a time: their pools fit into the caches of a processor
_KEPT_URLS = 32  # of demonstrations, up to some MB each
_SAME_FEATURE = 1e-5  # features of one image differ by less, whatever was encoded beside it


@dataclass(frozen=True)
class RetrieverSettings:
    """What a retriever was evaluated with; beside the digest of the checkpoint, all that decides what it answers.

    Attributes:
        dataset_digest: of the data set whose training items are the pool.
        encoder: ``mini``, a folder or a hub name.
        profile: the texts and image sizes of prompts.
        pool_sampler, pool_size, seed: how candidates are drawn.
    """

    checkpoint_digest: str
    dataset_digest: str
    encoder: str
    encoder_digest: str
    profile: PromptProfile
    pool_sampler: PoolSampler
    pool_size: int
    seed: int

    @property
    def digest(self) -> str:
        """Names what the retriever holds, 32 hex characters; the encoder by its content, wherever it is."""
        content = asdict(replace(self, encoder=""))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


class Retrieval(NamedTuple):
    """Demonstrations picked for a query, in prompt order, and the log-prob of the pick as a whole."""

    demonstrations: tuple[Sample, ...]
    logprob: float


@dataclass(frozen=True)
class Retriever:
    """Picks demonstrations and writes prompts; several threads may ask it."""

    settings: RetrieverSettings
    selector: PointerSelector
    pool: DemonstrationPool
    encoder: Encoder

    @property
    def feature_dim(self) -> int:
        """D of the encoder's image and text features."""
        return int(self.pool.features.image_SD.shape[1])

    def retrieve(self, queries: Sequence[Query], shots: int) -> list[Retrieval]:
        """The greedy picks for each query from a candidate pool that depends on the query's content alone.

        Raises:
            ParameterError: more shots than candidates, or fewer than one.
            DataError: an image is damaged.
        """
        if not 1 <= shots <= self.settings.pool_size:
            most = self.settings.pool_size
            raise ParameterError(f"shots={shots} with a pool of {most} candidates; choose 1 to {most}")
        features = self.features(queries)
        picks_QK, logprobs_Q = self.pick(features, self.candidates(queries, features), shots)
        return [
            Retrieval(tuple(self.pool.samples[i] for i in picks), float(logprob))
            for picks, logprob in zip(picks_QK.tolist(), logprobs_Q, strict=True)
        ]

    def features(self, queries: Sequence[Query]) -> FeatureTable:
        """Features of the queries, in their order, encoded where they are not given."""
        image_QD, text_QD = np.empty((2, len(queries), self.feature_dim), dtype=np.float32)
        encoded = []
        for row, query in enumerate(queries):
            if query.features is None:
                encoded.append(row)
            else:
                image_QD[row], text_QD[row] = query.features
        for start in range(0, len(encoded), _IMAGES):
            rows = encoded[start : start + _IMAGES]
            image_QD[rows] = self.encoder.images([queries[row].decoded() for row in rows])
            text_QD[rows] = self.encoder.texts([queries[row].question for row in rows])
        return fused_features(image_QD, text_QD, "")

    def candidates(self, queries: Sequence[Query], features: FeatureTable) -> np.ndarray:
        """The candidate pool of each query, indices into the pool's samples [Q, N], drawn as in evaluation.

        Where evaluation draws by the question's id, the query's content decides; items about the query's own image are known
        by their features.
        """
        settings, pool = self.settings, self.pool
        found_Q = nearest(features.image_SD, pool.features.image_SD, 1, [np.empty(0, dtype=np.int64)] * len(queries))[:, 0]
        same_Q = np.abs(pool.features.image_SD[found_Q] - features.image_SD).max(axis=1) <= _SAME_FEATURE
        images = [pool.samples[i].image_id if same else -1 for i, same in zip(found_Q.tolist(), same_Q, strict=True)]
        samples = [
            Sample(row, query.content_id, image_id, query.question, Path(), ())
            for row, (query, image_id) in enumerate(zip(queries, images, strict=True))
        ]
        return candidate_pools(
            samples, pool.samples, settings.pool_sampler, settings.pool_size, settings.seed, features, pool.features
        )

    def pick(self, features: FeatureTable, pools_QN: np.ndarray, shots: int) -> tuple[np.ndarray, np.ndarray]:
        """The selector's greedy picks from candidate pools as evaluation makes them [Q, K], and their log-probs [Q]."""
        queries_QD, train_SD = features.of(self.selector.fusion), self.pool.features.of(self.selector.fusion)
        picks, logprobs = [], []
        for start in range(0, len(pools_QN), _ROWS):
            query_BD, pool_BN = queries_QD[start : start + _ROWS], pools_QN[start : start + _ROWS]
            inputs = torch.from_numpy(query_BD), torch.from_numpy(train_SD[pool_BN])
            pointers_BK, logprobs_B = self.selector.scored_greedy(*inputs, shots)
            picks.append(np.take_along_axis(pool_BN, pointers_BK.numpy(), axis=1))
            logprobs.append(logprobs_B.numpy())
        return np.concatenate(picks), np.concatenate(logprobs)

    def messages(self, query: Query, demonstrations: Sequence[Sample]) -> list[dict[str, Any]]:
        """The prompt in the form of the OpenAI protocol, images as data URLs, fitted as the profile says.

        Raises:
            ParameterError: the query is given by features, or the pool's images are not at hand.
            DataError: the query's image cannot be shown to the VLM.
        """
        if query.features is not None:
            raise ParameterError(f"{query.name}: as_messages needs question and image; features cannot be shown to a VLM")
        profile = self.settings.profile
        asked = Sample(-1, -1, -1, query.question, Path(), ())  # a path that no demonstration has
        own = self._data_url(query.decoded(), f"{query.name}: image")
        return with_image_urls(
            build_messages(demonstrations, asked, profile),
            lambda path: own if path == str(asked.image_path) else self._demonstration_url(path),
        )

    @cached_property
    def _demonstration_url(self) -> Callable[[str], str]:
        """The data URL of an image of the pool by the file's name."""
        return lru_cache(maxsize=_KEPT_URLS)(lambda name: self._data_url(decode_image(self.pool.image(name)), name))

    def _data_url(self, image: Image.Image, name: str) -> str:
        profile = self.settings.profile
        return png_data_url(fit_image(image, name, profile.min_pixels, profile.max_pixels))


def save_retriever(
    folder: Path, settings: RetrieverSettings, checkpoint: Path, samples: Sequence[Sample], features: FeatureTable
) -> None:
    """Fills an empty folder with a retriever: a checkpoint folder, the data set's training items and their features."""
    shutil.copytree(checkpoint, folder / CHECKPOINT)
    (folder / POOL).mkdir()
    save_pool(folder / POOL, samples, features, ServingSettings.max_pool_image_bytes)
    (folder / SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")


def load_retriever(folder: Path) -> Retriever:
    """The retriever in a folder; its encoder is loaded once per process.

    Raises:
        DataError: a file is missing or damaged, or the encoder is not the recorded one. CheckpointError: so is the checkpoint.
    """
    path = folder / SETTINGS_FILE
    content = read_object(path, missing="get the model again", damaged="get the model again")
    try:
        settings = RetrieverSettings(**{**content, "profile": PromptProfile(**content["profile"])})
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not the settings of a retriever ({error!r}); get the model again") from None
    try:
        encoder = shared_encoder(_encoder_folder(settings.encoder), settings.encoder_digest)
    except DataError as error:
        raise DataError(f"encoder {settings.encoder}: {error}; {ENCODER} may name its folder") from None
    return Retriever(settings, load_selector(folder / CHECKPOINT), load_pool(folder / POOL), encoder)


def _encoder_folder(name: str) -> Path:
    given = os.environ.get(ENCODER)
    if given:
        return model_folder(given)
    return mini.CLIP_PATH if name == mini.NAME else model_folder(name)
