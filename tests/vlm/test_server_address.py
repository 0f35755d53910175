"""Addresses of servers as people paste them."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.vlm_servers import texts

from lever_mlflow.cli.commands import COMMANDS
from lever_mlflow.exceptions import ParameterError, ServerError
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.vlm.prompt import Prompt
from lever_mlflow.vlm.server import ServerVLM
from lever_mlflow.vlm.server_address import is_server, server_address


@pytest.mark.parametrize(
    "pasted",
    [
        "http://localhost:8000/v1",
        "http://localhost:8000",
        "http://localhost:8000/",
        "http://localhost:8000//v1//",
        " http://localhost:8000/v1\n",
        "HTTP://LocalHost:8000/v1",
        "http://localhost:8000/v1/chat/completions",
        "http://localhost:8000/v1/chat/completions/",
        "http://localhost:8000/v1/completions",
        "http://localhost:8000/v1/models",
        "http://localhost:8000/v1/models/Qwen/Qwen2.5-VL-3B-Instruct",
        "http://localhost:8000/docs#/default",
        "http://localhost:8000/health",
        "localhost:8000",
        "localhost:8000/v1/",
    ],
)
def test_one_server_has_one_address(pasted):
    assert is_server(pasted)
    assert server_address(pasted).url == "http://localhost:8000/v1"
    assert Resources(vlm=pasted).vlm == "http://localhost:8000/v1"


@pytest.mark.parametrize(
    ("pasted", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("gpu-box:30000/v1", "http://gpu-box:30000/v1"),
        ("[::1]:8000", "http://[::1]:8000/v1"),
        ("localhost", "http://localhost/v1"),
        ("http://host:80", "http://host/v1"),
        ("https://host:443/v1", "https://host/v1"),
        ("https://host:80/v1", "https://host:80/v1"),
        ("https://api.openai.com", "https://api.openai.com/v1"),
        ("https://openrouter.ai/api/v1/", "https://openrouter.ai/api/v1"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai"),
        ("https://me.openai.azure.com/openai/v1/", "https://me.openai.azure.com/openai/v1"),
        ("http://host/v1?region=eu", "http://host/v1?region=eu"),
    ],
)
def test_other_addresses(pasted, url):
    assert is_server(pasted)
    assert server_address(pasted).url == url
    assert server_address(url) == server_address(pasted)


@pytest.mark.parametrize("name", ["mini", "org/model", "/data/models/qwen", "./qwen", "Qwen/Qwen2.5-VL-3B-Instruct", "~/model"])
def test_names_that_are_no_servers(name):
    assert not is_server(name)


def test_a_folder_that_looks_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen:3").mkdir()
    assert not is_server("qwen:3")


@pytest.mark.parametrize(
    ("pasted", "start"),
    [
        ("http://", "vlm=http://: not a URL of http or https; give the URL of"),
        ("http://host:99999/v1", "vlm=http://host:99999/v1: not a URL"),
        ("http:/host:8000/v1", "vlm=http:/host:8000/v1: not a URL"),
        ("http//host:8000", "vlm=http//host:8000: not a URL"),
        ("ftp://host/v1", "vlm=ftp://host/v1: not a URL"),
        ("http://a host/v1", "vlm=http://a host/v1: not a URL"),
        ("api.openai.com/v1", "vlm=api.openai.com/v1: lacks http:// or https://; give the URL of"),
        ("http://me:secret@host/v1", "vlm: the URL holds a password or key"),
        ("http://me:sec/ret@host/v1", "vlm: not a URL"),
        ("me:secret@host:8000/v1", "vlm: the URL holds a password or key"),
        ("http://secret@host/v1", "vlm: the URL holds a password or key"),
        ("http://host/v1?api_key=secret", "vlm: the URL holds a password or key"),
        ("http://host/v1?x=1&access_token=secret", "vlm: the URL holds a password or key"),
        ("http:/host/v1?key=secret", "vlm: not a URL"),
    ],
)
def test_addresses_that_cannot_be_used(pasted, start):
    assert is_server(pasted)
    for use in (ServerVLM, lambda vlm: Resources(vlm=vlm)):
        with pytest.raises(ParameterError) as caught:
            use(pasted)
        message = str(caught.value)
        assert message.startswith(start)
        assert message.endswith("give the URL of an OpenAI-compatible server, such as vlm=http://127.0.0.1:8000/v1")
        assert "secret" not in message
        assert "sec/ret" not in message
        assert "\n" not in message


def test_a_password_in_the_address_reaches_no_store(mlflow_store, cache_dir, monkeypatch, capsys, caplog):
    monkeypatch.setenv("LEVER_MLFLOW_CACHE", str(cache_dir))
    for options in ([], ["--plan", "true"]):
        result = CliRunner().invoke(COMMANDS["rollout"], ["--vlm", "http://me:hidden@127.0.0.1:1/v1", *options])
        assert str(result.exception).startswith("vlm: the URL holds a password or key")
        assert "hidden" not in result.output + caplog.text + capsys.readouterr().err
    assert b"hidden" not in Path(mlflow_store.removeprefix("sqlite:///")).read_bytes()


@pytest.mark.parametrize(
    ("base", "pasted"),
    [
        ("/v1", ""),
        ("/v1", "/v1/chat/completions"),
        ("", "/"),
        ("/team/v1", "/team"),
        ("/team/v1", "/team/v1/models"),
        ("/llm", "/llm"),
    ],
)
def test_a_server_is_found_under_what_was_pasted(script, picture, base, pasted):
    server = script(base=base)
    vlm = ServerVLM(server.root + pasted)
    assert texts(vlm.generate([Prompt((), picture)])) == ["yes"]
    assert server.paths[-1] == f"{base}/chat/completions"
    other = ServerVLM(server.url)
    assert (vlm.digest, vlm.key(Prompt((), picture))) == (other.digest, other.key(Prompt((), picture)))


def test_a_deployment_of_azure(script, picture, monkeypatch):
    """It has no list of models, takes the key in a header of its own, and every request carries the version."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = script(models=None, base="/openai/deployments/gpt-4o")
    pasted = f"{server.url}/chat/completions?api-version=2024-06-01"
    vlm = ServerVLM(pasted)
    assert vlm.url == f"{server.url}?api-version=2024-06-01"
    assert texts(vlm.generate([Prompt((), picture)])) == ["yes"]
    assert server.paths[-1] == "/openai/deployments/gpt-4o/chat/completions?api-version=2024-06-01"
    assert vlm.model == server.bodies[0]["model"] == "gpt-4o"
    assert server.headers[0]["api-key"] == "secret"


def test_a_server_without_a_list_of_models(script, picture):
    server = script(models=None)
    vlm = ServerVLM(server.url, "named")
    assert texts(vlm.generate([Prompt((), picture)])) == ["yes"]
    assert server.bodies[0]["model"] == "named"
    with pytest.raises(ServerError, match=f"^{server.url}: status 404: Not Found; give the URL of"):
        _ = ServerVLM(server.url).model


def test_the_query_goes_with_every_request(script, picture):
    server = script()
    assert texts(ServerVLM(f"{server.url}?region=eu").generate([Prompt((), picture)])) == ["yes"]
    assert server.paths == ["/v1/models?region=eu", "/v1/chat/completions?region=eu"]
