"""One strict way to read a JSON object from a file: what is damaged or ambiguous is an error that names the place."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from lever_mlflow.exceptions import DataError

__all__ = ["read_object"]


def read_object(path: Path, *, missing: str, damaged: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        missing, damaged: what to do about it when the file is not there or not readable, for the message.

    Raises:
        DataError: no such file; not text in UTF-8; truncated or otherwise not JSON; NaN, infinities, duplicate keys or
            numbers of thousands of digits in it; nested too deeply; or something else than an object.
    """

    def refuse_constant(name: str) -> None:
        raise DataError(f"{path}: holds {name}, which is not a JSON number; {damaged}")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise DataError(f"{path}: key {key!r} occurs twice in one object; remove one of them")
        return result

    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
        if "\\ud" in text.lower():  # half of a surrogate pair is no text
            json.dumps(content, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {missing}") from None
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}; {damaged}") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno} ({error.msg})"
        raise DataError(f"{path}: not valid JSON at {place}; it may be truncated: {damaged}") from None
    except ValueError:  # Python reads no whole number of more than 4,300 digits
        raise DataError(f"{path}: holds a number of thousands of digits; {damaged}") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply; {damaged}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a JSON {type(content).__name__}, expected an object; {damaged}")
    return content
