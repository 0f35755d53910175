"""Sends requests to a VLM server, repeats them where a failure may pass, and explains failures that do not pass.

Neither time limits nor repetitions are left to the client library, whose defaults would multiply to more than an hour.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import count
from time import time
from typing import TYPE_CHECKING, Any, TypeVar

from lever_mlflow.exceptions import ServerError
from lever_mlflow.files.urls import without_secrets
from lever_mlflow.vlm.server_address import API_KEY, GIVE_URL, ServerAddress
from lever_mlflow.vlm.server_advice import advice, refused_parameter
from lever_mlflow.vlm.server_replies import FailedReply, ForeignReply, brief, read_models

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

__all__ = ["NO_KEY", "Connection", "Message", "RefusedRequest"]

T = TypeVar("T")
Message = dict[str, Any]  # of OpenAI's interface

NO_KEY = "none"  # the client requires a key, and servers without keys take any
_LONGEST_PAUSE = 60.0  # seconds
_LIST_SECONDS, _LIST_RETRIES = 10, 2  # for the list of models, so that a wrong URL is reported soon
_LIMIT, _NEW_LIMIT, _TEMPERATURE = "max_tokens", "max_completion_tokens", "temperature"  # parameters of a request
_KEPT = "look at the server's log and start again: answers so far are kept"


log = logging.getLogger(__name__)


class RefusedRequest(ServerError):
    """Says that the server does not take a request; ``server_message`` is its message with the parameter that it names."""

    def __init__(self, message: str, status: int, server_message: str) -> None:
        super().__init__(message)
        self.status, self.server_message = status, server_message


class Connection:
    """Asks a server for its models and for chat completions, in one event loop or in several, one after the other.

    Args:
        address: where the server is.
        key: the key, which no error shows.
        seconds: longest time for an answer.
        retries: how often a request is repeated, after growing pauses, when it fails with status 408, 409, 429 or 5xx, cannot
            connect, or when the reply is none. After a time-out it is repeated once.
        new_tokens: most tokens of an answer.

    Attributes:
        options: parameters of each request for a chat completion, which adapt to what the server takes.
        failures: how many requests failed and were repeated.
    """

    def __init__(self, address: ServerAddress, key: str, seconds: float, retries: int, new_tokens: int) -> None:
        self.address, self.key, self.seconds, self.retries = address, key, seconds, retries
        self.options: dict[str, Any] = {_TEMPERATURE: 0, _LIMIT: new_tokens}
        self.failures = 0
        self._base = address.bases[0]

    @property
    def adapted(self) -> bool:
        """Returns whether the server does not take the usual parameters."""
        return set(self.options) != {_TEMPERATURE, _LIMIT}

    def client(self) -> AsyncOpenAI:
        """Returns a client for the present event loop, without time limits and repetitions of its own."""
        from openai import AsyncOpenAI

        azure = {"api-key": self.key} if self.address.deployment else {}
        query: Any = self.address.query
        settings: Any = {"timeout": None, "max_retries": 0, "default_query": query, "default_headers": azure}
        return AsyncOpenAI(base_url=self._base, api_key=self.key, **settings)

    async def models(self, name: str) -> list[dict[str, Any]]:
        """Returns the server's descriptions of its models, and finds out under which base URL the server is.

        Args:
            name: the model's name where the user or the address gives it, else empty. A server without a list is taken to have
                this model.

        Raises:
            ServerError: the server cannot be reached, or is not compatible with OpenAI's interface.
        """
        missing: RefusedRequest | None = None
        for base in self.address.bases:
            self._base = base
            client = self.client()
            try:
                return await self._send(client.models.with_raw_response.list, read_models, _LIST_SECONDS, _LIST_RETRIES)
            except RefusedRequest as error:
                if error.status not in (404, 405):
                    raise
                missing = missing or error
            finally:
                await client.close()
        self._base = self.address.bases[0]
        assert missing is not None, "every server has an address"
        if not name:
            raise missing
        return [{"id": name}]

    async def chat(
        self,
        client: AsyncOpenAI,
        model: str,
        messages: list[Message],
        read: Callable[[Any], T],
        *,
        new_tokens: int | None = None,
        **further: Any,
    ) -> T:
        """Asks for a chat completion and returns what ``read`` makes of the reply.

        A parameter that the server does not take is left out or gets its new name, in this request and all later ones.

        Args:
            client: of the present event loop.
            model: name on the server.
            messages: the conversation.
            read: makes a value of the reply's JSON, or raises FailedReply or ForeignReply.
            new_tokens: most tokens of the reply, where they are not those of an answer.
            further: arguments of the client.

        Raises:
            RefusedRequest: the server does not take the request. ServerError: it fails in spite of all repetitions.
        """
        create: Any = client.chat.completions.with_raw_response.create
        while True:
            options = self.options
            sent = {name: value if name == _TEMPERATURE else new_tokens or value for name, value in options.items()}
            request = partial(create, model=model, messages=messages, **sent, **further)
            try:
                return await self._send(request, read, self.seconds, self.retries, _images(messages))
            except RefusedRequest as refusal:
                if options == self.options and not self._adapt(refusal.server_message):
                    raise

    def _adapt(self, message: str) -> bool:
        """Changes the parameters of further requests so that they meet a refusal; returns whether that is possible."""
        match refused_parameter(message, tuple(self.options)):
            case "max_tokens":
                self.options = {_NEW_LIMIT if name == _LIMIT else name: value for name, value in self.options.items()}
            case "temperature":
                self.options = {name: value for name, value in self.options.items() if name != _TEMPERATURE}
                log.warning(
                    "%s: takes no temperature, so it samples answers, and the cache keeps the first of each", self.address.url
                )
            case _:
                return False
        return True

    async def _send(
        self, request: Callable[[], Awaitable[Any]], read: Callable[[Any], T], seconds: float, retries: int, images: int = 0
    ) -> T:
        """Sends a request until there is a reply, and returns what ``read`` makes of it; errors as ``chat``."""
        from openai import APIError

        for attempt in count():
            try:
                async with asyncio.timeout(seconds):
                    text = (await request()).text
                return read(_parsed(text))
            except (APIError, TimeoutError, FailedReply, ForeignReply) as error:
                allowed = min(retries, 1) if isinstance(error, TimeoutError) else retries
                if attempt >= allowed or not _may_pass(error):
                    raise self._explained(error, seconds, images) from None
                self.failures += 1
                await asyncio.sleep(_pause(error, attempt))
        raise AssertionError("the loop ends by itself")

    def _explained(self, error: Exception, seconds: float, images: int) -> ServerError:
        """Returns the error for the user, which says why a request failed and what to do about it."""
        from openai import APIStatusError

        if isinstance(error, APIStatusError):
            return self._of_status(error, images)
        if isinstance(error, FailedReply):
            remedy = advice(str(error), images) or _KEPT
            return self._error(f"answered with an error and status 200: {brief(self._shown(str(error)))}; {remedy}")
        if isinstance(error, ForeignReply):
            return self._error(
                f"does not speak the OpenAI protocol (it answered {brief(self._shown(str(error)))!r}); {GIVE_URL}"
            )
        if isinstance(error, TimeoutError):
            limit = " (vlm_timeout)" if seconds == self.seconds else ""
            return self._error(f"gives no answer within {seconds:g} s{limit}; {_KEPT}")
        cause = brief(self._shown(str(error.__cause__ or error)))
        return self._error(f"cannot be reached ({cause}); start the server, or {GIVE_URL}")

    def _of_status(self, error: APIStatusError, images: int) -> ServerError:
        status, message = error.status_code, _message(error)
        if status in (401, 403):  # the server's message is not shown, as it may hold the key
            return self._error(f"status {status}, the key is refused; set {API_KEY} to one that it takes")
        reason = f"status {status}: {brief(self._shown(message))}"
        remedy = advice(message, images)
        if status == 429 or status >= 500:
            return self._error(f"{reason}; {remedy or _KEPT}")
        if status in (404, 405) and not remedy:
            return RefusedRequest(f"{self.address.url}: {reason}; {GIVE_URL}", status, message)
        shown = remedy or "the server does not take the request: look at what it says and at its log"
        return RefusedRequest(f"{self.address.url}: {reason}; {shown}", status, f"{message} {_parameter(error)}")

    def _error(self, message: str) -> ServerError:
        return ServerError(f"{self.address.url}: {message}")

    def _shown(self, text: str) -> str:
        """Returns a text without the key and other secrets."""
        return without_secrets(text if self.key == NO_KEY else text.replace(self.key, "***"))


def _images(messages: list[Message]) -> int:
    """Returns how many images a conversation holds."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return sum(part["type"] == "image_url" for part in parts)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ForeignReply(text) from None


def _may_pass(error: Exception) -> bool:
    """Returns whether the same request may succeed later: all failures but refusals, which have status 4xx."""
    from openai import APIStatusError

    if not isinstance(error, APIStatusError):
        return True
    return error.status_code in (408, 409, 429) or error.status_code >= 500


def _pause(error: Exception, attempt: int) -> float:
    """Returns how many seconds to wait before a request is repeated: as the server asks, or half a second doubled each time."""
    from openai import APIStatusError

    seconds = _retry_after(error.response.headers) if isinstance(error, APIStatusError) else None
    if seconds is not None and 0 <= seconds <= _LONGEST_PAUSE:
        return seconds
    return min(0.5 * 2.0**attempt, 8.0) * random.uniform(0.75, 1.0)  # requests that failed together do not come back together


def _retry_after(headers: Any) -> float | None:
    """Returns the seconds in a reply's headers ``retry-after-ms`` or ``retry-after``, which may also hold a date."""
    try:
        if "retry-after-ms" in headers:
            return float(headers["retry-after-ms"]) / 1000
        text = headers.get("retry-after", "")
        return float(text) if re.fullmatch(r"[\d.]+", text) else parsedate_to_datetime(text).timestamp() - time()
    except (TypeError, ValueError):
        return None


def _message(error: Any) -> str:
    """Returns the server's message in a refusal, or the whole text where there is none."""
    match error.body:
        case {"message": str(message)} | {"detail": str(message)} | {"error": str(message)} | str(message):
            return message
    return str(error.response.text)


def _parameter(error: Any) -> str:
    """Returns the name of the parameter that a refusal complains about; empty where it names none."""
    match error.body:
        case {"param": str(name)}:
            return name
    return ""
