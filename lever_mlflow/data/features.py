"""Computes CLIP features of images and texts; those of samples are cached by content."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError
from lever_mlflow.files.atomic import whole_file
from lever_mlflow.files.images import image_digest, read_image
from lever_mlflow.files.model_folders import folder_digest, load_pretrained
from lever_mlflow.progress import Progress
from lever_mlflow.settings import Fusion

__all__ = ["Encoder", "FeatureTable", "forget_shared_encoders", "fused_features", "sample_features", "shared_encoder"]

_BATCH = 64  # images or texts that are encoded at a time

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureTable:
    """Holds features of S samples, float32, L2-normalised, with rows in the samples' order. Arrays may be memory-mapped.

    Attributes:
        image_SD, text_SD: features of images and of texts.
        fused_SD: their mean, normalised again.
        concat_SD: image and text features in one row of twice the length, normalised again.
        digest: names the encoder and the content of the samples.
    """

    image_SD: np.ndarray
    text_SD: np.ndarray
    fused_SD: np.ndarray
    concat_SD: np.ndarray
    digest: str

    def of(self, fusion: Fusion) -> np.ndarray:
        """Returns the features that a selector with this fusion takes."""
        return self.concat_SD if fusion == "concat" else self.fused_SD


def sample_features(
    samples: Sequence[Sample], encoder: Path, encoder_digest: str, cache_dir: Path, device: str = "cpu"
) -> FeatureTable:
    """Returns CLIP features of image and question of each sample.

    They are computed once per encoder and content, and then read from the folder ``features`` in ``cache_dir``.

    Args:
        samples: the samples.
        encoder: folder of the CLIP model.
        encoder_digest: names the content of that folder.
        cache_dir: the cache folder.
        device: device that the model runs on.

    Raises:
        DataError: an image does not decode, or the encoder folder is no CLIP model.
    """
    content = hashlib.sha256(encoder_digest.encode())
    for sample in samples:
        content.update(f"{image_digest(sample.image_path)}\0{sample.question}\0".encode())
    digest = content.hexdigest()[:32]
    files = {kind: cache_dir / "features" / f"{digest}-{kind}.npy" for kind in ("image", "text", "fused", "concat")}
    if not all(_is_cached(files[kind], len(samples)) for kind in ("image", "text")):
        image_SD, text_SD = _encode(samples, encoder, device)
        _write(files["image"], image_SD)
        _write(files["text"], text_SD)
    if not all(_is_cached(files[kind], len(samples)) for kind in ("fused", "concat")):
        table = fused_features(np.load(files["image"]), np.load(files["text"]), digest)
        _write(files["fused"], table.fused_SD)
        _write(files["concat"], table.concat_SD)
    return FeatureTable(**{f"{kind}_SD": np.load(path, mmap_mode="r") for kind, path in files.items()}, digest=digest)


def _is_cached(path: Path, rows: int) -> bool:
    """Says whether a file holds features of so many samples; the log says what is wrong with one that does not."""
    if not path.is_file():
        return False
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        log.warning("%s: %s; the features are computed again", path, error)
        return False
    if array.dtype == np.float32 and array.ndim == 2 and len(array) == rows:
        return True
    log.warning("%s: holds %s of shape %s; the features are computed again", path, array.dtype, array.shape)
    return False


def fused_features(image_SD: np.ndarray, text_SD: np.ndarray, digest: str) -> FeatureTable:
    """Returns the feature table of L2-normalised image and text features, in memory."""
    fused_SD, concat_SD = _normalise(image_SD + text_SD), _normalise(np.concatenate([image_SD, text_SD], axis=1))
    return FeatureTable(image_SD, text_SD, fused_SD, concat_SD, digest)


class Encoder:
    """Encodes images and texts with a CLIP model, for any number of threads.

    Its features are those of ``sample_features``: L2-normalised float32 [B, D].

    Raises:
        DataError: the folder is no CLIP model.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import CLIPModel

        model, self._processor = load_pretrained(CLIPModel, folder)
        self._model = model.to(device).eval()
        self._device = device
        self._max_length = model.config.text_config.max_position_embeddings
        self._lock = threading.Lock()  # each call sets padding and truncation of the one tokenizer

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Returns the features of one batch of RGB images, [B, D]."""
        with self._lock:
            pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
            return self._features(self._model.get_image_features, pixel_values=pixels)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the features of one batch of texts, [B, D]; each text is cut to the model's limit of tokens."""
        with self._lock:
            tokens = self._processor(
                text=list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self._max_length
            )
            inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
            return self._features(self._model.get_text_features, **inputs)

    def _features(self, encode: Callable[..., Any], **inputs: Any) -> np.ndarray:
        import torch

        with torch.inference_mode():
            output = encode(**{name: tensor.to(self._device) for name, tensor in inputs.items()})
        features = output if isinstance(output, torch.Tensor) else output.pooler_output
        return _normalise(features.float().cpu().numpy())


def shared_encoder(folder: Path, digest: str) -> Encoder:
    """Returns the encoder with this digest on the CPU, loaded once per process.

    Args:
        folder: folder of the CLIP model; not looked at when an encoder with this digest is loaded already.
        digest: the ``folder_digest`` that the folder must have.

    Raises:
        DataError: the folder holds another encoder, or no CLIP model.
    """
    with _shared_lock:
        if digest not in _shared_encoders:
            with tempfile.TemporaryDirectory() as memo_dir:  # an empty one, so that the files themselves are read
                actual = folder_digest(folder, Path(memo_dir))
            if actual != digest:
                raise DataError(
                    f"{folder}: an encoder of digest {actual}, expected {digest}; give the folder of the expected encoder"
                )
            _shared_encoders[digest] = Encoder(folder)
        return _shared_encoders[digest]


def forget_shared_encoders() -> None:
    """Drops the encoders that ``shared_encoder`` has loaded, so that they are loaded again."""
    with _shared_lock:
        _shared_encoders.clear()


_shared_encoders: dict[str, Encoder] = {}
_shared_lock = threading.Lock()


def _encode(samples: Sequence[Sample], folder: Path, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns features of the samples' images and of their questions, both [S, D]."""
    encoder = Encoder(folder, device)
    paths, questions = [sample.image_path for sample in samples], [sample.question for sample in samples]
    return (
        _encode_unique(paths, lambda batch: encoder.images([read_image(path) for path in batch]), "images"),
        _encode_unique(questions, encoder.texts, "questions"),
    )


def _encode_unique(items: Sequence[Any], encode: Callable[[Sequence[Any]], np.ndarray], kind: str) -> np.ndarray:
    """Returns the features of each item, [items, D]; equal items are encoded once. ``kind`` names them."""
    unique = list(dict.fromkeys(items))
    row = {item: i for i, item in enumerate(unique)}
    encoded = []
    with Progress("encoding", len(unique), kind) as progress:
        for start in range(0, len(unique), _BATCH):
            encoded.append(encode(unique[start : start + _BATCH]))
            progress.update(len(encoded[-1]))
    return np.concatenate(encoded)[[row[item] for item in items]]


def _normalise(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=-1, keepdims=True).clip(min=1e-12)


def _write(path: Path, array: np.ndarray) -> None:
    """Writes an array as float32."""
    with whole_file(path, "wb") as file:
        np.save(file, array.astype(np.float32))
