"""Builds the prompt of a query and its demonstrations, and turns the VLM's text into an answer.

The system text states the true number of demonstrations. This departs from the predecessor, whose system text promised "four
dialogues" at every shot count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lever_mlflow.data.samples import Sample
from lever_mlflow.vlm.profiles import MINI_PROFILE, PROFILES, PromptProfile

__all__ = ["Prompt", "build_messages", "clean_generation", "plain_text", "prompt_key", "score_key", "with_image_urls"]

_CONTROL_TOKEN = re.compile(r"<(?=[^<>\s]{1,80}>)|\[(?=/?[A-Z][A-Z_]{1,30}\])")
_LABEL = re.compile(r"\b(?:Question|Short answer|Answer):")
_COUNTS = {0: "no solved example", 1: "1 solved example"}


class Prompt(NamedTuple):
    """Holds a query and its demonstrations, in the order in which the VLM is shown them; the query comes last."""

    demonstrations: tuple[Sample, ...]
    query: Sample


def plain_text(text: str) -> str:
    """Returns a text of the data in which nothing is a control token to a tokenizer, such as ``<|im_end|>`` or ``[INST]``.

    A space behind the first bracket breaks what has the form of one: an expression in angle brackets without spaces, or
    capitals in square brackets. All other text stays as it is.
    """
    return _CONTROL_TOKEN.sub(r"\g<0> ", text)


def build_messages(
    demonstrations: Sequence[Sample], query: Sample, profile: PromptProfile = PROFILES[MINI_PROFILE]
) -> list[dict[str, Any]]:
    """Returns chat messages: a system text, if the profile has one, and one user turn, demonstrations first.

    Images are file paths. The answer is expected to start with a space, as in the demonstrations. Nothing in a question or
    answer is a control token (``plain_text``).
    """
    shots = len(demonstrations)
    content: list[dict[str, Any]] = []
    for sample in demonstrations:
        text = profile.demonstration.format(question=plain_text(sample.question), answer=plain_text(sample.answer))
        content += [{"type": "image", "image": str(sample.image_path)}, {"type": "text", "text": text}]
    text = profile.query.format(question=plain_text(query.question))
    content += [{"type": "image", "image": str(query.image_path)}, {"type": "text", "text": text}]
    system = profile.system.format(count=_COUNTS.get(shots, f"{shots} solved examples"))
    system_turn = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    return [*system_turn, {"role": "user", "content": content}]


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


def score_key(prompt: Prompt, key: str) -> str:
    """Returns a digest of all that the score of a prompt depends on, by the prompt's own key (SHA-256, hexadecimal)."""
    query = prompt.query
    scored = [] if query.scoring == "raw" else [query.scoring, sorted(query.stemmed_answers)]
    return hashlib.sha256(json.dumps(["gt_prob", key, sorted(query.answers), *scored]).encode()).hexdigest()


def clean_generation(text: str) -> str:
    """Returns the answer in a raw generation: its first line, cut where a label of the prompt begins, then at the first ", ".

    In the prompt, each label stands at the beginning of a line or ends in a colon. The words themselves may be part of an
    answer, such as "American Shorthair".
    """
    line = text.strip().split("\n", 1)[0]
    return _LABEL.split(line, maxsplit=1)[0].split(", ", 1)[0].strip()
