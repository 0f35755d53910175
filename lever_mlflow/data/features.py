"""CLIP features: of samples, cached by content, and of single images and texts."""

from __future__ import annotations

import hashlib
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
from lever_mlflow.settings import Fusion

__all__ = ["Encoder", "FeatureTable", "fused_features", "sample_features", "shared_encoder"]

_BATCH = 64


@dataclass(frozen=True)
class FeatureTable:
    """Features of samples, float32, rows in the samples' order; ``digest`` names encoder and contents.

    ``image_SD`` and ``text_SD`` are L2-normalised; ``fused_SD`` is their mean, ``concat_SD`` one behind the other, both
    L2-normalised again. Memory-mapped.
    """

    image_SD: np.ndarray
    text_SD: np.ndarray
    fused_SD: np.ndarray
    concat_SD: np.ndarray
    digest: str

    def of(self, fusion: Fusion) -> np.ndarray:
        """The features that a selector of this fusion is fed."""
        return self.concat_SD if fusion == "concat" else self.fused_SD


def sample_features(
    samples: Sequence[Sample], encoder: Path, encoder_digest: str, cache_dir: Path, device: str = "cpu"
) -> FeatureTable:
    """CLIP features of image and question of each sample; computed once per encoder and content, then read from disk.

    Raises:
        DataError: an image does not decode, or the encoder folder is no CLIP model.
    """
    content = hashlib.sha256(encoder_digest.encode())
    for sample in samples:
        content.update(f"{image_digest(sample.image_path)}\0{sample.question}\0".encode())
    digest = content.hexdigest()[:32]
    files = {kind: cache_dir / "features" / f"{digest}-{kind}.npy" for kind in ("image", "text", "fused", "concat")}
    if not (files["image"].is_file() and files["text"].is_file()):
        image_SD, text_SD = _encode(samples, encoder, device)
        _write(files["image"], image_SD)
        _write(files["text"], text_SD)
    if not (files["fused"].is_file() and files["concat"].is_file()):
        table = fused_features(np.load(files["image"]), np.load(files["text"]), digest)
        _write(files["fused"], table.fused_SD)
        _write(files["concat"], table.concat_SD)
    return FeatureTable(**{f"{kind}_SD": np.load(path, mmap_mode="r") for kind, path in files.items()}, digest=digest)


def fused_features(image_SD: np.ndarray, text_SD: np.ndarray, digest: str) -> FeatureTable:
    """The table of these image and text features, in memory."""
    fused_SD, concat_SD = _normalise(image_SD + text_SD), _normalise(np.concatenate([image_SD, text_SD], axis=1))
    return FeatureTable(image_SD, text_SD, fused_SD, concat_SD, digest)


class Encoder:
    """A CLIP model, for any number of threads. Its features are those of ``sample_features``: L2-normalised float32 [B, D].

    Raises:
        DataError: the folder is no CLIP model.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import CLIPModel

        model, self._processor = load_pretrained(CLIPModel, folder)
        self._model = model.to(device).eval()
        self._device = device
        self._max_length = model.config.text_config.max_position_embeddings
        self._lock = threading.Lock()  # padding and truncation are settings of the one tokenizer, made anew by each call

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Features of one batch of RGB images."""
        with self._lock:
            pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"]
            return self._features(self._model.get_image_features, pixel_values=pixels)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Features of one batch of texts, each cut at the most tokens that the model takes."""
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
    """The encoder with this digest on the CPU, loaded once per process.

    Raises:
        DataError: the folder holds another encoder, or no CLIP model.
    """
    with _sharing:
        if digest not in _shared:
            with tempfile.TemporaryDirectory() as memo_dir:  # read anew: nothing that was remembered vouches for the files
                found = folder_digest(folder, Path(memo_dir))
            if found != digest:
                raise DataError(f"{folder}: an encoder of digest {found}, expected {digest}; give the folder of that one")
            _shared[digest] = Encoder(folder)
        return _shared[digest]


_shared: dict[str, Encoder] = {}
_sharing = threading.Lock()


def _encode(samples: Sequence[Sample], folder: Path, device: str) -> tuple[np.ndarray, np.ndarray]:
    encoder = Encoder(folder, device)
    paths, questions = [sample.image_path for sample in samples], [sample.question for sample in samples]
    return (
        _encode_unique(paths, lambda batch: encoder.images([read_image(path) for path in batch]), "images"),
        _encode_unique(questions, encoder.texts, "questions"),
    )


def _encode_unique(items: Sequence[Any], encode: Callable[[Sequence[Any]], np.ndarray], what: str) -> np.ndarray:
    """Features of each item, encoding every distinct one once, [items, D]."""
    from tqdm import tqdm

    unique = list(dict.fromkeys(items))
    row = {item: i for i, item in enumerate(unique)}
    starts = tqdm(range(0, len(unique), _BATCH), desc=f"CLIP {what}", unit="batch", disable=None)
    features = np.concatenate([encode(unique[start : start + _BATCH]) for start in starts])
    return features[[row[item] for item in items]]


def _normalise(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=-1, keepdims=True).clip(min=1e-12)


def _write(path: Path, array: np.ndarray) -> None:
    with whole_file(path, "wb") as file:
        np.save(file, array.astype(np.float32))
