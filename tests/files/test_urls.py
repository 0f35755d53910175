"""Secrets in URLs are masked, in URLs alone and within messages."""

import pytest

from lever_mlflow.files.urls import is_secret, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@host/v1", "http://***@host/v1"),
        ("postgresql://me:secret@host/db cannot be reached", "postgresql://***@host/db cannot be reached"),
        ("http://secret@host", "http://***@host"),
        ("http://me:se@cret@host:1/x", "http://***@host:1/x"),
        ("http://me:se/cret@host:1/x", "http://***@host:1/x"),
        ("two: http://a:1@x and http://b:2@y", "two: http://***@x and http://***@y"),
        ("http://host/v1?api_key=abc&x=1", "http://host/v1?api_key=***&x=1"),
        ("https://host/c?sv=2024&sig=ab%2Fc&se=9", "https://host/c?sv=2024&sig=***&se=9"),
        ("http://host:5000/v1", "http://host:5000/v1"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:///a@b.db, mail me@host", "sqlite:///a@b.db, mail me@host"),
    ],
)
def test_what_is_masked(text, shown):
    assert without_secrets(text) == shown


def test_names_of_secrets():
    assert all(map(is_secret, ("api_key", "token", "Signature", "PASSWORD", "subscription-key")))
    assert not any(map(is_secret, ("api-version", "version", "region")))
