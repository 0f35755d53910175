"""Reads what a server replies with status 200, and tells answers, answers without text, and failures apart.

A status of 200 alone says little: gateways put errors of the servers behind them into such replies, and reasoning models spend
the few tokens of an answer before they begin to answer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Literal, NamedTuple

__all__ = [
    "AnswerKind",
    "FailedReply",
    "ForeignReply",
    "ServedAnswer",
    "Tally",
    "brief",
    "read_answer",
    "read_models",
    "refuse_errors",
]

AnswerKind = Literal["text", "cut", "empty", "refused", "reasoning"]

_FAILED = ("error", "network_error", "abort", "insufficient_system_resource")  # finish reasons of gateways and servers
_REASONING = ("reasoning_content", "reasoning")  # fields of a message; older and newer vLLM, SGLang, OpenRouter
_TAG = r"(?:think|thinking|thought|reasoning)"
_END_OF_REASONING = re.compile(rf".*[<\[◁]/{_TAG}[>\]▷]", re.DOTALL | re.IGNORECASE)
_REASONING_BEGINS = re.compile(rf"\s*[<\[◁]{_TAG}[>\]▷]", re.IGNORECASE)
_FEWEST = 20  # answers, before their shares say anything

_WORDS = {
    "empty": "empty",
    "refused": "refused",
    "cut": "cut at the limit of tokens",
    "reasoning": "nothing but reasoning",
}
_REMEDIES = {
    "empty": "look at what the server answers, and at its chat template",
    "refused": "give a model that answers such questions",
    "cut": "give a model that answers in a few words, or a profile with a larger max_new_tokens",
    "reasoning": "turn reasoning off on the server (vLLM and SGLang: "
    "--default-chat-template-kwargs '{\"enable_thinking\": false}'), or give a profile with a larger max_new_tokens",
}


class FailedReply(Exception):
    """Says that a reply with status 200 holds an error instead of an answer."""


class ForeignReply(Exception):
    """Says that a reply with status 200 has not the form of OpenAI's interface."""


class ServedAnswer(NamedTuple):
    """Holds the text of an answer without reasoning, and its kind.

    An answer of kind ``text`` or ``cut`` has text; one that is ``cut`` reached the limit of tokens. The other kinds have none,
    although the model is healthy: it generated tokens or ended the answer by itself.
    """

    text: str
    kind: AnswerKind


class Tally:
    """Counts answers by their kind.

    Attributes:
        counts: how many answers were of each kind.
    """

    def __init__(self) -> None:
        self.counts: Counter[AnswerKind] = Counter()

    @property
    def telling(self) -> bool:
        """Returns whether there are enough answers that their shares say something."""
        return self.counts.total() >= _FEWEST

    @property
    def poor_share(self) -> float:
        """Returns the share of answers that are cut or have no text."""
        total = self.counts.total()
        return 1 - self.counts["text"] / total if total else 0.0

    @property
    def words(self) -> str:
        """Says how many of the answers are cut or without text, such as ``of 40 answers, 3 are empty``."""
        parts = [f"{self.counts[kind]:,} are {_WORDS[kind]}" for kind in _WORDS if self.counts[kind]]  # type: ignore[index]
        return f"of {self.counts.total():,} answers, {', '.join(parts)}"

    @property
    def remedy(self) -> str:
        """Says what to do about the most frequent kind of poor answers."""
        return _REMEDIES[max(_WORDS, key=lambda kind: self.counts[kind])]  # type: ignore[index]


def read_answer(reply: Any) -> ServedAnswer:
    """Reads the answer in the reply to a chat completion.

    Raises:
        FailedReply: the reply holds an error, or no text and no sign that the model generated anything.
        ForeignReply: the reply has another form.
    """
    refuse_errors(reply)
    match reply:
        case {"choices": [{"message": {**message}, **choice}, *_]}:
            pass
        case _:
            raise ForeignReply(_as_text(reply))
    content, reason = _joined(message.get("content")), choice.get("finish_reason")
    refuse_errors(choice)
    if reason in _FAILED:
        raise FailedReply(f"finish_reason {reason}")
    if content is not None and not isinstance(content, str):
        raise ForeignReply(_as_text(reply))
    text, reasoned = _without_reasoning(content or "")
    if text.strip():
        return ServedAnswer(text, "cut" if reason == "length" else "text")
    tokens, of_reasoning = _generated(reply)
    if message.get("refusal") or reason == "content_filter":
        return ServedAnswer("", "refused")
    if reasoned or of_reasoning or any(message.get(name) for name in _REASONING):
        return ServedAnswer("", "reasoning")
    if tokens == 0 and (content is None or reason != "stop"):
        raise FailedReply(f"content {json.dumps(content)} after 0 tokens")
    if tokens is None and content is None and reason is None:
        raise FailedReply("content null")
    return ServedAnswer(text, "empty")


def read_models(reply: Any) -> list[dict[str, Any]]:
    """Reads the descriptions of a server's models.

    Raises:
        FailedReply: the reply holds an error.
        ForeignReply: the reply has another form.
    """
    match reply:
        case {"data": [*cards]} if all(isinstance(card, dict) and isinstance(card.get("id"), str) for card in cards):
            return cards
    refuse_errors(reply)
    raise ForeignReply(_as_text(reply))


def brief(text: str) -> str:
    """Returns a text in one line of at most 200 characters and dots."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:200]}..."


def refuse_errors(reply: Any) -> None:
    """Raises FailedReply where a reply, or a choice in it, holds an error in one of the forms in use."""
    match reply:
        case {"error": {"message": str(message)}} | {"error": str(message)} if message:
            raise FailedReply(message)
        case {"object": "error", "message": str(message)} | {"detail": str(message)}:
            raise FailedReply(message)
        case {"error": {**error}} if error:
            raise FailedReply(_as_text(error))


def _joined(content: Any) -> Any:
    """Returns content as one text where a server gives it in parts; parts that are no text, such as reasoning, are left out."""
    match content:
        case [{"type": str()}, *_] if all(isinstance(part, dict) for part in content):
            return "".join(str(part.get("text", "")) for part in content if part.get("type") in ("text", "output_text"))
    return content


def _without_reasoning(text: str) -> tuple[str, bool]:
    """Returns what stands behind the reasoning in an answer, and whether there is any reasoning."""
    if end := _END_OF_REASONING.match(text):
        return text[end.end() :], True
    return ("", True) if _REASONING_BEGINS.match(text) else (text, False)


def _generated(reply: Any) -> tuple[int | None, int]:
    """Returns how many tokens were generated, or None where the server does not say, and how many of them were reasoning."""
    match reply:
        case {"usage": {"completion_tokens": int(tokens), **usage}}:
            match usage:
                case {"completion_tokens_details": {"reasoning_tokens": int(of_reasoning)}}:
                    return tokens, of_reasoning
            return tokens, 0
    return None, 0


def _as_text(reply: Any) -> str:
    return reply if isinstance(reply, str) else json.dumps(reply)
