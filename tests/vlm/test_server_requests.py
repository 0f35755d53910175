"""Requests to servers: time limits, parameters that a server does not take, limits of images and length."""

import logging
import socket
import threading
import time
from contextlib import closing

import pytest
from click.testing import CliRunner
from helpers.projects import facts, run_step
from helpers.vlm_servers import ask, completion, failure, texts

from lever_mlflow.cli.commands import COMMANDS
from lever_mlflow.exceptions import ServerError
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.pipeline.rollout import rollout_step
from lever_mlflow.settings import RolloutSettings
from lever_mlflow.vlm import server as server_module
from lever_mlflow.vlm import server_requests
from lever_mlflow.vlm.prompt import Prompt
from lever_mlflow.vlm.server import ServerVLM


def images_of(body):
    return sum(part["type"] == "image_url" for part in body["messages"][-1]["content"])


def refusal(message, **fields):
    return 400, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400, **fields}}


def test_a_server_that_never_answers_is_found_out_in_seconds(monkeypatch):
    monkeypatch.setattr(server_requests, "_LIST_SECONDS", 0.5)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url, begun = f"http://127.0.0.1:{silent.getsockname()[1]}/v1", time.monotonic()
        with pytest.raises(ServerError, match=rf"^{url}: gives no answer within 0.5 s; look at the server's log"):
            ServerVLM(url).check()
    assert 0.9 < time.monotonic() - begun < 10  # it is asked twice


def test_the_list_of_models_takes_at_most_ten_seconds():
    assert server_requests._LIST_SECONDS == 10


def test_an_answer_that_never_comes(script, picture, monkeypatch, caplog):
    monkeypatch.setattr(server_module, "_LONG_WAIT", 0.2)
    go_on = threading.Event()
    server = script(lambda body, number: go_on.wait(30) and completion("late"))
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING):
        message = failure(server, picture, timeout=0.6)
    assert message == (
        "gives no answer within 0.6 s (vlm_timeout); look at the server's log and start again: answers so far are kept"
    )
    assert 1.1 < time.monotonic() - begun < 10  # it is asked twice
    assert caplog.messages[0] == (
        f"{server.url}: no answer for 0 s, 1 requests are waiting; an answer may take 0.6 s (vlm_timeout)"
    )
    go_on.set()


def test_a_slow_trickle_of_bytes_is_no_answer(picture):
    """The time limit is that of the whole answer, not of the time between two pieces of it."""
    stop = threading.Event()

    def trickle(listener):
        for _ in range(2):
            connection, _ = listener.accept()
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    break

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=trickle, args=(listener,), daemon=True).start()
        vlm = ServerVLM(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", retries=0, timeout=0.5)
        vlm.card = {"id": "m"}
        with pytest.raises(ServerError, match=r"gives no answer within 0\.5 s"):
            texts(vlm.generate([Prompt((), picture)]))
        stop.set()


def test_the_client_has_no_limits_of_its_own(script):
    client = ServerVLM(script().url)._connection.client()
    assert (client.timeout, client.max_retries) == (None, 0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "40"}, 0.04),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "soon"}, None),
        ({}, None),
        ({"retry-after": "Sat, 28 Nov 2026 00:00:07 GMT"}, 7),
    ],
)
def test_the_pause_that_a_server_asks_for(headers, seconds, monkeypatch):
    monkeypatch.setattr(server_requests, "time", lambda: 1_795_824_000.0)  # Sat, 28 Nov 2026 00:00:00 GMT
    assert server_requests._retry_after(headers) == seconds


def newer_openai(body, number):
    """Refuses as OpenAI's reasoning models do."""
    if "max_tokens" in body:
        message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        return refusal(message, param="max_tokens", code="unsupported_parameter")
    if body.get("temperature", 1) != 1:
        message = (
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."
        )
        return refusal(message, param="temperature", code="unsupported_value")
    assert body["max_completion_tokens"] == 5
    return completion("yes")


def test_parameters_that_a_server_does_not_take(script, picture, caplog):
    server = script(newer_openai)
    vlm = ServerVLM(server.url, concurrency=4)
    assert vlm.recorded == {"vlm_served": "m"}
    assert texts(vlm.generate([Prompt((), picture)] * 12)) == ["yes"] * 12
    assert vlm.recorded == {"vlm_served": "m", "vlm_request": "max_completion_tokens"}
    assert caplog.messages == [
        f"{server.url}: takes no temperature, so it samples answers, and the cache keeps the first of each"
    ]
    before = len(server.bodies)
    assert texts(vlm.generate([Prompt((), picture)] * 3)) == ["yes"] * 3
    assert len(server.bodies) == before + 3  # it is remembered


@pytest.mark.parametrize(
    ("limit", "advice"),
    [
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 5. This model's maximum context length is 4096 tokens and "
            "your request has 4099 input tokens",
            "allow longer prompts on the server (vLLM: --max-model-len, SGLang: --context-length), or use fewer shots",
        ),
        (
            "Could not finish the message because max_tokens or model output limit was reached. Please try again with higher "
            "max_tokens.",
            "give a profile with a larger max_new_tokens",
        ),
        ("max_tokens must be less than 3", "the server does not take the request: look at what it says and at its log"),
    ],
)
def test_advice_about_other_limits(script, picture, limit, advice):
    server = script(lambda body, number: refusal(limit))
    message = failure(server, picture)
    assert message.startswith("status 400: ")
    assert message.endswith(f"; {advice}")
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "message",
    [
        "At most 1 image(s) may be provided in one request.",
        "At most 1 image(s) may be provided in one prompt. Set `--limit-mm-per-prompt` to increase this limit.",
        "You set image=1 (or defaulted to 1) in `--limit-mm-per-prompt`, but passed 3 image items in the same prompt.",
        "Image count 3 exceeds limit 1 per request.",
    ],
)
def test_a_limit_of_images_names_the_option(script, picture, message):
    """The number is that of the images in the prompt."""
    server = script(lambda body, number: refusal(message))
    with pytest.raises(ServerError) as caught:
        texts(ServerVLM(server.url).generate([Prompt((picture, picture), picture)]))
    assert str(caught.value) == (
        f"{server.url}: status 400: {message}; a prompt of this work holds 3 images: start the server with "
        "--limit-mm-per-prompt '{\"image\": 3}' (vLLM) or "
        "--limit-mm-data-per-request '{\"image\": 3}' (SGLang), or use fewer shots"
    )


def test_a_limit_of_images_is_found_out_by_one_request(script, mlflow_store, cache_dir):
    message = "At most 1 image(s) may be provided in one prompt."
    server = script(lambda body, number: completion("yes") if images_of(body) <= 1 else refusal(message))
    context = Context(Resources(vlm=server.url, cache_dir=cache_dir, cache="off"))
    with pytest.raises(ServerError, match="a prompt of this work holds 3 images"):
        run_step(lambda: rollout_step(context, RolloutSettings(n_queries=4, shots=2)))
    assert [images_of(body) for body in server.bodies] == [3]


@pytest.mark.parametrize("command", ["main", "evaluate", "rollout"])
def test_commands_try_the_longest_prompt_first(script, mlflow_store, cache_dir, monkeypatch, command):
    """The experiment and the evaluation need more images than the rollout that runs first."""
    monkeypatch.setenv("LEVER_MLFLOW_CACHE", str(cache_dir))
    server = script(lambda body, number: refusal("Image count 5 exceeds limit 1 per request."))
    options = ["--vlm", server.url, "--cache", "off", "--shots", "4" if command == "rollout" else "1,4"]
    result = CliRunner().invoke(COMMANDS[command], options)
    assert isinstance(result.exception, ServerError)
    assert [images_of(body) for body in server.bodies] == [5]


def test_a_plan_asks_nothing(script, mlflow_store, cache_dir, monkeypatch):
    monkeypatch.setenv("LEVER_MLFLOW_CACHE", str(cache_dir))
    server = script()
    result = CliRunner().invoke(COMMANDS["main"], ["--vlm", server.url, "--plan", "true"])
    assert "Plan; nothing was run." in result.output
    assert server.bodies == []


def test_a_prompt_is_tried_once_for_the_most_shots(script, tmp_path):
    server = script()
    resources = Resources(vlm=server.url, cache_dir=tmp_path)
    for shots in (4, 2, 0, 4):
        resources.try_longest_prompt(shots)
    assert [images_of(body) for body in server.bodies] == [5]
    Resources(vlm=server.url, cache_dir=tmp_path).try_longest_prompt(4)
    assert len(server.bodies) == 1  # the answer is known
    Resources(cache_dir=tmp_path).try_longest_prompt(4)  # a local VLM has no such limits


def test_a_run_counts_poor_answers(script, mlflow_store, cache_dir, caplog):
    def chat(body, number):
        if number == 5:
            return {"error": {"message": "busy"}}
        text = "" if number % 4 == 0 else "a dog on a"
        cut = {"finish_reason": "length" if number % 4 == 1 else "stop"}
        return {"choices": [{"message": {"content": text}, **cut}], "usage": {"completion_tokens": 5}}

    context = Context(Resources(vlm=script(chat).url, cache_dir=cache_dir, cache="off"))
    with caplog.at_level(logging.WARNING):
        run = run_step(lambda: rollout_step(context, RolloutSettings(n_queries=2, random_pointers=1)))
    metrics = run.data.metrics
    answers = metrics["vlm/answers"]
    assert metrics["vlm/answers_failed"] == 1
    assert metrics["vlm/answers_empty"] > 0
    assert metrics["vlm/answers_cut"] > 0
    counts = ", ".join(f"{metrics[f'vlm/answers_{kind}']:.0f} {kind}" for kind in ("cut", "empty", "failed"))
    assert f"rollout: of {answers + 1:.0f} replies of the VLM's server: {counts}" in caplog.messages
    assert facts(run)["vlm_served"] == "m"


def test_an_answer_is_asked_for_with_the_key_of_the_environment_only(script, picture, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org")
    assert ask(script(), picture) == ["yes"]
