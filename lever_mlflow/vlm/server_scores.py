"""Finds out on a server how probable given answers are, by the log probabilities of the tokens of a prompt.

vLLM tells them with chat completions (``prompt_logprobs``). The answer is put behind the prompt as a turn of the model that has
ended; its tokens stand between what the chat template puts before and behind an answer. These two frames are found out once, by
small requests without images. No tokenizer is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from lever_mlflow.vlm.server_replies import FailedReply, ForeignReply, refuse_errors

__all__ = ["AnswerFrame", "NoScores", "PromptTokens", "find_frame", "read_prompt_tokens"]

Message = dict[str, Any]
_FOREVER = -1_000.0  # log probability below which vLLM writes -9999 for minus infinity


class NoScores(Exception):
    """Says why a server does not tell how probable answers are."""


class PromptTokens(NamedTuple):
    """Holds the tokens of a prompt, and the log probability of each after those before it; that of the first is 0."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class AnswerFrame(NamedTuple):
    """Holds the tokens between which an answer stands.

    Attributes:
        opening: the beginning of the model's turn.
        ending: the end of the turn, and what the chat template writes behind it.
    """

    opening: tuple[int, ...]
    ending: tuple[int, ...]

    def read_probability(self, reply: Any) -> float:
        """Reads the probability of the answer at the end of a conversation, end of turn included, in the reply to it.

        Raises:
            FailedReply: the reply holds an error, or no tokens that end with an answer in this frame.
            ForeignReply: the reply has another form.
        """
        try:
            tokens = read_prompt_tokens(reply)
        except NoScores as reason:  # although it has told them before
            raise FailedReply(str(reason)) from None
        ids, last = tokens.ids, len(tokens.ids) - len(self.ending)
        starts = [start for start in range(last) if ids[start : start + len(self.opening)] == self.opening]
        if not starts or ids[last:] != self.ending:
            raise FailedReply("the tokens of an answer do not stand where the chat template puts answers")
        return math.exp(math.fsum(tokens.logprobs[starts[-1] + len(self.opening) : last + 1]))


def read_prompt_tokens(reply: Any) -> PromptTokens:
    """Reads the tokens of a prompt and their log probabilities in the reply to a chat completion.

    Each place of the prompt has an object with the one token that stands there; the first place has none.

    Raises:
        NoScores: the server does not tell them.
        FailedReply: the reply holds an error. ForeignReply: the reply has another form.
    """
    refuse_errors(reply)
    match reply:
        case {"prompt_logprobs": [first, *places]} if places:
            pass
        case {"choices": [*_]}:
            raise NoScores("its replies hold no prompt_logprobs")
        case _:
            raise ForeignReply(str(reply))
    try:
        entries = [next(iter(place.items())) for place in places]
        if any(len(place) != 1 for place in places):
            raise NoScores("its prompt_logprobs hold more than the tokens of the prompt")
        ids = (-1 if not first else int(next(iter(first))), *(int(name) for name, _ in entries))
        logprobs = (0.0, *(float(entry["logprob"]) for _, entry in entries))
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError):
        raise NoScores("its prompt_logprobs have another form than vLLM's") from None
    return PromptTokens(ids, tuple(-math.inf if value < _FOREVER else value for value in logprobs))


async def find_frame(tokens_of: Callable[[list[Message], bool], Awaitable[PromptTokens]]) -> AnswerFrame:
    """Finds out between which tokens the server's chat template puts an answer.

    Args:
        tokens_of: returns the tokens of a conversation; the second argument says whether the model's turn is opened at its end.

    Raises:
        NoScores: the template changes answers, or writes an answer in another way than the model has to generate it.
    """
    question: list[Message] = [{"role": "user", "content": "a"}]
    before = (await tokens_of(question, False)).ids
    opened = (await tokens_of(question, True)).ids
    spaced, other, plain = [
        (await tokens_of([*question, {"role": "assistant", "content": text}], False)).ids for text in (" a", " b", "a")
    ]
    common = next((n for n, (x, y) in enumerate(zip(reversed(spaced), reversed(other), strict=False)) if x != y), 0)
    if spaced == plain:
        raise NoScores("its chat template takes the space before an answer away")
    if opened[: len(before)] != before or len(opened) == len(before) or spaced[: len(opened)] != opened or not common:
        raise NoScores("its chat template writes answers in another way than the model generates them")
    return AnswerFrame(opened[len(before) :], spaced[len(spaced) - common :])
