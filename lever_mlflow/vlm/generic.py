"""Runs a VLM of any family in this process, through its processor and ``generate``.

Images are encoded and prompts are read as often as they occur, and it is not told how probable answers are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from lever_mlflow.exceptions import DataError, first_line
from lever_mlflow.files.images import fitted_image
from lever_mlflow.files.model_folders import load_processor
from lever_mlflow.shortages import let_through
from lever_mlflow.vlm.local import LocalVLM, model_type, samples_of
from lever_mlflow.vlm.prompt import Prompt, build_messages

__all__ = ["GenericVLM"]


class GenericVLM(LocalVLM):
    """Answers prompts with a model that transformers loads by ``AutoModelForImageTextToText``; arguments as ``LocalVLM``."""

    @property
    def max_aspect(self) -> float:
        """Returns infinity, as the bounds of the families are not known; their processors say what they refuse."""
        return math.inf

    def check(self) -> None:
        """Looks into the folder, and has the processor make a prompt of two images.

        Raises:
            DataError: transformers knows no such model, a part of it is missing, or it takes no prompt of several images.
        """
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as FAMILIES

        family = model_type(self.folder)
        if family not in FAMILIES:
            raise DataError(f"{self.folder}: config.json says model_type {family!r}, which is no image-text-to-text model")
        super().check()
        images = [Image.new("RGB", (64, 64), color) for color in ("white", "black")]
        content = [{"type": "image", "image": images[0]}, {"type": "text", "text": "one"}]
        content += [{"type": "image", "image": images[1]}, {"type": "text", "text": "two"}]
        system = [{"role": "system", "content": [{"type": "text", "text": "text"}]}] if self.profile.system else []
        self._encoded(load_processor(self.folder), [[*system, {"role": "user", "content": content}]])

    def _encoded(self, processor: Any, conversations: list[Any]) -> Any:
        """Returns conversations as the model takes them, padded on the left."""
        try:
            return processor.apply_chat_template(
                conversations,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True, "padding_side": "left"},
            )
        except Exception as error:  # each processor and each template raises errors of its own
            let_through(error)
            raise DataError(
                f"{self.folder}: the processor of {model_type(self.folder)} makes no prompt of several images "
                f"({first_line(error)}); give another model, or a profile with another system text"
            ) from None

    def _conversation(self, prompt: Prompt) -> list[Any]:
        """Returns the messages of a prompt with their images decoded, and resized to the bounds of the profile."""
        bounds = self.profile.min_pixels, self.profile.max_pixels
        images = iter([fitted_image(sample.image_path, *bounds) for sample in samples_of(prompt)])
        return [
            {
                **message,
                "content": [
                    {"type": "image", "image": next(images)} if part["type"] == "image" else part for part in message["content"]
                ],
            }
            for message in build_messages(*prompt, self.profile)
        ]

    def _tokens(self, prompts: Sequence[Prompt]) -> list[int]:
        """Returns the number of tokens of the first prompt with as many images as each prompt has."""
        tokens: dict[int, int] = {}
        for prompt in prompts:
            shots = len(prompt.demonstrations)
            if shots not in tokens:
                tokens[shots] = self._encoded(self.loaded.processor, [self._conversation(prompt)])["input_ids"].shape[1]
        return [tokens[len(prompt.demonstrations)] for prompt in prompts]

    def _lengths(self, prompts: Sequence[Prompt], tokens: Sequence[int]) -> list[int]:
        return list(tokens)

    def _batch(self, prompts: list[Prompt], tokens: list[int]) -> Any:
        return self._encoded(self.loaded.processor, [self._conversation(prompt) for prompt in prompts])

    def _answers(self, model: Any, batch: Any) -> list[str]:
        import torch

        inputs = batch.to(self.device, model.dtype)
        with torch.inference_mode():
            output = model.generate(**inputs, **self.generation)
        return list(self.loaded.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
