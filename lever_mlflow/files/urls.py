"""Masks secrets in URLs, so that errors, logs, tags and parameters may show them."""

from __future__ import annotations

import re

__all__ = ["is_secret", "without_secrets"]

_MASK = "***"
_SECRET_NAMES = ("auth", "code", "credential", "key", "pass", "pwd", "secret", "sig", "token")
# A password may hold a slash that was not escaped. Digits behind a colon and before a slash are a port.
_USERINFO = re.compile(r"(?<=://)(?:[^\s/?#]*|[^\s/?#@:]*:(?!\d*[/?#])\S*)@")
_PARAMETER = re.compile(r"([?&;]([^=&;#\s]+)=)([^&;#\s'\"]+)")


def is_secret(name: str) -> bool:
    """Returns whether a parameter of this name in the query of a URL usually holds a secret, such as ``api_key`` or ``sig``."""
    return any(part in name.lower() for part in _SECRET_NAMES)


def without_secrets(text: str) -> str:
    """Returns a text in which the URLs show neither user and password nor the values of secret parameters.

    Everything else stays as it is, so that the text can be any message or a URL alone.
    """
    shown = _USERINFO.sub(f"{_MASK}@", text)
    return _PARAMETER.sub(lambda found: f"{found[1]}{_MASK if is_secret(found[2]) else found[3]}", shown)
