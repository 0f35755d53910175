"""The frozen VLM behind an OpenAI-compatible server: prompts in, answers out, many requests at a time.

The protocol knows no beams, so answers are greedy, and it says nothing about weights: what is known of the model is the name
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
from lever_mlflow.files.images import fitted_image, image_digest, png_data_url
from lever_mlflow.vlm.prompt import PROFILES, Prompt, PromptProfile, build_messages, prompt_key, with_image_urls

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

__all__ = ["AUTO", "ServerVLM", "is_server"]

AUTO = "auto"
_API_KEY = "OPENAI_API_KEY"
_NO_KEY = "none"  # the client insists on a key, servers without keys take any
_LISTED = 20  # names that an error message lists at most
_CHECK_RETRIES = 2  # a wrong URL should not take long to be told
_GIVE_URL = "give the URL of an OpenAI-compatible server, such as vlm=http://127.0.0.1:8000/v1"


def is_server(vlm: str) -> bool:
    """Whether the name of a VLM is the URL of a server."""
    return vlm.lower().startswith(("http://", "https://"))


class ServerVLM:
    """A model on a server; the server is first contacted when the model's name or an answer is needed.

    The key is read from ``OPENAI_API_KEY``; servers without keys need none.

    Args:
        url: the base URL, which usually ends in ``/v1``.
        name: the model's name on the server, or ``auto``: the only one it has.
        profile: a key of ``lever_mlflow.prompt.PROFILES``; its number of beams must be 1.
        concurrency: requests under way at a time.
        retries: further tries, after growing pauses, of a request that fails by 429, 5xx or the connection.

    Raises:
        ParameterError: the URL or the key cannot be used.
    """

    def __init__(self, url: str, name: str = AUTO, profile: str = "openai", concurrency: int = 16, retries: int = 6) -> None:
        _check_url(url)
        self.url, self.name, self.concurrency, self.retries = url.rstrip("/"), name, concurrency, retries
        self.profile: PromptProfile = PROFILES[profile]
        self._api_key = os.environ.get(_API_KEY, "").strip() or _NO_KEY
        if not (self._api_key.isascii() and self._api_key.isprintable()):
            raise ParameterError(f"{_API_KEY}: holds characters that cannot be part of a key; set it again")
        self._data_url = lru_cache(maxsize=64)(self._encoded_image)

    @cached_property
    def card(self) -> dict[str, Any]:
        """What the server says about the model.

        Raises:
            ServerError: it cannot be reached, or is no OpenAI-compatible server.
            ParameterError: it has no such model, or several and none is named.
        """
        return _choose(asyncio.run(self._models()), self.name, self.url)

    @property
    def model(self) -> str:
        """The model's name on the server."""
        return str(self.card["id"])

    @property
    def digest(self) -> str:
        """Names the model, wherever it is served: by its name and, where the server tells them, by the origin of its weights.

        ``root`` is where vLLM read the weights, ``parent`` the model that an adapter extends. Other entries change with
        each start of the server.
        """
        known = {"id": self.model} | {k: v for k in ("root", "parent") if (v := self.card.get(k)) not in (None, self.model)}
        slug = re.sub(r"[^a-z0-9]+", "-", self.model.rsplit("/", 1)[-1].lower()).strip("-")
        return f"{slug[:40]}-{hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]}"

    @property
    def recorded(self) -> dict[str, Any]:
        """What runs log of it beside its name and digests."""
        return {"vlm_served": self.model}

    def key(self, prompt: Prompt) -> str:
        """Names the answer to ``prompt`` by everything it depends on that can be known."""
        return prompt_key(prompt, self.profile, self.digest, image_digest)

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, str]]]:
        """Answers as they come, as lists of (position in ``prompts``, text); no text at all is the empty text.

        Raises:
            ServerError: a request fails for good; answers that came with the failure are given first.
            DataError: an image does not decode.
        """
        _ = self.card  # asking for it takes an event loop of its own
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
                        task.result()  # raises what went wrong
            finally:
                runner.run(_stop(client, running))

    async def _finished(
        self, client: AsyncOpenAI, waiting: Iterator[tuple[int, Prompt]], running: dict[asyncio.Task[str], int]
    ) -> set[asyncio.Task[str]]:
        """Starts as many requests as there are places, and waits until some are done; none are when all have been."""
        for position, prompt in islice(waiting, self.concurrency - len(running)):
            running[asyncio.create_task(self._answer(client, prompt))] = position
        if not running:
            return set()
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        return done

    async def _answer(self, client: AsyncOpenAI, prompt: Prompt) -> str:
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
        """The JSON that a request is answered with; the client's own reading lets anything pass as an answer."""
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
        said = reply if isinstance(reply, str) else json.dumps(reply)
        return ServerError(f"{self.url}: does not speak the OpenAI protocol (it said {_brief(said)!r}); {_GIVE_URL}")

    def _client(self, retries: int) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        return AsyncOpenAI(base_url=self.url, api_key=self._api_key, max_retries=retries)

    def _messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        """The prompt in the protocol's form, images as data URLs."""
        return with_image_urls(build_messages(*prompt, self.profile), lambda path: self._data_url(Path(path)))

    def _encoded_image(self, path: Path) -> str:
        """The image as the local VLM would show it, without loss."""
        return png_data_url(fitted_image(path, self.profile.min_pixels, self.profile.max_pixels))


async def _stop(client: AsyncOpenAI, running: dict[asyncio.Task[str], int]) -> None:
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await client.close()


def _check_url(url: str) -> None:
    """Refuses what is no base URL, and secrets in it: the URL is recorded with each run."""
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
    """The card of the model called ``name``, or the only one."""
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
    """Why a request failed, and what to do."""
    from openai import APIStatusError, APITimeoutError

    if not isinstance(error, APIStatusError):
        reason = "no answer in time" if isinstance(error, APITimeoutError) else _brief(str(error.__cause__ or error))
        return f"cannot be reached ({reason}); start the server, or {_GIVE_URL}"
    status = error.status_code
    if status in (401, 403):  # what such a server says may hold the key
        return f"status {status}, the key is refused; set {_API_KEY} to one that it takes"
    said = f"status {status}: {_brief(_message(error))}"
    if status == 404:
        return f"{said}; {_GIVE_URL}"
    if status == 429 or status >= 500:
        return f"{said}; look at the server's log and start again: answers so far are kept"
    return f"{said}; the server does not take the request: look at its limits on length and images, or use fewer shots"


def _message(error: Any) -> str:
    """What the server said, without what is around it."""
    match error.body:
        case {"message": str(said)} | {"detail": str(said)}:
            return said
    return str(error.response.text)


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:200]}..."
