"""Makes one digest of the digests of all queries of RL data, in about 40 bytes of memory for each query."""

from __future__ import annotations

import hashlib
from array import array

import numpy as np

__all__ = ["QueryDigests"]

_SIZE = hashlib.sha256().digest_size


class QueryDigests:
    """Collects the SHA-256 digests of queries by train index."""

    def __init__(self) -> None:
        self._keys, self._digests = array("q"), bytearray()
        self._known: set[int] | None = None  # of all keys; not needed as long as they ascend

    def __contains__(self, key: int) -> bool:
        if not self._keys or (self._known is None and key > self._keys[-1]):
            return False
        if self._known is None:
            self._known = set(self._keys)
        return key in self._known

    def add(self, key: int, digest: bytes) -> None:
        """Adds the digest of a query that is not contained yet."""
        if self._known is None and self._keys and key < self._keys[-1]:
            self._known = set(self._keys)
        if self._known is not None:
            self._known.add(key)
        self._keys.append(key)
        self._digests += digest

    def total(self, prefix: bytes) -> str:
        """Returns the digest of a prefix and of all queries, ordered by their train index as text, 64 hex characters."""
        digest, keys = hashlib.sha256(prefix), np.array(self._keys, dtype=np.int64)
        for place in np.argsort(keys.astype("S18"), kind="stable").tolist():
            digest.update(b"%d\0" % keys[place] + self._digests[_SIZE * place : _SIZE * (place + 1)])
        return digest.hexdigest()
