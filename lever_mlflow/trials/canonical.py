"""Writes the rows of an Arrow table as canonical JSON, the text of which the digest of RL data is made, without Python objects.

Canonical JSON is what ``json.JSONEncoder(sort_keys=True, separators=(",", ":"))`` writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["CANONICAL", "UnfitError", "json_lists", "json_objects", "json_values", "parsed_fields"]

CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_MOST_TEXTS = 2_000  # different texts of further fields in a table; each is parsed in Python


class UnfitError(Exception):
    """Says that a table cannot be written in this way, so that its rows have to be looked at one by one."""


def json_objects(fields: Mapping[str, pa.Array], n_rows: int) -> pa.Array:
    """Returns a JSON object for each row, from the JSON texts of its fields; a null is a field that the row lacks."""
    pieces = [pc.binary_join_element_wise(CANONICAL.encode(name), fields[name], ":") for name in sorted(fields)]
    inner = pc.binary_join_element_wise(*pieces, ",", null_handling="skip") if pieces else ()
    if len(inner) != n_rows:  # Arrow 25 leaves out rows of which all pieces are null
        empty = pa.array([""] * n_rows, pa.string())
        inner = pc.utf8_ltrim(pc.binary_join_element_wise(empty, *pieces, ",", null_handling="skip"), ",")
    return pc.binary_join_element_wise("{", inner, "}", "")


def json_lists(texts: pa.Array, sizes: np.ndarray) -> pa.Array:
    """Returns JSON lists of the given sizes, whose elements are JSON texts, one list after the other."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    inner = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ",")
    return pc.binary_join_element_wise("[", inner, "]", "")


def json_values(column: pa.Array) -> pa.Array:
    """Returns the JSON text of each value of a column; null where the value is null.

    Raises:
        UnfitError: a list holds a null.
    """
    if pa.types.is_list(column.type):
        values = column.flatten()
        if values.null_count:
            raise UnfitError
        sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        texts = json_lists(json_values(values), sizes)
        return pc.if_else(column.is_valid(), texts, None) if column.null_count else texts
    if pa.types.is_string(column.type):
        encoded = column.dictionary_encode()
        return pa.array(list(map(CANONICAL.encode, encoded.dictionary.to_pylist())), pa.string()).take(encoded.indices)
    if pa.types.is_floating(column.type):
        bits = column.fill_null(0.0).to_numpy(zero_copy_only=False).view(np.int64)  # tells 0.0 from -0.0
        different, places = np.unique(bits, return_inverse=True)
        texts = CANONICAL.encode(different.view(np.float64).tolist())[1:-1].split(",")
        written = pa.array(texts, pa.string()).take(pa.array(places))
        return pc.if_else(column.is_valid(), written, None) if column.null_count else written
    return column.cast(pa.string())


def parsed_fields(column: pa.Array) -> dict[str, pa.Array]:
    """Returns the fields of JSON objects as JSON texts, a column for each field; null where an object lacks the field.

    Raises:
        UnfitError: there are many different objects, or one is no JSON object without repeated keys.
    """
    encoded = column.dictionary_encode()
    if len(encoded.dictionary) > _MOST_TEXTS:
        raise UnfitError
    try:
        objects = [
            json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse) for text in encoded.dictionary.to_pylist()
        ]
        texts = {name: [CANONICAL.encode(o[name]) if name in o else None for o in objects] for o in objects for name in o}
        return {name: pa.array(values, pa.string()).take(encoded.indices) for name, values in texts.items()}
    except (ValueError, TypeError, RecursionError):
        raise UnfitError from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise UnfitError
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise UnfitError
