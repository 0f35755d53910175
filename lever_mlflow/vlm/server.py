"""Asks a frozen VLM on a server that is compatible with OpenAI's interface, with many requests at a time.

The interface has no beam search, so answers are greedy. It does not tell anything about weights: the model is known by the name
that the server gives it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lever_mlflow.exceptions import ParameterError, ServerError
from lever_mlflow.files.images import TOKEN_SIDE, fitted_image, image_digest, png_data_url
from lever_mlflow.settings import AUTO
from lever_mlflow.vlm.profiles import PROFILES, SERVER_PROFILE, PromptProfile
from lever_mlflow.vlm.prompt import Prompt, build_messages, prompt_key, with_image_urls

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

__all__ = ["ServerVLM", "is_server"]

_API_KEY = "OPENAI_API_KEY"  # environment variable
_NO_KEY = "none"  # the client requires a key, and servers without keys take any
_LISTED = 20  # most names that an error message lists
_CHECK_RETRIES = 2  # few, so that a wrong URL is reported soon
_GIVE_URL = "give the URL of an OpenAI-compatible server, such as vlm=http://127.0.0.1:8000/v1"


def is_server(vlm: str) -> bool:
    """Returns whether the name of a VLM is the URL of a server."""
    return vlm.lower().startswith(("http://", "https://"))


class ServerVLM:
    """Answers prompts with a model on a server, which is first contacted when the model's name or an answer is needed.

    The key is read from the environment variable ``OPENAI_API_KEY``; servers without keys need none.

    Args:
        url: the base URL, which usually ends in ``/v1``.
        name: the model's name on the server, or ``auto`` for the only model that it has.
        profile: texts, image sizes and generation settings; its number of beams must be 1.
        concurrency: most requests at a time.
        retries: how often a request is repeated, after growing pauses, when it fails with status 429 or 5xx or cannot connect.

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
    ) -> None:
        _check_url(url)
        self.url, self.name, self.concurrency, self.retries = url.rstrip("/"), name, concurrency, retries
        self.profile = profile
        self._api_key = os.environ.get(_API_KEY, "").strip() or _NO_KEY
        if not (self._api_key.isascii() and self._api_key.isprintable()):
            raise ParameterError(f"{_API_KEY}: holds characters that cannot be part of a key; set it again")
        self._data_url = lru_cache(maxsize=64)(self._encoded_image)

    @cached_property
    def card(self) -> dict[str, Any]:
        """Asks the server for its description of the model, once.

        Raises:
            ServerError: the server cannot be reached, or is not compatible with OpenAI's interface.
            ParameterError: the server has no such model, or several and none is named.
        """
        return _choose(asyncio.run(self._models()), self.name, self.url)

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

    @property
    def recorded(self) -> dict[str, Any]:
        """Returns what runs log of the model beside its name and digests."""
        return {"vlm_served": self.model}

    def key(self, prompt: Prompt) -> str:
        """Returns a digest of all that can be known of what the answer to a prompt depends on."""
        return prompt_key(prompt, self.profile, self.digest, image_digest)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """Yields answers as they come, in lists of (position in ``prompts``, text). A reply without text is an empty answer.

        Raises:
            ServerError: a request fails in spite of all retries; answers that arrived with the failure are yielded first.
            DataError: an image does not decode.
        """
        _ = self.card  # asked for now, as that takes an event loop of its own
        waiting = enumerate(prompts)
        running: dict[asyncio.Task[str], int] = {}
        with asyncio.Runner() as runner:
            client = self._client(self.retries)
            try:
                while done := runner.run(self._finished(client, waiting, running)):
                    if answers := [(running[task], task.result()) for task in done if not task.exception()]:
                        yield answers
                    for task in done:
                        running.pop(task)
                        task.result()  # raises the error of a request that failed
            finally:
                runner.run(_stop(client, running))

    async def _finished(
        self, client: AsyncOpenAI, waiting: Iterator[tuple[int, Prompt]], running: dict[asyncio.Task[str], int]
    ) -> set[asyncio.Task[str]]:
        """Starts as many requests as are allowed, waits until some are done, and returns those; none when nothing is left."""
        for position, prompt in islice(waiting, self.concurrency - len(running)):
            running[asyncio.create_task(self._answer(client, prompt))] = position
        if not running:
            return set()
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        return done

    async def _answer(self, client: AsyncOpenAI, prompt: Prompt) -> str:
        """Sends one request and returns the answer in the reply."""
        messages: Any = await asyncio.to_thread(self._messages, prompt)
        limit = self.profile.max_new_tokens
        create = client.chat.completions.with_raw_response.create
        reply = await self._reply(create(model=self.model, messages=messages, temperature=0, max_tokens=limit))
        match reply:
            case {"choices": [{"message": {"content": str(text)}}, *_]}:
                return text
            case {"choices": [{"message": {**message}}, *_]} if message.get("content") is None:  # a refusal
                return ""
        raise self._foreign(reply)

    async def _models(self) -> list[dict[str, Any]]:
        """Returns the descriptions of all models on the server."""
        client = self._client(_CHECK_RETRIES)
        try:
            reply = await self._reply(client.models.with_raw_response.list())
        finally:
            await client.close()
        match reply:
            case {"data": [*cards]} if all(isinstance(card, dict) and isinstance(card.get("id"), str) for card in cards):
                return cards
        raise self._foreign(reply)

    async def _reply(self, request: Any) -> Any:
        """Awaits a request and returns the JSON of the reply, which the client by itself would not check."""
        from openai import APIError

        try:
            text = (await request).text
        except APIError as error:
            raise ServerError(f"{self.url}: {_explained(error)}") from None
        try:
            return json.loads(text)
        except ValueError:
            raise self._foreign(text) from None

    def _foreign(self, reply: Any) -> ServerError:
        text = reply if isinstance(reply, str) else json.dumps(reply)
        return ServerError(f"{self.url}: does not speak the OpenAI protocol (it answered {_brief(text)!r}); {_GIVE_URL}")

    def _client(self, retries: int) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        return AsyncOpenAI(base_url=self.url, api_key=self._api_key, max_retries=retries)

    def _messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        """Returns the prompt as chat messages of OpenAI's interface, images as data URLs."""
        return with_image_urls(build_messages(*prompt, self.profile), lambda path: self._data_url(Path(path)))

    def _encoded_image(self, path: Path) -> str:
        """Returns the image in the size in which the local VLM would see it, without loss, as a data URL."""
        return png_data_url(fitted_image(path, self.profile.min_pixels, self.profile.max_pixels))


async def _stop(client: AsyncOpenAI, running: dict[asyncio.Task[str], int]) -> None:
    """Cancels the requests that are running, and closes the client."""
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await client.close()


def _check_url(url: str) -> None:
    """Raises ParameterError for a text that is no base URL, or holds secrets, as the URL is recorded with each run."""
    try:
        parts = urlsplit(url)
        usable = bool(is_server(url) and parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ParameterError(f"vlm={url}: not a URL; {_GIVE_URL}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ParameterError(f"vlm: the URL holds more than host, port and path; a key goes into {_API_KEY}; {_GIVE_URL}")


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


def _explained(error: APIError) -> str:
    """Returns why a request failed, and what to do about it."""
    from openai import APIStatusError, APITimeoutError

    if not isinstance(error, APIStatusError):
        cause = "no answer in time" if isinstance(error, APITimeoutError) else _brief(str(error.__cause__ or error))
        return f"cannot be reached ({cause}); start the server, or {_GIVE_URL}"
    status = error.status_code
    if status in (401, 403):  # the server's message is not shown, as it may hold the key
        return f"status {status}, the key is refused; set {_API_KEY} to one that it takes"
    reason = f"status {status}: {_brief(_message(error))}"
    if status == 404:
        return f"{reason}; {_GIVE_URL}"
    if status == 429 or status >= 500:
        return f"{reason}; look at the server's log and start again: answers so far are kept"
    return f"{reason}; the server does not take the request: look at its limits on length and images, or use fewer shots"


def _message(error: Any) -> str:
    """Returns the server's message in a refusal, or the whole text where there is none."""
    match error.body:
        case {"message": str(message)} | {"detail": str(message)}:
            return message
    return str(error.response.text)


def _brief(text: str) -> str:
    """Returns a text in one line of at most 200 characters and dots."""
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:200]}..."
