"""Defines the demonstration retriever: a selector and all that it needs to pick demonstrations for a question about an image.

A retriever's folder holds ``checkpoint`` (of the selector), ``pool`` and the settings ``retriever.json``. The settings name the
encoder with its digest. The encoder itself is read from its folder or the hub, or from the folder that the environment variable
``LEVER_MLFLOW_ENCODER`` names.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from lever_mlflow import mini
from lever_mlflow.data.candidate_pools import candidate_pools, nearest
from lever_mlflow.data.encoders import Encoder, shared_encoder
from lever_mlflow.data.features import FeatureTable, fused_features
from lever_mlflow.data.samples import Sample
from lever_mlflow.evaluation.policies import in_prompt_order
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.files.images import batches_of_images, decode_image, fit_image, png_data_url
from lever_mlflow.files.model_folders import model_folder
from lever_mlflow.files.strict_json import read_object
from lever_mlflow.selector.checkpoint import load_selector
from lever_mlflow.selector.encoded_pool import EncodedPool
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.serving.pool_files import DemonstrationPool, load_pool, save_pool
from lever_mlflow.serving.requests import FeatureDims, Query
from lever_mlflow.serving.retriever_settings import RetrieverSettings
from lever_mlflow.settings import ServingSettings
from lever_mlflow.vlm.profiles import PromptProfile
from lever_mlflow.vlm.prompt import build_messages, with_image_urls

__all__ = ["CHECKPOINT", "ENCODER", "Retrieval", "Retriever", "RetrieverSettings", "load_retriever", "save_retriever"]

CHECKPOINT = "checkpoint"
ENCODER = "LEVER_MLFLOW_ENCODER"  # environment variable
_POOL, _SETTINGS_FILE = "pool", "retriever.json"
_IMAGES = 16  # images that a request encodes at a time
_PIXELS = 16_000_000  # of these images together, unless a single one has more; decoded they take 48 MB
_ROWS = 32  # queries that the selector handles at a time, whose pools fit into the caches of a processor
_CACHED_URLS = 32  # data URLs of demonstrations, which have up to some MB each
_SAME_FEATURE = 1e-5  # features of one image differ by less, whatever else was in the batch


class Retrieval(NamedTuple):
    """Holds the demonstrations picked for a query, in prompt order, and the log-prob of the whole pick."""

    demonstrations: tuple[Sample, ...]
    logprob: float


@dataclass(frozen=True)
class Retriever:
    """Picks demonstrations and writes prompts. Several threads may use one retriever."""

    settings: RetrieverSettings
    selector: PointerSelector
    pool: DemonstrationPool
    encoder: Encoder

    @property
    def feature_dims(self) -> FeatureDims:
        """Returns the lengths of the encoder's image and text features."""
        return FeatureDims(*(int(array.shape[1]) for array in (self.pool.features.image_SD, self.pool.features.text_SD)))

    def retrieve(self, queries: Sequence[Query], shots: int) -> list[Retrieval]:
        """Picks demonstrations greedily for each query, from a candidate pool that depends on the query's content alone.

        Raises:
            ParameterError: there are more shots than candidates, or fewer than one.
            DataError: an image is damaged.
        """
        if not 1 <= shots <= self.settings.pool_size:
            most = self.settings.pool_size
            raise ParameterError(f"shots={shots} with a pool of {most} candidates; choose 1 to {most}")
        features = self.features(queries)
        picks_QK, logprobs_Q = self.pick(features, self.candidates(queries, features), shots)
        ordered_QK = in_prompt_order(picks_QK, self.settings.order)
        return [
            Retrieval(tuple(self.pool.samples[i] for i in picks), float(logprob))
            for picks, logprob in zip(ordered_QK.tolist(), logprobs_Q, strict=True)
        ]

    def features(self, queries: Sequence[Query]) -> FeatureTable:
        """Returns the features of the queries, in order; question and image are encoded where a query has no features."""
        image_QD, text_QD = (np.empty((len(queries), length), dtype=np.float32) for length in self.feature_dims)
        without_features = []
        for row, query in enumerate(queries):
            if query.features is None:
                without_features.append(row)
            else:
                image_QD[row], text_QD[row] = query.features
        for batch in batches_of_images([queries[row].pixels for row in without_features], _IMAGES, _PIXELS):
            rows = without_features[batch]
            if "image" in self.encoder.sides:
                image_QD[rows] = self.encoder.images([queries[row].decoded() for row in rows])
            if "text" in self.encoder.sides:
                text_QD[rows] = self.encoder.texts([queries[row].question for row in rows])
        return fused_features(image_QD, text_QD, "")

    def candidates(self, queries: Sequence[Query], features: FeatureTable) -> np.ndarray:
        """Draws the candidate pool of each query as evaluation does; returns indices into the pool's samples, int64 [Q, N].

        Where evaluation draws by the question's id, an id of the query's content is used. Items about the query's own picture
        are recognised by the image file, or by their features.
        """
        settings, pool = self.settings, self.pool
        alike_Q = self._alike(features)
        samples = [
            Sample(row, query.content_id, pool.pictures.get(query.image_digest, picture), query.question, Path(), ())
            for row, (query, picture) in enumerate(zip(queries, alike_Q, strict=True))
        ]
        sampler, size, seed = settings.pool_sampler, settings.pool_size, settings.seed
        return candidate_pools(samples, pool.samples, sampler, size, seed, features, pool.features, pool.by_image)

    def _alike(self, features: FeatureTable) -> list[int]:
        """Returns for each query the picture of the pool whose feature is the same, or -1 where none is or images have none."""
        train_SD, pool = self.pool.features.image_SD, self.pool
        if not train_SD.shape[1]:
            return [-1] * len(features.image_SD)
        none = [np.empty(0, dtype=np.int64)] * len(features.image_SD)
        nearest_Q = nearest(features.image_SD, train_SD, 1, none, longest=pool.features.longest("image"))[:, 0]
        same_Q = np.abs(train_SD[nearest_Q] - features.image_SD).max(axis=1) <= _SAME_FEATURE
        return [pool.samples[i].picture if same else -1 for i, same in zip(nearest_Q.tolist(), same_Q, strict=True)]

    def pick(self, features: FeatureTable, pools_QN: np.ndarray, shots: int) -> tuple[np.ndarray, np.ndarray]:
        """Picks greedily from candidate pools as evaluation does.

        Args:
            features: of the queries.
            pools_QN: indices into the pool's samples.
            shots: K.

        Returns:
            Indices into the pool's samples [Q, K], and the log-probs of the picks [Q].
        """
        queries_QD = features.of(self.selector.fusion)
        picks, logprobs = [], []
        for start in range(0, len(pools_QN), _ROWS):
            query_BD, pool_BN = queries_QD[start : start + _ROWS], pools_QN[start : start + _ROWS]
            encoding = self._encoded_pool.encode(torch.from_numpy(query_BD), torch.from_numpy(pool_BN))
            pointers_BK, logprobs_B = self.selector.scored_greedy_of(encoding, shots)
            picks.append(np.take_along_axis(pool_BN, pointers_BK.numpy(), axis=1))
            logprobs.append(logprobs_B.numpy())
        return np.concatenate(picks), np.concatenate(logprobs)

    @cached_property
    def _encoded_pool(self) -> EncodedPool:
        """Returns what the selector computes of the pool's items, for all requests."""
        return EncodedPool(self.selector, self.pool.features.of(self.selector.fusion))

    def messages(self, query: Query, demonstrations: Sequence[Sample]) -> list[dict[str, Any]]:
        """Returns the prompt as chat messages of OpenAI's interface, images resized by the profile and as data URLs.

        Raises:
            ParameterError: the query is given by features, or the pool's images are not there.
            DataError: the query's image cannot be shown to the VLM.
        """
        if query.features is not None:
            raise ParameterError(f"{query.name}: as_messages needs question and image; features cannot be shown to a VLM")
        profile = self.settings.profile
        sample = Sample(-1, -1, -1, query.question, Path(), ())  # with a path that no demonstration has
        query_url = self._data_url(query.decoded(), f"{query.name}: image")
        return with_image_urls(
            build_messages(demonstrations, sample, profile),
            lambda path: query_url if path == str(sample.image_path) else self._demonstration_url(path),
        )

    @cached_property
    def _demonstration_url(self) -> Callable[[str], str]:
        """Makes the data URL of an image of the pool from the file's name; the last ones are cached."""
        return lru_cache(maxsize=_CACHED_URLS)(lambda name: self._data_url(decode_image(self.pool.image(name)), name))

    def _data_url(self, image: Image.Image, name: str) -> str:
        """Returns the data URL of an image, resized by the profile; ``name`` names it in an error message."""
        profile = self.settings.profile
        return png_data_url(fit_image(image, name, profile.min_pixels, profile.max_pixels))


def save_retriever(
    folder: Path, settings: RetrieverSettings, checkpoint: Path, samples: Sequence[Sample], features: FeatureTable
) -> None:
    """Writes a retriever into an empty folder.

    Args:
        folder: the empty folder.
        settings: the settings.
        checkpoint: folder of the selector's checkpoint, which is copied.
        samples: training items of the data set.
        features: their features.
    """
    shutil.copytree(checkpoint, folder / CHECKPOINT)
    (folder / _POOL).mkdir()
    save_pool(folder / _POOL, samples, features, ServingSettings.max_pool_image_bytes)
    (folder / _SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n", encoding="utf-8")


def load_retriever(folder: Path) -> Retriever:
    """Loads the retriever in a folder. Its encoder is loaded once per process.

    Raises:
        DataError: a file is missing or damaged, or the encoder is not the recorded one.
        CheckpointError: the checkpoint is missing or damaged.
    """
    path = folder / _SETTINGS_FILE
    content = read_object(path, missing="get the model again", damaged="get the model again")
    try:
        settings = RetrieverSettings(**{**content, "profile": PromptProfile(**content["profile"])})
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the settings of a retriever ({error!r}); get the model again") from None
    try:
        encoder = shared_encoder(_encoder_folder(settings.encoder), settings.encoder_digest)
    except DataError as error:
        raise DataError(f"encoder {settings.encoder}: {error}; {ENCODER} may name its folder") from None
    return Retriever(settings, load_selector(folder / CHECKPOINT), load_pool(folder / _POOL), encoder)


def _encoder_folder(name: str) -> Path:
    """Returns the folder of the encoder with this recorded name, or that which the environment variable names instead."""
    replacement = os.environ.get(ENCODER)
    if replacement:
        return model_folder(replacement)
    return mini.CLIP_PATH if name == mini.NAME else model_folder(name)
