"""Reads the address of a VLM server in the forms in which people paste it, and brings them into one form.

``localhost:8000``, ``http://localhost:8000/``, ``http://localhost:8000/v1/models`` and ``HTTP://LOCALHOST:8000/v1/chat/completions``
all become ``http://localhost:8000/v1``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.files.urls import is_secret

__all__ = ["API_KEY", "GIVE_URL", "ServerAddress", "is_server", "server_address"]

API_KEY = "OPENAI_API_KEY"  # environment variable
GIVE_URL = "give the URL of an OpenAI-compatible server, such as vlm=http://127.0.0.1:8000/v1"

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:/|https?:|https?/+", re.IGNORECASE)
_HOST_AND_PORT = re.compile(r"(?:[\w.-]+|\[[0-9a-f:.]+\]):\d+(?:[/?#].*)?|localhost(?:[/?#].*)?", re.IGNORECASE)
_HOST_AND_VERSION = re.compile(r"[\w-]+(?:\.[\w-]+)+/(?:[^\s]+/)?v\d+(?:/.*)?", re.IGNORECASE)
_USER_AND_HOST = re.compile(r"[^\s/@]+:\S*@\S+")
# Pages and endpoints of servers that people paste instead of the base URL.
_ENDPOINT = re.compile(
    r"/(?:chat/completions|completions|responses|embeddings|tokenize|models(?:/.*)?|docs|redoc|health|metrics|openapi\.json)$"
)
_VERSIONED = re.compile(r"/v\d+\w*$|/openai$|/openai/deployments/[^/]+$")
_DEPLOYMENT = re.compile(r"/openai/deployments/([^/]+)$")
_PORTS = {"http": 80, "https": 443}


class ServerAddress(NamedTuple):
    """Holds where a server is.

    Attributes:
        url: the base URL in its one form, with its query; it is shown and recorded.
        bases: base URLs without query under which the server may be found, the likeliest first.
        query: parameters that every request carries, such as the ``api-version`` of Azure.
        deployment: the model that an address of Azure's classic form names; empty in other addresses.
    """

    url: str
    bases: tuple[str, ...]
    query: Mapping[str, str]
    deployment: str = ""


def is_server(vlm: str) -> bool:
    """Returns whether the name of a VLM is the address of a server, also one that has a mistake in it."""
    name = vlm.strip()
    if _SCHEME.match(name) or _USER_AND_HOST.fullmatch(name):
        return True
    return bool(_HOST_AND_PORT.fullmatch(name) or _HOST_AND_VERSION.fullmatch(name)) and not Path(name).expanduser().exists()


def server_address(vlm: str) -> ServerAddress:
    """Reads the address of a server.

    A scheme that is missing is http. Spaces around the address, slashes at its end, the name of an endpoint such as
    ``chat/completions``, a default port and a fragment are left out. An address without path gets ``/v1``.

    Raises:
        ParameterError: the address is no URL, or holds a password or key, which the message does not show.
    """
    name = vlm.strip()
    if not _SCHEME.match(name) and not _USER_AND_HOST.fullmatch(name) and _HOST_AND_VERSION.fullmatch(name):
        raise ParameterError(f"vlm={name}: lacks http:// or https://; {GIVE_URL}")
    parts = _split(name if "://" in name else f"http://{name}")
    if parts is None or (_SCHEME.match(name) and "://" not in name):
        raise ParameterError(f"vlm{'' if '@' in name or '?' in name else f'={name}'}: not a URL of http or https; {GIVE_URL}")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.username or parts.password or "@" in parts.netloc or any(map(is_secret, query)):
        raise ParameterError(
            f"vlm: the URL holds a password or key, which runs would record; a key goes into {API_KEY}; {GIVE_URL}"
        )
    root, path = f"{parts.scheme}://{_netloc(parts)}", _base_path(parts.path)
    if path in ("", "/v1"):
        paths: tuple[str, ...] = ("/v1", "")
    else:
        paths = (path,) if _VERSIONED.search(path) else (path, f"{path}/v1")
    shown = f"{root}{paths[0]}" + (f"?{urlencode(query)}" if query else "")
    deployment = _DEPLOYMENT.search(path)
    return ServerAddress(shown, tuple(root + p for p in paths), query, unquote(deployment[1]) if deployment else "")


def _split(url: str) -> SplitResult | None:
    """Returns the parts of a URL; None for a text that is no URL of a server."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if usable and not re.search(r"\s", url) else None


def _netloc(parts: SplitResult) -> str:
    """Returns host and port in lower case, without the port that the scheme implies."""
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    return f"{host}" if parts.port in (None, _PORTS[parts.scheme]) else f"{host}:{parts.port}"


def _base_path(path: str) -> str:
    """Returns a path without slashes at its end, doubled slashes and names of endpoints."""
    path = re.sub("/+", "/", path).rstrip("/")
    while (shorter := _ENDPOINT.sub("", path).rstrip("/")) != path:
        path = shorter
    return path
