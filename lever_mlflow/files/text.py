"""Opens text files that users wrote, in the encoding that each file states, and says of any other file what it is.

A byte order mark at the beginning of a file states UTF-8, UTF-16 or UTF-32. A file without one is UTF-8. No other encoding is
guessed, because a wrong guess would change letters unnoticed.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

__all__ = ["EncodingError", "looked_for", "open_text", "read_text"]

_MARKS = {  # the mark of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_HEAD = 64  # bytes that tell what a file is


class EncodingError(UnicodeError):
    """Says that a file is no text, or is text in an encoding that it does not state."""


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Opens a text file for reading, without its byte order mark.

    Raises:
        OSError: the file cannot be opened.
        EncodingError: the file is compressed, or is not in the encoding that it states; this may also come from the block.
    """
    encoding = _encoding(path)
    with path.open(encoding=encoding) as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise EncodingError(_undecodable(path, encoding, error)) from None


def read_text(path: Path) -> str:
    """Returns the content of a text file; errors as ``open_text``."""
    with open_text(path) as file:
        return file.read()


def looked_for(path: str | Path) -> str:
    """Says in brackets where a relative path was looked for, for a message that it does not exist; empty for an absolute path.

    ``mlflow run`` starts commands in the project's folder, which need not be the folder that the user is in.
    """
    path = Path(path)
    return "" if path.is_absolute() else f" (looked for at {path.absolute()})"


def _encoding(path: Path) -> str:
    """Returns the encoding of a file; raises EncodingError where its first bytes are those of no text that can be read."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            raise EncodingError(f"is a file compressed with {name}; unpack it")
    if 0 in head:
        wide = head[:2].count(0) == 1  # a letter of ASCII takes two bytes in UTF-16, of which one is 0
        kind = "text in UTF-16 without a byte order mark" if wide else "no text, as it holds bytes of value 0"
        raise EncodingError(f"is {kind}; save it as UTF-8")
    return "utf-8"


def _undecodable(path: Path, encoding: str, error: UnicodeDecodeError) -> str:
    """Says where a file is not in its encoding."""
    if encoding not in ("utf-8", "utf-8-sig"):
        return (
            f"begins with the byte order mark of {encoding.upper()}, but is not text in it ({error.reason}); save it as UTF-8"
        )
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error_of_line:
                if error_of_line.reason == "unexpected end of data":
                    return "ends within a character of UTF-8; it may be truncated"
                byte = f"byte 0x{line[error_of_line.start]:02x} in line {number}"
                return f"is not UTF-8 ({byte}), but text in another encoding, such as Latin-1; save it as UTF-8"
    return f"is not UTF-8 ({error.reason}); save it as UTF-8"
