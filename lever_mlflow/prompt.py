"""The prompt: what the VLM is shown for a query and its demonstrations, and how its text becomes an answer.

Unlike the predecessor, whose system text promised "four dialogues" at every shot count, the system text states the
true number of demonstrations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lever_mlflow.types import Sample

__all__ = ["PROMPT_VERSION", "build_messages", "clean_generation"]

PROMPT_VERSION = "1"
_SYSTEM_BY_COUNT = {0: "no solved example", 1: "1 solved example"}


def build_messages(demonstrations: Sequence[Sample], query: Sample) -> list[dict[str, Any]]:
    """Chat messages in the Qwen2.5-VL form: a system text and one user turn, demonstrations first.

    Images are given as file paths. The answer is expected to start with a space, as in the demonstrations.
    """
    count = _SYSTEM_BY_COUNT.get(len(demonstrations), f"{len(demonstrations)} solved examples")
    content: list[dict[str, Any]] = []
    for sample in demonstrations:
        content += [_image(sample), _text(f"Question: {sample.question} Short answer: {sample.answer}\n")]
    content += [_image(query), _text(f"Question: {query.question} Short answer:")]
    return [
        {"role": "system", "content": [_text(f"Answer the last question in a few words, after {count}.")]},
        {"role": "user", "content": content},
    ]


def clean_generation(text: str) -> str:
    """The answer in a raw generation: cut at the first "Question", "Answer" or "Short", then at the first ", "."""
    return re.split(r"Question|Answer|Short", text, maxsplit=1)[0].split(", ", 1)[0].strip()


def _image(sample: Sample) -> dict[str, Any]:
    return {"type": "image", "image": str(sample.image_path)}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
