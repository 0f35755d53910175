"""The prompt: what the VLM is shown for a query and its demonstrations, and how its text becomes an answer.

Unlike the predecessor, whose system text promised "four dialogues" at every shot count, the system text states the
true number of demonstrations.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lever_mlflow.data.samples import Sample

__all__ = ["PROFILES", "Prompt", "PromptProfile", "build_messages", "clean_generation", "prompt_key", "with_image_urls"]

_COUNTS = {0: "no solved example", 1: "1 solved example"}


class Prompt(NamedTuple):
    """A query behind its demonstrations, in the order in which the VLM is shown them."""

    demonstrations: tuple[Sample, ...]
    query: Sample


@dataclass(frozen=True)
class PromptProfile:
    """Everything beside model and prompt that an answer depends on: texts, image sizes and generation settings.

    ``min_pixels`` and ``max_pixels`` bound the resized image. Sampling is always off.
    """

    name: str
    num_beams: int
    min_pixels: int
    max_pixels: int
    max_new_tokens: int = 5
    length_penalty: float = 0.0
    system: str = "Answer the last question in a few words, after {count}."
    demonstration: str = "Question: {question} Short answer: {answer}\n"
    query: str = "Question: {question} Short answer:"

    @property
    def digest(self) -> str:
        """Names the profile's content, 16 hex characters."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def max_aspect(self) -> float:
        """From how many times the shorter side on an image's longer side is too long for the VLM to be shown.

        Qwen2.5-VL takes no ratio above 200, and none that leaves less than a 28-pixel patch after resizing.
        """
        return min(200.0, self.max_pixels / 28**2)


PROFILES = {
    # 256 to 1,280 visual tokens of 28x28 pixels: the range that the Qwen2.5-VL model card recommends.
    "qwen2.5-vl": PromptProfile("qwen2.5-vl", num_beams=3, min_pixels=256 * 28 * 28, max_pixels=1280 * 28 * 28),
    # Any VLM behind a server: the protocol knows no beams.
    "openai": PromptProfile("openai", num_beams=1, min_pixels=256 * 28 * 28, max_pixels=1280 * 28 * 28),
    "mini": PromptProfile("mini", num_beams=1, min_pixels=56 * 56, max_pixels=56 * 56),
}


def build_messages(
    demonstrations: Sequence[Sample], query: Sample, profile: PromptProfile = PROFILES["mini"]
) -> list[dict[str, Any]]:
    """Chat messages in the Qwen2.5-VL form: a system text and one user turn, demonstrations first.

    Images are given as file paths. The answer is expected to start with a space, as in the demonstrations.
    """
    shots = len(demonstrations)
    content: list[dict[str, Any]] = []
    for sample in demonstrations:
        text = profile.demonstration.format(question=sample.question, answer=sample.answer)
        content += [{"type": "image", "image": str(sample.image_path)}, {"type": "text", "text": text}]
    text = profile.query.format(question=query.question)
    content += [{"type": "image", "image": str(query.image_path)}, {"type": "text", "text": text}]
    system = profile.system.format(count=_COUNTS.get(shots, f"{shots} solved examples"))
    return [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": content},
    ]


def with_image_urls(messages: list[dict[str, Any]], url: Callable[[str], str]) -> list[dict[str, Any]]:
    """The messages in the form of the OpenAI protocol, each image by the URL that ``url`` gives for its path."""
    return [
        {
            **message,
            "content": [
                {"type": "image_url", "image_url": {"url": url(part["image"])}} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def prompt_key(prompt: Prompt, profile: PromptProfile, model_digest: str, image_digest: Callable[[Path], str]) -> str:
    """Names an answer by all it depends on: model, profile, image contents and texts; SHA-256, hexadecimal."""
    messages = build_messages(*prompt, profile)
    parts = [
        image_digest(Path(part["image"])) if part["type"] == "image" else part["text"]
        for message in messages
        for part in message["content"]
    ]
    return hashlib.sha256(json.dumps([model_digest, profile.digest, parts]).encode()).hexdigest()


def clean_generation(text: str) -> str:
    """The answer in a raw generation: cut at the first "Question", "Answer" or "Short", then at the first ", "."""
    return re.split(r"Question|Answer|Short", text, maxsplit=1)[0].split(", ", 1)[0].strip()
