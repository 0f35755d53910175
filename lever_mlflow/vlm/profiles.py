"""Reads prompt profiles: the texts, image sizes and generation settings with which a VLM is asked.

Those of the families are JSON files in the folder ``profiles`` beside this module; users may give one of their own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.files.records import first_misfit
from lever_mlflow.files.text import looked_for, read_text

__all__ = ["GENERIC_PROFILE", "MINI_PROFILE", "PROFILES", "QWEN_PROFILE", "SERVER_PROFILE", "PromptProfile", "find_profile"]

QWEN_PROFILE, GENERIC_PROFILE, SERVER_PROFILE, MINI_PROFILE = "qwen2.5-vl", "generic", "openai", "mini"


@with_config(ConfigDict(extra="forbid", strict=True))
@dataclass(frozen=True)
class PromptProfile:
    """Describes all that an answer depends on beside the model and the samples of the prompt. Sampling is always off.

    Attributes:
        name: names the profile in logs and records.
        num_beams: beams of the beam search; 1 is greedy decoding.
        min_pixels, max_pixels: bounds of a resized image's area.
        max_new_tokens: most tokens of an answer.
        length_penalty: of the beam search; 0 prefers no length.
        system: system text, in which ``{count}`` stands for the number of demonstrations in words; an empty text makes no
            system turn.
        demonstration: text behind the image of a demonstration, with ``{question}`` and ``{answer}``.
        query: text behind the image of the query, with ``{question}``.

    Raises:
        ValueError: a number is out of bounds, or a text lacks a placeholder or has another one.
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

    def __post_init__(self) -> None:
        """Refuses values that no prompt can be made with."""
        for name in ("num_beams", "min_pixels", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.max_pixels < self.min_pixels:
            raise ValueError(f"max_pixels is {self.max_pixels}, expected at least min_pixels, {self.min_pixels}")
        _check_template("demonstration", self.demonstration, "question", "answer")
        _check_template("query", self.query, "question")
        _check_template("system", self.system, *(["count"] if "{" in self.system else []))

    @cached_property
    def digest(self) -> str:
        """Returns a digest of the profile's content, 16 hex characters."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def find_profile(name: str) -> PromptProfile:
    """Returns a profile by its name, or reads it from a JSON file.

    Raises:
        ParameterError: there is neither, or the file holds no profile; the message names the field.
    """
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name).expanduser()
    if not path.is_file():
        raise ParameterError(
            f"profile={name}: no such file{looked_for(path)}; give a JSON file, or one of {', '.join(PROFILES)}, or auto"
        )
    try:
        return _read(path)
    except (OSError, ValueError) as error:
        reason = first_misfit(error) if isinstance(error, ValidationError) else str(error)
        raise ParameterError(f"profile={name}: not a prompt profile ({reason}); docs/real-data.md describes the file") from None


def _check_template(name: str, text: str, *placeholders: str) -> None:
    """Raises ValueError where a text has other placeholders than these, or lacks one."""
    values = {placeholder: f"<{placeholder}>" for placeholder in placeholders}
    try:
        filled = text.format(**values)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{name}: {text!r} cannot be filled in ({error!r}); braces stand for placeholders only") from None
    missing = [placeholder for placeholder, value in values.items() if value not in filled]
    if missing:
        raise ValueError(f"{name}: {text!r} lacks {{{missing[0]}}}")


def _read(path: Path) -> PromptProfile:
    return TypeAdapter(PromptProfile).validate_json(read_text(path))


PROFILES = {
    path.stem: _read(path)
    for name in (QWEN_PROFILE, "qwen3-vl", GENERIC_PROFILE, SERVER_PROFILE, MINI_PROFILE)
    for path in [Path(__file__).parent / "profiles" / f"{name}.json"]
}
