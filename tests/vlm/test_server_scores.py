"""The probability of right answers on a server that tells the log probabilities of prompts, as vLLM does."""

import base64
import io
import math
import threading

import numpy as np
import pytest
import torch
from helpers.prompts import mini_prompts
from helpers.vlm_servers import completion, texts
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from lever_mlflow import mini
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.pipeline.checkpoints import RANDOM_INIT, initial_selector
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.pipeline.rollout import record_groups
from lever_mlflow.settings import RolloutSettings
from lever_mlflow.vlm.profiles import PROFILES
from lever_mlflow.vlm.qwen import QwenVLM
from lever_mlflow.vlm.server import ServerVLM
from lever_mlflow.vlm.server_replies import FailedReply
from lever_mlflow.vlm.server_scores import AnswerFrame, NoScores, read_prompt_tokens


class PromptLogprobs:
    """Replies to chat completions with the log probabilities of the prompt in vLLM's form, from the embedded VLM."""

    def __init__(self, template=None):
        self.model = AutoModelForImageTextToText.from_pretrained(mini.VLM_PATH, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(mini.VLM_PATH)
        self.template, self.lock, self.requests = template, threading.Lock(), 0

    def __call__(self, body, number):
        assert (body["max_tokens"], body["prompt_logprobs"], body["continue_final_message"]) == (1, 0, False)
        with self.lock:  # the processor is not made for several threads
            ids, logprobs = self.of(body["messages"], body["add_generation_prompt"])
            self.requests += 1
        places = [
            {str(token): {"logprob": value, "rank": 1, "decoded_token": self.processor.tokenizer.decode([token])}}
            for token, value in zip(ids[1:], logprobs, strict=True)
        ]
        return {**completion("x"), "prompt_logprobs": [None, *places]}

    def of(self, messages, opened):
        parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        settings = {"tokenize": False, "add_generation_prompt": opened, "chat_template": self.template}
        text = self.processor.apply_chat_template(messages, **settings)  # some versions of which change the messages
        images = [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) for url in urls]
        # the images have been resized already
        inputs = self.processor(text=[text], images=images or None, return_tensors="pt", do_resize=False)
        with torch.inference_mode():
            logits = self.model(**inputs).logits[0].double().log_softmax(-1)
        ids = inputs["input_ids"][0].tolist()
        return ids, [max(float(logits[i, token]), -9999.0) for i, token in enumerate(ids[1:])]


@pytest.fixture(scope="module")
def prompts(cache_dir):
    """Six prompts of 0 to 2 demonstrations, whose annotators gave several answers."""
    return mini_prompts(cache_dir, [0, 1, 2] * 2)


@pytest.fixture(scope="module")
def scoring():
    return PromptLogprobs()


def test_scores_are_those_of_the_local_model(script, prompts, scoring):
    profile = PROFILES["mini"]
    vlm = ServerVLM(script(scoring).url, profile=profile)
    before = scoring.requests
    scores = [float(text) for text in texts(vlm.score(prompts))]
    local = QwenVLM(mini.VLM_PATH, "digest", profile)
    expected = [float(text) for text in texts(local.score(prompts))]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-7)
    assert max(scores) > 0.3
    assert min(scores) < 0.1
    # five requests for what stands around an answer, and one for each different answer
    assert scoring.requests - before == 5 + sum(len(set(prompt.query.answers)) for prompt in prompts)


def test_a_rollout_records_scores_of_a_server(script, scoring, mlflow_store, cache_dir):
    """The scores of its trials are those that the local model gives."""

    def chat(body, number):
        return scoring(body, number) if "prompt_logprobs" in body else completion("yes")

    settings = RolloutSettings(n_queries=2, gt_prob=True, random_pointers=0, retrieval_per_feature=0, temperatures=(1.0,))
    options = {"cache_dir": cache_dir, "cache": "off", "profile": "mini"}
    recorded = [
        record_groups(Context(resources), settings, initial_selector(Context(resources), RANDOM_INIT))[0]
        for resources in (Resources(vlm=script(chat).url, **options), Resources(**options))
    ]
    served, local = [[trial.gt_prob for group in groups for trial in group.trials] for groups in recorded]
    assert len(served) > 8
    np.testing.assert_allclose(served, local, rtol=1e-4, atol=1e-7)


def test_keys_of_scores_and_answers_differ(script, prompts):
    vlm = ServerVLM(script().url)
    assert vlm.score_key(prompts[0]) != vlm.key(prompts[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            ("{{ message['content'] }}", "{{ message['content'] | trim }}"),
            "its chat template takes the space before an answer away",
        ),
        (
            ("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"),
            "its chat template writes answers in another way than the model generates them",
        ),
    ],
)
def test_templates_that_change_answers(script, scoring, change, reason):
    template = (mini.VLM_PATH / "chat_template.jinja").read_text()
    changed = template.replace(*change)
    assert changed != template
    other = PromptLogprobs(changed)
    url = script(other).url
    with pytest.raises(ParameterError) as caught:
        ServerVLM(url).check_scores()
    assert str(caught.value) == (
        f"gt_prob: {url} does not tell how probable answers are ({reason}); use vLLM, a local Qwen-VL or gt_prob=false"
    )


def test_a_server_that_refuses_the_parameter(script):
    message = "Unrecognized request argument supplied: prompt_logprobs"
    url = script(lambda body, number: (400, {"error": {"message": message}})).url
    with pytest.raises(
        ParameterError, match=rf"^gt_prob: {url} does not tell how probable answers are \(.*status 400: {message}"
    ):
        ServerVLM(url).check_scores()


def reply_with_scores(*places):
    return {**completion("x"), "prompt_logprobs": [None, *places]}


def test_a_probability_by_hand():
    """Opening 1 2, answer 5 6, end of turn 9 and a new line 8; what stands before them does not count."""
    logs = {"1": -1.0, "2": -1.0, "7": -4.0, "5": math.log(0.5), "6": math.log(0.25), "9": math.log(0.8), "8": -3.0}
    places = [{name: {"logprob": logs[name]}} for name in ("1", "2", "7", "9", "8", "1", "2", "5", "6", "9", "8")]
    frame = AnswerFrame((1, 2), (9, 8))
    assert frame.read_probability(reply_with_scores(*places)) == pytest.approx(0.1, rel=1e-12)
    impossible = [{**place, "5": {"logprob": -9999.0}} if "5" in place else place for place in places]
    assert frame.read_probability(reply_with_scores(*impossible)) == 0
    with pytest.raises(FailedReply, match="do not stand where the chat template puts answers"):
        frame.read_probability(reply_with_scores(*places[:-1]))
    with pytest.raises(FailedReply, match="its replies hold no prompt_logprobs"):
        frame.read_probability(completion("x"))


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (completion("x"), "hold no prompt_logprobs"),
        ({**completion("x"), "prompt_logprobs": None}, "hold no prompt_logprobs"),
        (reply_with_scores({"1": {"logprob": -1.0}, "2": {"logprob": -2.0}}), "hold more than the tokens"),
        (reply_with_scores({"a": {"logprob": -1.0}}), "another form than vLLM's"),
        (reply_with_scores([-1.0]), "another form than vLLM's"),
        (reply_with_scores({"1": {"logprob": None}}), "another form than vLLM's"),
    ],
)
def test_replies_without_scores(reply, reason):
    with pytest.raises(NoScores, match=reason):
        read_prompt_tokens(reply)
