"""Says what to do about a refusal of a VLM server, by what the server says of it."""

from __future__ import annotations

import re

__all__ = ["advice", "refused_parameter"]

# What servers say of too many images: vLLM ("At most 1 image(s) may be provided in one prompt", older "in one request" and
# "You set image=1 (or defaulted to 1) in `--limit-mm-per-prompt`"), and SGLang ("Image count 2 exceeds limit 1 per request").
_TOO_MANY_IMAGES = re.compile(
    r"at most \d+ image|image count \d+ exceeds|limit[-_]mm|too many images|(?:multiple|multi)[- ]images?"
    r"|(?:maximum|max|only|more than) (?:of )?\w+ images?\b",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"context[ _]length|context window|context size|max_model_len|too (?:long|large)|maximum.{0,40}(?:length|tokens)"
    r"|exceeds?.{0,60}(?:tokens|length)",
    re.IGNORECASE,
)
# OpenAI says this where a model spends all tokens on reasoning, or takes no limit as low as the profile's.
_NO_ANSWER_LEFT = re.compile(
    r"output limit|higher max_tokens|max_(?:completion_|output_)?tokens.{0,60}(?:minimum|at least|>=|greater)", re.IGNORECASE
)
_NOT_TAKEN = re.compile(
    r"not support|unsupported|unrecognized|unknown|unexpected|not permitted|deprecated|not allowed", re.IGNORECASE
)


def advice(message: str, images: int) -> str:
    """Returns what to do about a refusal whose cause is known by what the server says; empty for any other.

    Args:
        message: the server's message.
        images: number of images in the prompt that was refused.
    """
    if images > 1 and _TOO_MANY_IMAGES.search(message):
        limit = f"'{{\"image\": {images}}}'"
        return (
            f"a prompt of this work holds {images} images: start the server with --limit-mm-per-prompt {limit} (vLLM) or "
            f"--limit-mm-data-per-request {limit} (SGLang), or use fewer shots"
        )
    if _NO_ANSWER_LEFT.search(message):
        return "give a profile with a larger max_new_tokens"
    if _TOO_LONG.search(message):
        return "allow longer prompts on the server (vLLM: --max-model-len, SGLang: --context-length), or use fewer shots"
    return ""


def refused_parameter(message: str, parameters: tuple[str, ...]) -> str | None:
    """Returns which of these parameters of a request the server says that it does not take; None for any other refusal."""
    if not _NOT_TAKEN.search(message):
        return None
    return next((name for name in parameters if re.search(rf"\b{name}\b", message)), None)
