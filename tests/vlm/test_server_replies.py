"""Replies with status 200: answers, answers without text, and failures."""

from dataclasses import replace

import pytest
from helpers.vlm_servers import ask, cards, completion, failure

from lever_mlflow.exceptions import ServerError
from lever_mlflow.vlm.prompt import Prompt
from lever_mlflow.vlm.server import ServerVLM
from lever_mlflow.vlm.server_replies import FailedReply, ForeignReply, read_answer


def reply(content, reason="stop", tokens=None, reasoning_tokens=None, **message):
    usage = {} if tokens is None else {"usage": {"prompt_tokens": 9, "completion_tokens": tokens}}
    if reasoning_tokens is not None:
        usage["usage"]["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return {"choices": [{"message": {"content": content, **message}, "finish_reason": reason}], **usage}


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (reply(" dog", tokens=2), (" dog", "text")),
        (reply(" dog", None), (" dog", "text")),
        (reply(" a dog on a", "length"), (" a dog on a", "cut")),
        (reply("<think>Is it a cat? No.</think>\n dog"), ("\n dog", "text")),
        (reply("Is it a cat? No.</think> dog", "length"), (" dog", "cut")),
        (reply("◁think▷hm◁/think▷dog"), ("dog", "text")),
        (reply("[THINK]hm[/THINK]dog"), ("dog", "text")),
        (reply("dog", reasoning_content="It barks."), ("dog", "text")),
        (reply([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "dog"}]), ("dog", "text")),
        (reply("<think>\nThe user", "length", 5), ("", "reasoning")),
        (reply("<think>hm</think>", "stop", 5), ("", "reasoning")),
        (reply(None, "length", 5, reasoning_content="The user"), ("", "reasoning")),
        (reply("", "length", 5, reasoning="The user"), ("", "reasoning")),
        (reply("", "length", 5, reasoning_tokens=5), ("", "reasoning")),
        (reply("", "stop", 1), ("", "empty")),
        (reply("", "stop", 0), ("", "empty")),
        (reply(""), ("", "empty")),
        (reply(" \n", "stop", 2), (" \n", "empty")),
        (reply(None, "stop", 1), ("", "empty")),
        (reply(None), ("", "empty")),
        (reply(None, refusal="I cannot"), ("", "refused")),
        (reply(None, "content_filter"), ("", "refused")),
    ],
)
def test_kinds_of_answers(content, answer):
    assert read_answer(content) == answer


@pytest.mark.parametrize(
    "content",
    [
        {"error": {"message": "overloaded", "code": 502}},
        {"error": "overloaded", "choices": []},
        {"error": {"code": 502}},
        {"object": "error", "message": "overloaded", "code": 500},
        {"detail": "overloaded"},
        {"choices": [{"error": {"message": "overloaded"}, "message": {"content": ""}, "finish_reason": "error"}]},
        reply("do", "error"),
        reply("do", "abort"),
        reply(None, "stop", 0),
        reply(None, None, 0),
        reply(None, None),
        reply("", None, 0),
        {"choices": [{"message": {"role": "assistant"}}]},
    ],
)
def test_failures(content):
    with pytest.raises(FailedReply):
        read_answer(content)


@pytest.mark.parametrize(
    "content", [[], 7, None, {}, {"choices": []}, {"choices": [{"text": "dog"}]}, reply(7), reply({"text": "dog"}), reply([7])]
)
def test_other_forms(content):
    with pytest.raises(ForeignReply):
        read_answer(content)


@pytest.mark.parametrize(
    "bad", [{"error": {"message": "busy"}}, reply(None, "stop", 0), "{", "<html>", {"choices": []}, (502, "bad gateway")]
)
def test_a_passing_failure_is_asked_again(script, picture, bad):
    server = script(lambda body, number: bad if number == 1 else completion("yes"))
    vlm = ServerVLM(server.url, retries=1)
    assert list(vlm.generate([Prompt((), picture)])) == [[(0, "yes")]]
    assert len(server.bodies) == 2
    assert vlm.counts == {"failed": 1}


def test_an_error_that_stays_is_one_line(script, picture):
    server = script(lambda body, number: {"error": {"message": "out of\nmemory"}})
    message = "answered with an error and status 200: out of memory; look at the server's log and start again: "
    assert failure(server, picture, retries=1) == f"{message}answers so far are kept"
    assert len(server.bodies) == 2


def test_an_error_instead_of_the_list_of_models(script, picture):
    server = script(models={"error": {"message": "starting"}})
    assert failure(server, picture).startswith("answered with an error and status 200: starting; look at")


def answers_of(script, picture, kinds, **choices):
    """Answers to as many questions as there are replies, one after the other; with the VLM."""
    server = script(lambda body, number: kinds[number - 1])
    vlm = ServerVLM(server.url, concurrency=1, **choices)
    prompts = [Prompt((), replace(picture, question=f"{i}?")) for i in range(len(kinds))]
    return vlm, vlm.generate(prompts)


def test_poor_answers_are_counted(script, picture):
    kinds = [completion("yes"), reply(""), reply("a dog on", "length"), reply(None, "length", 5, reasoning="hm")]
    vlm, answers = answers_of(script, picture, [*kinds, reply("", "content_filter"), completion("no")])
    assert sorted(item for batch in answers for item in batch) == [
        *((0, "yes"), (1, ""), (2, "a dog on"), (3, ""), (4, ""), (5, "no"))
    ]
    assert vlm.counts == {"empty": 1, "cut": 1, "reasoning": 1, "refused": 1}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (reply("", "stop", 1), "of 20 answers, 17 are empty; look at what the server answers, and at its chat template."),
        (reply(None, refusal="no"), "of 20 answers, 17 are refused; give a model that answers such questions."),
        (
            reply("The image shows a", "length"),
            "of 20 answers, 17 are cut at the limit of tokens; give a model that answers in a few words, or a profile with a "
            "larger max_new_tokens.",
        ),
        (
            reply(None, "length", 5, reasoning_content="The"),
            "of 20 answers, 17 are nothing but reasoning; turn reasoning off on the server (vLLM and SGLang: "
            "--default-chat-template-kwargs '{\"enable_thinking\": false}'), or give a profile with a larger max_new_tokens.",
        ),
    ],
)
def test_too_many_poor_answers_end_the_run(script, picture, bad, message):
    """17 of 20 are more than 80 %. None of them has been given, so no cache keeps one."""
    vlm, answers = answers_of(script, picture, [*[completion("yes")] * 3, *[bad] * 20])
    results = []
    with pytest.raises(ServerError) as caught:
        results.extend(item for batch in answers for item in batch)
    assert str(caught.value) == f"{vlm.url}: {message} A larger max_poor_answers than 0.8 lets the run go on"
    assert results == [(0, "yes"), (1, "yes"), (2, "yes")]


def test_as_many_poor_answers_as_allowed(script, picture):
    kinds = [*[completion("yes")] * 4, *[reply("", "stop", 1)] * 16]
    _, answers = answers_of(script, picture, kinds)
    assert sum(len(batch) for batch in answers) == 20  # 16 of 20 are 80 %
    _, answers = answers_of(script, picture, [reply("", "stop", 1)] * 21, max_poor_answers=1)
    assert [text for batch in answers for _, text in batch] == [""] * 21
    _, answers = answers_of(script, picture, [reply("", "stop", 1)] * 19)
    assert sum(len(batch) for batch in answers) == 19  # too few to say anything


def test_the_key_is_not_shown(script, picture, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-12345")
    text = "wrong key sk-12345 for http://me:pass@inner/v1"
    for answer in ((400, {"error": {"message": text}}), {"error": {"message": text}}, text):
        message = failure(script(lambda body, number, answer=answer: answer), picture, retries=0)
        assert "wrong key *** for http://***@inner/v1" in message


def test_answers_stay_where_the_model_list_says_more(script, picture):
    assert ask(script(models={**cards("m"), "detail": "all models"}), picture) == ["yes"]
