"""Secrets in URLs are masked, in URLs alone and within messages."""

import json

import pytest

from lever_mlflow.files.urls import is_secret, without_secrets


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://user:hunter2@host:5000/a", "http://***@host:5000/a"),
        ("API request to http://u:p@h/api failed (http://u:p@h)", "API request to http://***@h/api failed (http://***@h)"),
        ("postgresql+psycopg2://mlflow:p@ss:w@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("/tmp/http:/user:hunter2@host/a", "/tmp/http:/***@host/a"),
        ("http://user:pa/ss@host/path", "http://***@host/path"),
        ("http://user:pa?s#s@host/path", "http://***@host/path"),
        ("https://ghp_token@github.com/a/b", "https://***@github.com/a/b"),
        ("s3://AKIA:secret@bucket/path", "s3://***@bucket/path"),
        ("http://h/x?token=abc&page=2", "http://h/x?token=***&page=2"),
        (
            "http://h/x?page=2&X-Amz-Signature=ab%2Fc&X-Amz-Credential=q",
            "http://h/x?page=2&X-Amz-Signature=***&X-Amz-Credential=***",
        ),
        ("https://a.blob/x?sv=1&sig=ab%3D", "https://a.blob/x?sv=1&sig=***"),
        ("postgresql://h/db?user=me&password=hunter2", "postgresql://h/db?user=me&password=***"),
        ("with url: /api?access_token=abc (Caused by", "with url: /api?access_token=*** (Caused by"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3D1%3BPWD%3Dhunter2", "mssql+pyodbc:///?odbc_connect=***"),
        ("http://u:p@a,http://v:q@b", "http://***@a,http://***@b"),
    ],
)
def test_secrets_are_masked(text, masked):
    assert without_secrets(text) == masked
    assert without_secrets(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/a b/mlflow.db",
        "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning",
        "models:/lever-selector-mini-mini@champion",
        "mlflow models serve -m models:/a@champion at http://127.0.0.1:5000/a@b",
        "http://[::1]:5000/a@b",
        "tokens=5, key: value, mail me@example.org",
        "",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text):
    assert without_secrets(text) == text


def test_json_stays_json():
    record = {"vlm": "http://u:p@h/v1", "then": "https://h/?key=1", "mail": "me@h"}
    assert json.loads(without_secrets(json.dumps(record))) == {
        "vlm": "http://***@h/v1",
        "then": "https://h/?key=***",
        "mail": "me@h",
    }


def test_names_of_secrets():
    assert all(map(is_secret, ("api_key", "token", "Signature", "PASSWORD", "subscription-key")))
    assert not any(map(is_secret, ("api-version", "version", "region")))
