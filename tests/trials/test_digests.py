"""The digest of all queries, computed by hand."""

import hashlib

import pytest

from lever_mlflow.trials.digests import QueryDigests


@pytest.mark.parametrize("keys", [[5, 9, 10, 100], [10, 9, 100, 5]])
def test_queries_are_ordered_by_their_index_as_text(keys):
    digests = QueryDigests()
    for key in keys:
        assert key not in digests
        digests.add(key, hashlib.sha256(b"query %d" % key).digest())
    assert all(key in digests for key in keys)
    assert 7 not in digests
    content = b"".join(b"%s\0" % key + hashlib.sha256(b"query " + key).digest() for key in (b"10", b"100", b"5", b"9"))
    assert digests.total(b"prefix") == hashlib.sha256(b"prefix" + content).hexdigest()
    assert QueryDigests().total(b"") == hashlib.sha256().hexdigest()
