"""Asks a frozen VLM on a server that is compatible with OpenAI's interface, with many requests at a time.

The interface has no beam search, so answers are greedy. It does not tell anything about weights: the model is known by the name
that the server gives it. How requests are sent is in ``server_requests``, and how replies are read in ``server_replies``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from lever_mlflow.exceptions import ParameterError, ServerError
from lever_mlflow.files.images import TOKEN_SIDE, fitted_image, image_digest, png_data_url
from lever_mlflow.settings import AUTO, ResourceSettings
from lever_mlflow.vlm.profiles import PROFILES, SERVER_PROFILE, PromptProfile
from lever_mlflow.vlm.prompt import Prompt, build_messages, plain_text, prompt_key, score_key, with_image_urls
from lever_mlflow.vlm.server_address import API_KEY, server_address
from lever_mlflow.vlm.server_replies import ServedAnswer, Tally, read_answer
from lever_mlflow.vlm.server_requests import NO_KEY, Connection, Message, RefusedRequest
from lever_mlflow.vlm.server_scores import AnswerFrame, NoScores, PromptTokens, find_frame, read_prompt_tokens

__all__ = ["ServerVLM"]

T = TypeVar("T")

_LISTED = 20  # most names that an error message lists
_LONG_WAIT = 30.0  # seconds without any answer after which the log says what is waited for

log = logging.getLogger(__name__)


class ServerVLM:
    """Answers prompts with a model on a server, which is first contacted when the model's name or an answer is needed.

    The key is read from the environment variable ``OPENAI_API_KEY``; servers without keys need none.

    Args:
        url: the address, in any form that ``server_address`` takes.
        name: the model's name on the server, or ``auto`` for the only model that it has.
        profile: texts, image sizes and generation settings; its number of beams must be 1.
        concurrency: most requests at a time.
        retries: how often a request is repeated, after growing pauses, when it fails in a way that may pass.
        timeout: longest time for an answer, in seconds.
        max_poor_answers: largest share of answers that may be cut or without text.

    Raises:
        ParameterError: the URL or the key cannot be used.
    """

    def __init__(
        self,
        url: str,
        name: str = AUTO,
        profile: PromptProfile = PROFILES[SERVER_PROFILE],
        concurrency: int = 16,
        retries: int = 6,
        timeout: float = ResourceSettings.vlm_timeout,
        max_poor_answers: float = ResourceSettings.max_poor_answers,
    ) -> None:
        self._address = server_address(url)
        self.url, self.name, self.concurrency, self.profile = self._address.url, name, concurrency, profile
        self.max_poor_answers = max_poor_answers
        api_key = os.environ.get(API_KEY, "").strip() or NO_KEY
        if not (api_key.isascii() and api_key.isprintable()):
            raise ParameterError(f"{API_KEY}: holds characters that cannot be part of a key; set it again")
        self._connection = Connection(self._address, api_key, timeout, retries, profile.max_new_tokens)
        self._tally = Tally()
        self._data_url = lru_cache(maxsize=64)(self._encoded_image)

    @cached_property
    def card(self) -> dict[str, Any]:
        """Asks the server for its description of the model, once.

        Raises:
            ServerError: the server cannot be reached, or is not compatible with OpenAI's interface.
            ParameterError: the server has no such model, or several and none is named.
        """
        known = self._address.deployment if self.name == AUTO else self.name
        return _choose(asyncio.run(self._connection.models(known)), known or AUTO, self.url)

    @property
    def model(self) -> str:
        """Returns the model's name on the server."""
        return str(self.card["id"])

    @property
    def digest(self) -> str:
        """Returns a digest of the model's name and, where the server gives it, of the origin of its weights.

        It is the same wherever the model is served. Of the server's description, ``root`` is where vLLM read the weights, and
        ``parent`` the model that an adapter extends. Other entries change with each start of the server.
        """
        origin = {k: v for k in ("root", "parent") if (v := self.card.get(k)) not in (None, self.model)}
        known = {"id": self.model} | origin
        slug = re.sub(r"[^a-z0-9]+", "-", self.model.rsplit("/", 1)[-1].lower()).strip("-")
        return f"{slug[:40]}-{hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]}"

    @property
    def max_aspect(self) -> float:
        """Returns the aspect ratio from which on images are not sent, which is that of Qwen2.5-VL."""
        return min(200.0, self.profile.max_pixels / TOKEN_SIDE**2)

    def check(self) -> None:
        """Asks the server for its model; errors as ``card``."""
        _ = self.card

    def check_scores(self) -> None:
        """Finds out whether the server tells how probable given answers are.

        Raises:
            ParameterError: it does not. ServerError: it cannot be reached.
        """
        _ = self._frame

    @property
    def recorded(self) -> dict[str, Any]:
        """Returns what runs log of the model beside its name and digests."""
        changed = {"vlm_request": ", ".join(self._connection.options)} if self._connection.adapted else {}
        return {"vlm_served": self.model, **changed}

    @property
    def counts(self) -> dict[str, int]:
        """Counts the answers that this process received by kind, beside those with text, and the replies that failed."""
        poor = {str(kind): number for kind, number in self._tally.counts.items() if kind != "text"}
        return poor | ({"failed": self._connection.failures} if self._connection.failures else {})

    def key(self, prompt: Prompt) -> str:
        """Returns a digest of all that can be known of what the answer to a prompt depends on."""
        return prompt_key(prompt, self.profile, self.digest, image_digest)

    def score_key(self, prompt: Prompt) -> str:
        """Returns a digest of all that can be known of what the score of a prompt depends on."""
        return score_key(prompt, self.key(prompt))

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """Yields answers as they come, in lists of (position in ``prompts``, text).

        Answers without text come last, and cut ones not among the first: where there are too many of them, they are not given,
        so that no cache keeps them.

        Raises:
            ServerError: a request fails in spite of all repetitions, or too many answers are cut or without text; answers that
                arrived with the failure are yielded first.
            DataError: an image does not decode.
        """
        held_back: list[tuple[int, ServedAnswer]] = []
        for answers in self._each(prompts, self._answer):
            self._tally.counts.update(answer.kind for _, answer in answers)
            self._check_answers()
            held_back += answers
            released = ("text", "cut") if self._tally.telling else ("text",)
            if ready := [(position, answer.text) for position, answer in held_back if answer.kind in released]:
                yield ready
            held_back = [item for item in held_back if item[1].kind not in released]
        if held_back:
            yield [(position, answer.text) for position, answer in held_back]

    def score(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """Yields how probable right answers are after each prompt, the ``gt_prob`` of ``QwenVLM.score``, as they come.

        Raises:
            ParameterError, ServerError: as ``check_scores``. DataError: an image does not decode.
        """
        _ = self._frame  # asked for now, as that takes an event loop of its own
        yield from self._each(prompts, self._gt_prob)

    def _each(self, prompts: Sequence[Prompt], work: Callable[[Any, Prompt], Awaitable[T]]) -> Iterator[list[tuple[int, T]]]:
        """Yields (position, result) of work on prompts, which sends requests, as the results come."""
        _ = self.card  # asked for now, as that takes an event loop of its own
        waiting = enumerate(prompts)
        running: dict[asyncio.Task[T], int] = {}
        with asyncio.Runner() as runner:
            client = self._connection.client()
            try:
                while done := runner.run(self._finished(client, work, waiting, running)):
                    if results := [(running[task], task.result()) for task in done if not task.exception()]:
                        yield results
                    for task in done:
                        running.pop(task)
                        task.result()  # raises the error of a request that failed
            finally:
                runner.run(_stop(client, running))

    async def _finished(
        self,
        client: Any,
        work: Callable[[Any, Prompt], Awaitable[T]],
        waiting: Iterator[tuple[int, Prompt]],
        running: dict[asyncio.Task[T], int],
    ) -> set[asyncio.Task[T]]:
        """Starts as many requests as are allowed, waits until some are done, and returns those; none when nothing is left."""
        for position, prompt in islice(waiting, self.concurrency - len(running)):
            running[asyncio.ensure_future(work(client, prompt))] = position
        begun = time.monotonic()
        while running:
            done, _ = await asyncio.wait(running, timeout=_LONG_WAIT, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return done
            waited = time.monotonic() - begun
            log.warning(
                "%s: no answer for %.0f s, %d requests are waiting; an answer may take %g s (vlm_timeout)",
                *(self.url, waited, len(running), self._connection.seconds),
            )
        return set()

    async def _answer(self, client: Any, prompt: Prompt) -> ServedAnswer:
        """Sends one prompt and returns the answer in the reply."""
        messages = await asyncio.to_thread(self._messages, prompt)
        return await self._connection.chat(client, self.model, messages, read_answer)

    async def _gt_prob(self, client: Any, prompt: Prompt) -> str:
        """Sends a prompt with each right answer, and returns its ``gt_prob`` as text."""
        messages = await asyncio.to_thread(self._messages, prompt)
        total = 0.0
        for answer in dict.fromkeys(prompt.query.answers):
            turn = {"role": "assistant", "content": f" {plain_text(answer)}"}  # as in the demonstrations, a space comes first
            probability = await self._prompt_tokens(client, [*messages, turn], False, self._frame.read_probability)
            total += probability * prompt.query.accuracy(answer)
        return repr(total)

    @cached_property
    def _frame(self) -> AnswerFrame:
        """Finds out how the server's chat template frames an answer; errors as ``check_scores``."""
        _ = self.card
        try:
            return asyncio.run(self._found_frame())
        except (NoScores, RefusedRequest) as reason:
            raise ParameterError(
                f"gt_prob: {self.url} does not tell how probable answers are ({reason}); "
                "use vLLM, a local Qwen-VL or gt_prob=false"
            ) from None

    async def _found_frame(self) -> AnswerFrame:
        client = self._connection.client()

        async def tokens_of(messages: list[Message], opened: bool) -> PromptTokens:
            return await self._prompt_tokens(client, messages, opened, read_prompt_tokens)

        try:
            return await find_frame(tokens_of)
        finally:
            await client.close()

    async def _prompt_tokens(self, client: Any, messages: list[Message], opened: bool, read: Callable[[Any], T]) -> T:
        """Sends a conversation for the log probabilities of its own tokens, with the model's turn opened at its end or not."""
        extra = {"prompt_logprobs": 0, "add_generation_prompt": opened, "continue_final_message": False}
        return await self._connection.chat(client, self.model, messages, read, new_tokens=1, extra_body=extra)

    def _check_answers(self) -> None:
        """Raises ServerError where too many of the answers are cut or without text."""
        if self._tally.telling and self._tally.poor_share > self.max_poor_answers:
            raise ServerError(
                f"{self.url}: {self._tally.words}; {self._tally.remedy}. "
                f"A larger max_poor_answers than {self.max_poor_answers:g} lets the run go on"
            )

    def _messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        """Returns the prompt as chat messages of OpenAI's interface, images as data URLs."""
        return with_image_urls(build_messages(*prompt, self.profile), lambda path: self._data_url(Path(path)))

    def _encoded_image(self, path: Path) -> str:
        """Returns the image in the size in which the local VLM would see it, without loss, as a data URL."""
        return png_data_url(fitted_image(path, self.profile.min_pixels, self.profile.max_pixels))


async def _stop(client: Any, running: dict[asyncio.Task[Any], int]) -> None:
    """Cancels the requests that are running, and closes the client."""
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await client.close()


def _choose(cards: list[dict[str, Any]], name: str, url: str) -> dict[str, Any]:
    """Returns the description of the model of this name, or of the only model where the name is ``auto``."""
    names = sorted(card["id"] for card in cards)
    listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    if not cards:
        raise ParameterError(f"{url}: lists no model; start the server with one")
    if name == AUTO and len(cards) > 1:
        raise ParameterError(f"{url}: has several models; choose by vlm_model: {listed}")
    card = next((card for card in cards if name in (card["id"], AUTO)), None)
    if card is None:
        raise ParameterError(f"vlm_model={name}: {url} has no such model, only {listed}")
    return card
