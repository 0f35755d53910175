"""The frozen VLM: prompts in, answers out, batched. A Qwen2.5-VL in a local folder, of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from lever_mlflow.exceptions import DataError
from lever_mlflow.images import image_digest, read_image
from lever_mlflow.model_files import load_pretrained
from lever_mlflow.prompt import PROFILES, PromptProfile, build_messages, prompt_key
from lever_mlflow.types import Prompt

__all__ = ["LocalVLM"]


class LocalVLM:
    """A Qwen2.5-VL model folder; weights are loaded at the first generation, so that cached answers cost nothing.

    Args:
        folder: as written by ``save_pretrained`` (config, safetensors, processor, tokenizer).
        digest: names the folder's content.
        profile: a key of ``lever_mlflow.prompt.PROFILES``.
        device: ``cpu`` or ``cuda``; bfloat16 on ``cuda``, float32 on ``cpu``.
        batch_size: prompts per generation.
    """

    def __init__(self, folder: Path, digest: str, profile: str, device: str = "cpu", batch_size: int = 64) -> None:
        self.folder, self.device, self.batch_size = folder, device, batch_size
        self.dtype = "bfloat16" if device.startswith("cuda") else "float32"
        self.digest = f"{digest}-{self.dtype}"  # answers of different precision are different answers
        self.profile: PromptProfile = PROFILES[profile]
        self._loaded: tuple[Any, Any] | None = None
        self._image = lru_cache(maxsize=4096 if profile == "mini" else 64)(self._resized_image)

    def key(self, prompt: Prompt) -> str:
        """Names the answer to ``prompt`` by everything it depends on."""
        return prompt_key(prompt, self.profile, self.digest, image_digest)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """Raw generations of each batch as (position in ``prompts``, text); longest prompts first.

        Raises:
            DataError: an image does not decode, or the folder is no Qwen2.5-VL model.
        """
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].demonstrations), i))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            yield list(zip(batch, self._generate_batch([prompts[i] for i in batch]), strict=True))

    def _generate_batch(self, prompts: Sequence[Prompt]) -> list[str]:
        import torch

        model, processor = self._load()
        conversations = [build_messages(*prompt, self.profile) for prompt in prompts]
        texts = processor.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
        images = [self._image(s.image_path) for prompt in prompts for s in (*prompt.demonstrations, prompt.query)]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt").to(self.device)
        settings: dict[str, float] = {"num_beams": self.profile.num_beams, "max_new_tokens": self.profile.max_new_tokens}
        if self.profile.num_beams > 1:
            settings["length_penalty"] = self.profile.length_penalty
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, **settings)
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        return list(processor.batch_decode(new_tokens, skip_special_tokens=True))

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import Qwen2_5_VLForConditionalGeneration

            # Batches are padded on the left: generation continues at the right end of each prompt.
            model, processor = load_pretrained(Qwen2_5_VLForConditionalGeneration, self.folder, padding_side="left")
            self._loaded = model.to(self.device, getattr(torch, self.dtype)).eval(), processor
        return self._loaded

    def _resized_image(self, path: Path) -> Image.Image:
        from qwen_vl_utils.vision_process import fetch_image

        limits = {"min_pixels": self.profile.min_pixels, "max_pixels": self.profile.max_pixels}
        try:
            return fetch_image({"image": read_image(path), **limits})
        except ValueError as error:  # an aspect ratio that the model does not take
            raise DataError(f"{path}: cannot be shown to the VLM ({error}); crop or replace the image") from None
