"""Makes the invisible characters of a text visible where they could change what stands around them.

Texts from files, servers and tracking stores are shown in terminals, logs and pages. Among their characters may be some that
move the cursor, colour or hide what follows, or reverse its order. They are shown as Python would write them in a string.
"""

from __future__ import annotations

import re

__all__ = ["without_controls"]

# All control characters but tab and line feed; the separators of lines and paragraphs; halves of surrogate pairs; and the
# characters with the property Bidi_Control (Unicode Standard Annex #9), an attack by https://trojansource.codes.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def without_controls(text: str) -> str:
    r"""Returns a text in which each control character stands as its escape, such as ``\x1b``; tabs and line feeds stay."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
