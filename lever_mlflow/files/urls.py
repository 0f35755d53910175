"""Masks passwords and tokens that stand in URLs, wherever in a text the URLs are."""

from __future__ import annotations

import re

__all__ = ["MASK", "is_secret", "without_secrets"]

MASK = "***"
_SECRET = r"token|key|secret|pass|pwd|sig|credential|auth|session|odbc_connect"  # part of the names of secret values
# user and password, or a token alone; a URL that was taken for a path has one slash
_USER = re.compile(r"(?:(?<=://)|(?<=http:/)|(?<=https:/))[^\s/?#\"'<>]*@")
# a password with an unescaped slash: what follows the colon is no port
_USER_WITH_SLASH = re.compile(r"(?<=://)[^\s/@:\[\"'<>]*:(?!\d*(?:[/?#\s\"'<>]|$))[^\s@\"'<>]*@")
_VALUE = re.compile(rf"(?i)([?&;](?:amp;)?[\w.\-\[\]%]*(?:{_SECRET})[\w.\-\[\]%]*=)[^&\s#;\"'<>)]+")


def is_secret(name: str) -> bool:
    """Says whether a parameter of this name in the query of a URL usually holds a secret, such as ``api_key`` or ``sig``."""
    return re.search(_SECRET, name, re.IGNORECASE) is not None


def without_secrets(text: str) -> str:
    """Returns a text in which ``***`` stands for user and password of each URL, and for secret values of its query.

    ``http://user:password@host/?token=abc&page=2`` becomes ``http://***@host/?token=***&page=2``. A value is secret if its name
    says so, such as ``access_token``, ``X-Amz-Signature`` or ``sslpassword``. A user without a password is masked too, as hosts
    of code take a token in its place.
    """
    for user in (_USER, _USER_WITH_SLASH):
        text = user.sub(f"{MASK}@", text)
    return _VALUE.sub(rf"\g<1>{MASK}", text)
