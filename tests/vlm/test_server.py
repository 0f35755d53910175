"""A VLM behind a server: transformers' own on the embedded model, and small ones that fail in known ways."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from helpers.projects import ROOT, error_lines, facts, run_step
from helpers.prompts import mini_prompts
from helpers.servers import free_port
from helpers.vlm_servers import NAME, TransformersServe, ask, cards, completion, failure, texts
from PIL import Image

from lever_mlflow import mini
from lever_mlflow.exceptions import DataError, ParameterError, ServerError
from lever_mlflow.files.cache_dir import CACHE_DIR
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.pipeline.rollout import rollout_step
from lever_mlflow.settings import RolloutSettings
from lever_mlflow.vlm.profiles import PROFILES
from lever_mlflow.vlm.prompt import Prompt
from lever_mlflow.vlm.qwen import QwenVLM
from lever_mlflow.vlm.server import ServerVLM


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = TransformersServe(tmp_path_factory.mktemp("served"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def prompts(cache_dir):
    """24 prompts of 0, 1 and 3 demonstrations."""
    return mini_prompts(cache_dir, [0, 1, 3] * 8, each=3)


def test_a_server_answers_as_the_local_model_does(served, prompts):
    server = ServerVLM(served.url)
    assert server.model == NAME
    answers = texts(server.generate(prompts))
    local = texts(QwenVLM(mini.VLM_PATH, "digest", PROFILES["openai"]).generate(prompts))
    assert answers == [text.strip() for text in local]  # this server strips what it answers
    assert len(set(answers)) > 8


def test_a_rollout_on_a_server_asks_once(served, mlflow_store, tmp_path):
    settings = RolloutSettings(n_queries=5)

    def run():
        context = Context(Resources(vlm=served.url, cache_dir=tmp_path / "cache"))
        return run_step(lambda: rollout_step(context, settings))

    before = served.n_answers
    first = run()
    n_prompts = served.n_answers - before
    assert 5 * 5 <= n_prompts <= first.data.metrics["rollout/n_trials"] + 1  # one prompt is tried before the work
    second = run()
    assert served.n_answers - before == n_prompts
    assert second.data.tags["lever.rl_data_digest"] == first.data.tags["lever.rl_data_digest"]
    assert facts(first)["vlm_digest"].startswith("mini-vlm-")
    assert {name: first.data.params[name] for name in ("vlm", "vlm_model")} == {"vlm": served.url, "vlm_model": "auto"}


def test_what_is_sent(script, picture, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret\n")
    server = script()
    prompt = Prompt((replace(picture, question="and this?"),), picture)
    assert texts(ServerVLM(server.url + "/").generate([prompt])) == ["yes"]
    (body,) = server.bodies
    assert {name: body[name] for name in body if name != "messages"} == {"model": "m", "temperature": 0, "max_tokens": 5}
    system, user = body["messages"]
    assert system == {
        "role": "system",
        "content": [{"type": "text", "text": "Answer the last question in a few words, after 1 solved example."}],
    }
    assert user["role"] == "user"
    assert [part.get("text") for part in user["content"]] == [
        None,
        "Question: and this? Short answer: noise\n",
        None,
        "Question: what is it? Short answer:",
    ]
    # 36 x 25 patches of 28 pixels are nearest to the image, and within the 256 to 1,280 that are allowed.
    expected = np.asarray(Image.open(picture.image_path).resize((36 * 28, 25 * 28)))
    for part in user["content"][::2]:
        head, data = part["image_url"]["url"].split(",")
        assert head == "data:image/png;base64"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), expected)
    assert server.headers[0]["Authorization"] == "Bearer secret"


def test_no_key_is_needed(script, picture, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = script()
    assert ask(server, picture) == ["yes"]
    assert server.headers[0]["Authorization"] == "Bearer none"


def test_as_many_requests_as_allowed_at_a_time(script, picture):
    lock, gate, under_way, most = threading.Lock(), threading.Barrier(4, timeout=30), [0], [0]

    def chat(body, number):
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        gate.wait()  # breaks unless four requests come together
        time.sleep(0.2)  # a fifth would be seen
        with lock:
            under_way[0] -= 1
        return completion("yes")

    assert ask(script(chat), *[picture] * 12, concurrency=4) == ["yes"] * 12
    assert most == [4]


def test_answers_come_while_others_are_waited_for(script, picture):
    go_on = threading.Event()

    def chat(body, number):
        slow = "slow" in str(body["messages"][1]["content"][1])
        assert not slow or go_on.wait(30)
        return completion("slow" if slow else "quick")

    samples = [replace(picture, question=f"{'slow' if i == 0 else 'quick'}?") for i in range(4)]
    batches = ServerVLM(script(chat).url, concurrency=2).generate([Prompt((), sample) for sample in samples])
    assert [next(batches) for _ in range(3)] == [[(1, "quick")], [(2, "quick")], [(3, "quick")]]
    go_on.set()
    assert list(batches) == [[(0, "slow")]]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_fault_is_waited_out(script, picture, status):
    server = script(lambda body, number: (status, {}, {"retry-after-ms": "1"}) if number < 3 else completion("yes"))
    assert ask(server, picture) == ["yes"]
    assert len(server.bodies) == 3


def test_a_fault_that_stays_ends_in_one_line(script, picture):
    server = script(lambda body, number: (500, {"error": {"message": "out of\nmemory"}}, {"retry-after-ms": "1"}))
    message = "status 500: out of memory; look at the server's log and start again: answers so far are kept"
    assert failure(server, picture, retries=2) == message
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("status", "body", "start"),
    [
        (
            400,
            {"error": {"message": "no such role"}},
            "status 400: no such role; the server does not take",
        ),
        (422, {"detail": "no images"}, "status 422: no images; the server does not take the request"),
        (404, "<html>nothing here</html>", "status 404: <html>nothing here</html>; give the URL of"),
        (
            401,
            {"error": {"message": "wrong key secret"}},
            "status 401, the key is refused; set OPENAI_API_KEY",
        ),
    ],
)
def test_a_request_that_is_refused_ends_at_once(script, picture, status, body, start):
    server = script(lambda _, number: (status, body))
    message = failure(server, picture)
    assert message.startswith(start)
    assert "secret" not in message
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "reply",
    ["<html>welcome</html>", "", "{", [], 7, {"choices": []}, {"choices": [{"message": {"content": 7}}]}],
)
def test_a_server_that_does_not_speak_the_protocol(script, picture, reply):
    text = reply if isinstance(reply, str) else json.dumps(reply)
    expected = (
        f"does not speak the OpenAI protocol (it answered {text!r}); give the URL of an OpenAI-compatible server, such as"
    )
    assert failure(script(lambda body, number: reply), picture, retries=0).startswith(expected)


def test_a_list_of_models_that_is_none(script, picture):
    expected = "does not speak the OpenAI protocol (it answered '<html>welcome</html>'); give the URL of"
    assert failure(script(models="<html>welcome</html>"), picture).startswith(expected)


def test_answers_that_came_before_a_failure_are_given_first(script, picture):
    last = threading.Event()

    def chat(body, number):
        text = str(body["messages"][1]["content"][1])
        assert "first" in text or last.wait(30)
        if "bad" in text:
            time.sleep(1)  # the good ones have been answered by then
            return 400, {}
        return completion("yes")

    samples = [replace(picture, question=question) for question in ("first?", "bad?", "good?", "good?")]
    batches = ServerVLM(script(chat).url, concurrency=4).generate([Prompt((), sample) for sample in samples])
    assert next(batches) == [(0, "yes")]
    last.set()
    answers = []
    with pytest.raises(ServerError, match="status 400"):
        answers.extend(item for batch in batches for item in batch)
    assert sorted(answers) == [(2, "yes"), (3, "yes")]


def test_an_image_that_does_not_decode(script, picture, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"broken\.png: does not decode as an image"):
        ask(script(), picture, replace(picture, image_path=tmp_path / "broken.png"))


def test_the_model_is_named_or_the_only_one(script):
    one, two = script(), script(models=cards("b", "a"))
    assert ServerVLM(one.url).model == ServerVLM(one.url, "m").model == "m"
    assert ServerVLM(two.url, "b").model == "b"
    with pytest.raises(ParameterError, match=f"^{two.url}: has several models; choose by vlm_model: a, b$"):
        _ = ServerVLM(two.url).model
    with pytest.raises(ParameterError, match=f"^vlm_model=c: {two.url} has no such model, only a, b$"):
        _ = ServerVLM(two.url, "c").model
    with pytest.raises(ParameterError, match="lists no model; start the server with one"):
        _ = ServerVLM(script(models=cards()).url).model
    with pytest.raises(ParameterError, match=r"choose by vlm_model: m00, m01, .* m19 and 5 more$"):
        _ = ServerVLM(script(models=cards(*(f"m{i:02}" for i in range(25)))).url).model


def test_the_digest_names_the_model_wherever_it_is_served(script, picture):
    def digest(name, **entries):
        return ServerVLM(script(models=cards(name, **entries)).url).digest

    name = "Qwen/Qwen2.5-VL-3B-Instruct"
    base = digest(name)
    assert base.startswith("qwen2-5-vl-3b-instruct-")
    assert digest(name, root=name, parent=None, max_model_len=32768, owned_by="vllm") == base
    others = {digest("Other/Qwen2.5-VL-3B-Instruct"), digest(name, root="/models/7b"), digest(name, parent="base")}
    assert len(others | {base}) == 4
    prompt = Prompt((), picture)
    one, other = (ServerVLM(script(models=cards(n)).url) for n in ("one", "other"))
    assert one.key(prompt) != other.key(prompt)
    assert one.profile.digest != PROFILES["qwen2.5-vl"].digest


def test_a_key_that_no_header_takes(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-schlüssel")
    with pytest.raises(ParameterError, match=r"^OPENAI_API_KEY: holds characters that cannot be part of a key; set it again$"):
        ServerVLM("http://127.0.0.1:1/v1")


def test_resources_on_a_server(script, cache_dir):
    server = script(models=cards("Qwen/Qwen2.5-VL-3B-Instruct", "b"))
    resources = Resources(vlm=server.url, vlm_model="Qwen/Qwen2.5-VL-3B-Instruct", cache_dir=cache_dir)
    resources.check()
    assert resources.language_model.profile.num_beams == 1
    assert re.fullmatch("mini-qwen2-5-vl-3b-instruct-[0-9a-f]{8}", resources.label)
    assert re.fullmatch("mini-m-[0-9a-f]{8}", Resources(vlm=script().url).label)
    assert Resources(vlm="http://127.0.0.1:1/v1", vlm_model="B").label.startswith("mini-b-")  # a known name needs no server
    with pytest.raises(ParameterError, match="has several models"):
        Resources(vlm=server.url, cache_dir=cache_dir).check()
    with pytest.raises(ParameterError, match=r"^vlm_model=b: vlm=mini is not the URL of a server; leave vlm_model=auto$"):
        Resources(vlm_model="b")


@pytest.mark.slow
def test_no_server_ends_a_run_before_any_work(mlflow_store, cache_dir):
    url = f"http://127.0.0.1:{free_port()}/v1"
    result = subprocess.run(
        [sys.executable, "-m", "entrypoints.rollout", "--vlm", url],
        cwd=ROOT,
        env={**os.environ, "MLFLOW_TRACKING_URI": mlflow_store, CACHE_DIR: str(cache_dir)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    (line,) = error_lines(result)
    assert line.startswith(f"error: {url}: cannot be reached (")
    assert line.endswith(
        "start the server, or give the URL of an OpenAI-compatible server, such as vlm=http://127.0.0.1:8000/v1"
    )


def test_an_interrupted_run_does_not_wait_for_its_requests(script, picture):
    go_on, numbers = threading.Event(), []

    def chat(body, number):
        assert number == 1 or go_on.wait(60)
        numbers.append(number)
        return completion("yes")

    server = script(chat)
    batches = ServerVLM(server.url, concurrency=4).generate([Prompt((), picture)] * 8)
    next(batches)
    batches.close()
    assert numbers == [1]  # the server still holds the other answers back
    go_on.set()
