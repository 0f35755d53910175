"""Makes names of folders and hub names that people can read, and names that tell them apart."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

__all__ = ["full_name", "readable_name"]

_LONGEST = 60  # characters of a readable name
_NAMELESS = "unnamed"


def readable_name(full_name: str) -> str:
    """Returns the last part of a name in small ASCII letters, digits and hyphens, which several names may share.

    Accents are left out. A name without any such letter or digit is ``unnamed``.
    """
    plain = unicodedata.normalize("NFKD", Path(full_name).name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-").lower()[:_LONGEST].strip("-") or _NAMELESS


def full_name(name: str) -> str:
    """Returns a name that nothing else has: the whole path of a folder; a name on the hub is returned as it is."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() or folder.is_absolute() else name
