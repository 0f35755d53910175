"""CLIP features of samples, cached by content."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lever_mlflow.images import image_digest, read_image
from lever_mlflow.model_files import load_pretrained
from lever_mlflow.types import Fusion, Sample

__all__ = ["FeatureTable", "sample_features"]

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
        image_SD, text_SD = np.load(files["image"]), np.load(files["text"])
        _write(files["fused"], _normalise(image_SD + text_SD))
        _write(files["concat"], _normalise(np.concatenate([image_SD, text_SD], axis=1)))
    return FeatureTable(**{f"{kind}_SD": np.load(path, mmap_mode="r") for kind, path in files.items()}, digest=digest)


def _encode(samples: Sequence[Sample], encoder: Path, device: str) -> tuple[np.ndarray, np.ndarray]:
    from transformers import CLIPModel

    model, processor = load_pretrained(CLIPModel, encoder)
    model = model.to(device).eval()
    max_length = model.config.text_config.max_position_embeddings

    def encode_images(paths: Sequence[Path]) -> Any:
        pixels = processor(images=[read_image(path) for path in paths], return_tensors="pt")["pixel_values"]
        return model.get_image_features(pixel_values=pixels.to(device))

    def encode_texts(texts: Sequence[str]) -> Any:
        tokens = processor(text=list(texts), return_tensors="pt", padding=True, truncation=True, max_length=max_length).to(
            device
        )
        return model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])

    return (
        _encode_unique([sample.image_path for sample in samples], encode_images, "images"),
        _encode_unique([sample.question for sample in samples], encode_texts, "questions"),
    )


def _encode_unique(items: Sequence[Any], encode: Callable[[Sequence[Any]], Any], what: str) -> np.ndarray:
    """Features of each item, encoding every distinct one once; L2-normalised float32 [items, D]."""
    import torch
    from tqdm import tqdm

    unique = list(dict.fromkeys(items))
    row = {item: i for i, item in enumerate(unique)}
    parts = []
    for start in tqdm(range(0, len(unique), _BATCH), desc=f"CLIP {what}", unit="batch", disable=None):
        with torch.inference_mode():
            output = encode(unique[start : start + _BATCH])
        features = output if isinstance(output, torch.Tensor) else output.pooler_output
        parts.append(features.float().cpu().numpy())
    return _normalise(np.concatenate(parts))[[row[item] for item in items]]


def _normalise(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=-1, keepdims=True).clip(min=1e-12)


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
        np.save(part, array.astype(np.float32))
    os.replace(part.name, path)
