"""Encodes images and texts with models of transformers: CLIP and its relatives, or an encoder of images or of texts alone.

Models with both sides are those with ``get_image_features`` and ``get_text_features``, such as CLIP, SigLIP, SigLIP 2 and
Chinese-CLIP. The feature of an image by an encoder of images, such as DINOv2 or ViT, is what its pooling layer gives, or its
first token where there is none. The feature of a text by a sentence encoder, such as MiniLM, is the mean of its tokens, or its
first token where the folder says so in the form of sentence-transformers.
"""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from lever_mlflow.exceptions import DataError, first_line
from lever_mlflow.files.model_folders import check_parts, folder_digest, load_pretrained, model_type
from lever_mlflow.files.strict_json import read_object
from lever_mlflow.files.text import read_text
from lever_mlflow.shortages import let_through

__all__ = ["Encoder", "Side", "check_encoder", "encoder_sides", "forget_shared_encoders", "normalise", "shared_encoder"]

Side = Literal["image", "text"]
_BOTH: tuple[Side, ...] = ("image", "text")
# What models of these types encode. For other types transformers is asked, whose import takes a second.
_SIDES: dict[str, tuple[Side, ...]] = {
    **dict.fromkeys(("clip", "chinese_clip", "siglip", "siglip2"), _BOTH),
    **dict.fromkeys(("dinov2", "vit"), ("image",)),
    **dict.fromkeys(("bert", "mpnet", "xlm-roberta"), ("text",)),
}
_IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")  # the last two of SigLIP 2 at any aspect ratio
_TEXT_INPUTS = ("input_ids", "attention_mask")
# Both SigLIPs were trained on texts that were padded to the full length, without a mask (arXiv:2303.15343, arXiv:2502.14786).
_PADDED = frozenset({"siglip", "siglip2"})
_POOLING = Path("1_Pooling", "config.json")  # of sentence-transformers
_POOLINGS = {"mean": False, "mean_tokens": False, "cls": True, "cls_token": True}  # whether the first token stands for a text
_MODULES = frozenset({"Transformer", "Pooling", "Normalize"})


def encoder_sides(folder: Path) -> tuple[Side, ...]:
    """Returns what a model encodes, by the type that its ``config.json`` states.

    Raises:
        DataError: there is no readable ``config.json``, or the model is no encoder.
    """
    family = model_type(folder)
    if family in _SIDES:
        return _SIDES[family]
    from transformers.models.auto import modeling_auto as auto

    if family in auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return _BOTH
    if family in auto.MODEL_FOR_IMAGE_MAPPING_NAMES or family.endswith("_vision_model"):
        return ("image",)
    if family in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES or family.endswith("_text_model"):
        return ("text",)
    raise DataError(
        f"{folder}: config.json says model_type {family!r}, which is no encoder; give a CLIP or SigLIP model, an encoder of "
        "images such as DINOv2, or one of texts such as MiniLM"
    )


def check_encoder(folder: Path) -> tuple[Side, ...]:
    """Checks an encoder's folder without loading it, and returns what it encodes.

    Raises:
        DataError: as ``encoder_sides``; or a part is missing, or texts are pooled in another way than by mean or first token.
    """
    sides = encoder_sides(folder)
    check_parts(folder, tokenizer="text" in sides)
    if sides == ("text",):
        _first_token(folder)
    return sides


class Encoder:
    """Encodes images and texts with a model, for any number of threads.

    Its features are those of ``sample_features``: L2-normalised float32 [B, D].

    Attributes:
        sides: what it encodes.

    Raises:
        DataError: the folder holds no such model, or the model gives no such features.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoModel

        self.sides = check_encoder(folder)
        model, processor = load_pretrained(AutoModel, folder, optional_part="" if self.sides == _BOTH else "pooler")
        # The processor of a model with both sides would replace the folder's settings by those of its class.
        self._process, self._tokenize = (getattr(processor, part, processor) for part in ("image_processor", "tokenizer"))
        self._model = model.to(device).eval()
        self._device = device
        self._family = model_type(folder)
        self._first_token = self.sides == ("text",) and _first_token(folder)
        self._lock = threading.Lock()  # each call sets padding and truncation of the one tokenizer
        self._check(folder)

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Returns the features of one batch of RGB images, [B, D]."""
        with self._lock:
            inputs = self._inputs(self._process(images=list(images), return_tensors="pt"), _IMAGE_INPUTS)
            return self._features(self._image_features(inputs))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the features of one batch of texts, [B, D]; each text is cut to the model's limit of tokens."""
        padding = "max_length" if self._family in _PADDED else True
        how = {"padding": padding, "truncation": True, "max_length": self._most_tokens, "return_tensors": "pt"}
        with self._lock:
            tokens = self._tokenize(list(texts), **how)
            inputs = self._inputs(tokens, _TEXT_INPUTS[:1] if self._family in _PADDED else _TEXT_INPUTS)
            return self._features(self._text_features(inputs))

    def _inputs(self, prepared: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        return {name: prepared[name].to(self._device) for name in names if name in prepared}

    def _image_features(self, inputs: Mapping[str, Any]) -> Any:
        import torch

        with torch.inference_mode():
            if self.sides == _BOTH:
                return self._model.get_image_features(**inputs)
            output = self._model(**inputs)
        pooled = getattr(output, "pooler_output", None)
        return output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(start_dim=1)

    def _text_features(self, inputs: Mapping[str, Any]) -> Any:
        import torch

        with torch.inference_mode():
            if self.sides == _BOTH:
                return self._model.get_text_features(**inputs)
            output = self._model(**inputs)
        if self._family.endswith("_text_model"):  # one side of a model with both, which has a pooling of its own
            return output.pooler_output
        if self._first_token:
            return output.last_hidden_state[:, 0]
        mask_BT1 = inputs["attention_mask"][..., None].to(output.last_hidden_state.dtype)
        return (output.last_hidden_state * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)

    def _features(self, output: Any) -> np.ndarray:
        import torch

        features = output if isinstance(output, torch.Tensor) else output.pooler_output
        return normalise(features.float().cpu().numpy())

    @cached_property
    def _most_tokens(self) -> int:
        """Returns how many tokens of a text the model takes: its positions, without those that stand before the first token."""
        import torch

        config = getattr(self._model.config, "text_config", self._model.config)
        positions = int(config.max_position_embeddings)
        tables = [table for name, table in self._model.named_modules() if name.endswith("position_embeddings")]
        padding = [table.padding_idx for table in tables if isinstance(table, torch.nn.Embedding)]
        return positions - max((index + 1 for index in padding if index is not None), default=0)

    def _check(self, folder: Path) -> None:
        """Encodes an image and a text; raises DataError where that fails, or where both are of different lengths."""
        encode = {"image": lambda: self.images([Image.new("RGB", (64, 64))]), "text": lambda: self.texts(["text"])}
        try:
            shapes = {side: encode[side]().shape for side in self.sides}
        except Exception as error:  # each model and each processor raises errors of its own
            let_through(error)
            raise DataError(f"{folder}: {self._family} gives no features ({first_line(error)}); give another encoder") from None
        if len(set(shapes.values())) > 1 or any(len(shape) != 2 for shape in shapes.values()):
            raise DataError(f"{folder}: features of image and text are of the shapes {shapes}; give another encoder")


def _first_token(folder: Path) -> bool:
    """Returns whether the feature of a text is its first token instead of the mean of its tokens.

    Raises:
        DataError: it is neither, or a further layer follows the pooling.
    """
    layers = folder / "modules.json"
    types = re.findall(r'"type":\s*"(?:[^"]*\.)?([^".]*)"', read_text(layers)) if layers.is_file() else []
    further = sorted(set(types) - _MODULES)
    if further:
        raise DataError(f"{layers}: the model has a layer {further[0]}, which is not applied here; give another encoder")
    path = folder / _POOLING
    if not path.is_file():
        return False
    pooling = read_object(path, missing="", damaged="copy the model again")
    modes = [
        name.removeprefix("pooling_mode_") for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True
    ]
    mode = "+".join(modes) or pooling.get("pooling_mode", "mean")
    if mode not in _POOLINGS:
        raise DataError(f"{path}: texts are pooled by {mode}, expected one of {', '.join(_POOLINGS)}; give another encoder")
    return _POOLINGS[mode]


def shared_encoder(folder: Path, digest: str) -> Encoder:
    """Returns the encoder with this digest on the CPU, loaded once per process.

    Args:
        folder: folder of the model; not looked at when an encoder with this digest is loaded already.
        digest: the ``folder_digest`` that the folder must have.

    Raises:
        DataError: the folder holds another encoder, or none.
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


def normalise(array: np.ndarray) -> np.ndarray:
    """Returns vectors of length 1; a vector of zeros stays as it is."""
    return array / np.linalg.norm(array, axis=-1, keepdims=True).clip(min=1e-12)
