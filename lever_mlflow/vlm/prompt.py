"""Builds the prompt of a query and its demonstrations, and turns the VLM's text into an answer.

The system text states the true number of demonstrations. This departs from the predecessor, whose system text promised "four
dialogues" at every shot count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lever_mlflow.data.samples import Sample

__all__ = [
    "MINI_PROFILE",
    "PROFILES",
    "QWEN_PROFILE",
    "SERVER_PROFILE",
    "Prompt",
    "PromptProfile",
    "build_messages",
    "clean_generation",
    "prompt_key",
    "with_image_urls",
]

QWEN_PROFILE, SERVER_PROFILE, MINI_PROFILE = "qwen2.5-vl", "openai", "mini"

_COUNTS = {0: "no solved example", 1: "1 solved example"}


class Prompt(NamedTuple):
    """Holds a query and its demonstrations, in the order in which the VLM is shown them; the query comes last."""

    demonstrations: tuple[Sample, ...]
    query: Sample


@dataclass(frozen=True)
class PromptProfile:
    """Describes all that an answer depends on beside the model and the samples of the prompt. Sampling is always off.

    Attributes:
        name: key in ``PROFILES``.
        num_beams: beams of the beam search; 1 is greedy decoding.
        min_pixels, max_pixels: bounds of a resized image's area.
        max_new_tokens: most tokens of an answer.
        length_penalty: of the beam search; 0 prefers no length.
        system: system text; ``{count}`` stands for the number of demonstrations in words.
        demonstration: text behind the image of a demonstration.
        query: text behind the image of the query.
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

    @cached_property
    def digest(self) -> str:
        """Returns a digest of the profile's content, 16 hex characters."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def max_aspect(self) -> float:
        """Returns the aspect ratio (longer by shorter side) from which on the VLM takes no image.

        Qwen2.5-VL takes no ratio above 200, and none at which the shorter side has less than 28 pixels after resizing.
        """
        return min(200.0, self.max_pixels / 28**2)


PROFILES = {
    # 256 to 1,280 visual tokens of 28x28 pixels: the range that the Qwen2.5-VL model card recommends.
    QWEN_PROFILE: PromptProfile(QWEN_PROFILE, num_beams=3, min_pixels=256 * 28 * 28, max_pixels=1280 * 28 * 28),
    # For any VLM on a server: OpenAI's interface has no beam search.
    SERVER_PROFILE: PromptProfile(SERVER_PROFILE, num_beams=1, min_pixels=256 * 28 * 28, max_pixels=1280 * 28 * 28),
    MINI_PROFILE: PromptProfile(MINI_PROFILE, num_beams=1, min_pixels=56 * 56, max_pixels=56 * 56),
}


def build_messages(
    demonstrations: Sequence[Sample], query: Sample, profile: PromptProfile = PROFILES[MINI_PROFILE]
) -> list[dict[str, Any]]:
    """Returns chat messages in the form of Qwen2.5-VL: a system text and one user turn, demonstrations first.

    Images are file paths. The answer is expected to start with a space, as in the demonstrations.
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
    """Returns the messages in the form of OpenAI's interface; ``url`` makes the URL of an image from its path."""
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


@lru_cache(maxsize=65_536)  # an evaluation asks for most prompts several times, and each name is needed twice
def prompt_key(prompt: Prompt, profile: PromptProfile, model_digest: str, image_digest: Callable[[Path], str]) -> str:
    """Returns a digest of all that an answer depends on: model, profile, image contents and texts (SHA-256, hexadecimal)."""
    messages = build_messages(*prompt, profile)
    parts = [
        image_digest(Path(part["image"])) if part["type"] == "image" else part["text"]
        for message in messages
        for part in message["content"]
    ]
    return hashlib.sha256(json.dumps([model_digest, profile.digest, parts]).encode()).hexdigest()


def clean_generation(text: str) -> str:
    """Returns the answer in a raw generation: cut at the first "Question", "Answer" or "Short", then at the first ", "."""
    return re.split(r"Question|Answer|Short", text, maxsplit=1)[0].split(", ", 1)[0].strip()
