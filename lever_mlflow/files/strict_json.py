"""Reads a JSON object from a file strictly: damaged or ambiguous content is an error that names line and column.

A value of the object, or an entry of a list in it, is decoded at a time, so that large files need little memory.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.text import EncodingError, looked_for, open_text
from lever_mlflow.shortages import let_through

__all__ = ["iterate_list", "iterate_object", "parse_object", "read_object"]

_CHUNK = 1 << 20  # characters
_BEGUN_NUMBER = (".", *(f"{e}{sign}" for e in "eE" for sign in ("", "+", "-")))  # how a number can go on, without a digit
_LONGEST_TOKEN = 16  # characters by which a number, a literal or an escape can reach beyond the position of an error in it


def read_object(path: Path, chunk: int = _CHUNK, /, *, missing: str, damaged: str) -> dict[str, Any]:
    """Returns the JSON object in a file; arguments and errors as ``iterate_object``."""
    return dict(iterate_object(path, chunk, missing=missing, damaged=damaged))


def iterate_object(path: Path, chunk: int = _CHUNK, /, *, missing: str, damaged: str) -> Iterator[tuple[str, Any]]:
    """Yields the keys and values of the JSON object in a file one by one, so that only one value is in memory at a time.

    Args:
        path: the file.
        chunk: how many characters are read at a time.
        missing, damaged: the remedies that an error message gives when the file is missing or damaged.

    Raises:
        DataError: there is no such file; it is no text in an encoding that ``open_text`` reads; it is truncated or otherwise
            not JSON; it holds NaN, infinities, numbers beyond the range of a float, numbers of thousands of digits or duplicate
            keys; it is nested too deeply; or it holds no object.
    """
    with _reader(path, chunk, missing, damaged) as reader:
        yield from reader.items()


def iterate_list(path: Path, key: str, chunk: int = _CHUNK, /, *, missing: str, damaged: str) -> Iterator[Any]:
    """Yields the entries of the list that the JSON object in a file has under a key, one by one.

    Nothing is yielded where the object has no such key, or something else than a list under it. All other values of the object
    are decoded and dropped.

    Args:
        path: the file.
        key: the key.
        chunk, missing, damaged: as of ``iterate_object``.

    Raises:
        DataError: as ``iterate_object``.
    """
    with _reader(path, chunk, missing, damaged) as reader:
        yield from reader.entries(key)


def parse_object(text: str, name: str, damaged: str) -> dict[str, Any]:
    """Returns the JSON object in a text.

    Args:
        text: the JSON.
        name: where the text stands, for an error message.
        damaged: the remedy that an error message gives.

    Raises:
        DataError: as ``iterate_object``.
    """
    try:
        return dict(_Reader(StringIO(text), name, damaged, _CHUNK).items())
    except UnicodeError as error:
        raise DataError(f"{name}: cannot be read: {error}; {damaged}") from None
    except RecursionError:
        raise DataError(f"{name}: nested too deeply; {damaged}") from None


@contextmanager
def _reader(path: Path, chunk: int, missing: str, damaged: str) -> Iterator[_Reader]:
    """Opens a file for reading; errors of the block become a DataError that names the file."""
    try:
        with open_text(path) as file:
            yield _Reader(file, f"{path}", damaged, chunk)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file{looked_for(path)}; {missing}") from None
    except EncodingError as error:
        raise DataError(f"{path}: cannot be read, as it {error}") from None
    except (OSError, UnicodeError) as error:
        let_through(error)
        raise DataError(f"{path}: cannot be read: {error}; {damaged}") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply; {damaged}") from None


class _Reader:
    """Decodes an object from a window over a file.

    The window is ``_text``. It starts at ``_line`` and ``_column`` of the file, and is decoded up to position ``_at``.
    """

    def __init__(self, file: TextIO, name: str, damaged: str, chunk: int) -> None:
        self._file, self._name, self._damaged, self._chunk = file, name, damaged, chunk
        self._text, self._at, self._ended = "", 0, False
        self._line, self._column = 1, 1
        self._decoder = json.JSONDecoder(
            parse_float=self._finite, parse_constant=self._refuse_constant, object_pairs_hook=self._unique
        )

    def items(self) -> Iterator[tuple[str, Any]]:
        """Yields keys and values, one by one. The file must hold nothing else than the object."""
        for key in self._keys():
            yield key, self._value()

    def entries(self, name: str) -> Iterator[Any]:
        """Yields the entries of the list under a key, one by one."""
        for key in self._keys():
            if key == name and self._peek() == "[":
                yield from self._elements()
            else:
                self._value()

    def _keys(self) -> Iterator[str]:
        """Yields the keys; what is behind the colon must be decoded before the next one is asked for."""
        start = self._peek()
        if start != "{":
            value = self._value()
            raise DataError(f"{self._name}: holds a JSON {type(value).__name__}, expected an object; {self._damaged}")
        self._at += 1
        keys: set[str] = set()
        if self._peek() != "}":
            while True:
                if self._peek() != '"':
                    raise self._broken("Expecting property name enclosed in double quotes")
                key = self._value()
                if key in keys:
                    raise self._twice(key)
                keys.add(key)
                self._expect(":", "Expecting ':' delimiter")
                self._peek()
                yield key
                if self._peek() == "}":
                    break
                self._expect(",", "Expecting ',' delimiter")
        self._at += 1
        if self._peek():
            raise self._broken("Extra data")

    def _elements(self) -> Iterator[Any]:
        """Yields the elements of the JSON list that starts at position ``_at`` of the window."""
        self._at += 1
        if self._peek() != "]":
            while True:
                self._peek()
                yield self._value()
                if self._peek() == "]":
                    break
                self._expect(",", "Expecting ',' delimiter")
        self._at += 1

    def _value(self) -> Any:
        """Decodes the value that starts at ``_at``, reading on where the window ends within it."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos + _LONGEST_TOKEN > len(self._text)
                if not (cut and self._read_on()):  # an error within the window, or at the end of the file
                    raise self._broken(error.msg, error.pos, truncated=cut) from None
                continue
            except ValueError:  # Python reads no whole number of more than 4,300 digits
                raise DataError(f"{self._name}: holds a number of thousands of digits; {self._damaged}") from None
            if end + _LONGEST_TOKEN > len(self._text) and self._read_on():
                continue  # a number may go on beyond the window, even behind its point or the sign of its exponent
            if "\\ud" in self._text[self._at : end].lower():  # encoding fails for half of a surrogate pair
                json.dumps(value, ensure_ascii=False).encode()
            self._at = end
            return value

    def _peek(self) -> str:
        """Skips white space, and returns the next character, or an empty text at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\n\r":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                return ""

    def _expect(self, character: str, message: str) -> None:
        if self._peek() != character:
            raise self._broken(message)
        self._at += 1

    def _read_on(self) -> bool:
        """Moves the window on, and returns whether the file had more.

        At least as much is read as is left in the window, so that the time for a long value grows linearly.
        """
        if self._ended:
            return False
        chunk = self._file.read(max(self._chunk, len(self._text) - self._at))
        if not chunk:
            self._ended = True
            return False
        self._line, self._column = self._place(self._at)
        self._text, self._at = self._text[self._at :] + chunk, 0
        return True

    def _place(self, at: int) -> tuple[int, int]:
        """Returns line and column in the file, both from 1, of a position in the window."""
        lines = self._text.count("\n", 0, at)
        return self._line + lines, at - self._text.rfind("\n", 0, at) if lines else self._column + at

    def _broken(self, message: str, at: int | None = None, truncated: bool | None = None) -> DataError:
        """Returns the error at a position of the window; only where the file ends there can it be truncated."""
        line, column = self._place(self._at if at is None else at)
        if truncated is None:
            truncated = not self._peek() or (self._ended and self._text[self._at :] in _BEGUN_NUMBER)
        remedy = f"it may be truncated: {self._damaged}" if truncated else self._damaged
        return DataError(f"{self._name}: not valid JSON at line {line}, column {column} ({message}); {remedy}")

    def _twice(self, key: str) -> DataError:
        return DataError(f"{self._name}: key {key[:80]!r} occurs twice in one object; remove one of them")

    def _finite(self, text: str) -> float:
        """Returns a number; Python would read one beyond the range of a float as infinity."""
        value = float(text)
        if math.isinf(value):
            raise self._no_number(text, "is too large for a number")
        return value

    def _refuse_constant(self, name: str) -> None:
        raise self._no_number(name, "is not a JSON number")

    def _no_number(self, text: str, problem: str) -> DataError:
        """Returns the error about a text in the place of a number, at the first such text of the value at ``_at``."""
        match = re.compile(rf"(?<=[\s:,\[]){re.escape(text)}(?=[\s,\]}}])").search(self._text, self._at)
        place = "" if match is None else " (line {}, column {})".format(*self._place(match.start()))
        return DataError(f"{self._name}: holds {text[:40]}, which {problem}{place}; {self._damaged}")

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise self._twice(next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1))
        return result
