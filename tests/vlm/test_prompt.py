from dataclasses import replace
from pathlib import Path

import pytest

from lever_mlflow.vlm.profiles import PROFILES
from lever_mlflow.vlm.prompt import Prompt, build_messages, clean_generation, prompt_key


def texts(messages):
    return [part.get("text", part.get("image")) for message in messages for part in message["content"]]


def test_prompt_in_order_with_the_true_number_of_demonstrations(samples):
    assert texts(build_messages(samples[2:4], samples[9])) == [
        "Answer the last question in a few words, after 2 solved examples.",
        "1.jpg",
        "Question: question 2? Short answer: answer 2\n",
        "1.jpg",
        "Question: question 3? Short answer: answer 3\n",
        "4.jpg",
        "Question: question 9? Short answer:",
    ]


@pytest.mark.parametrize(("shots", "words"), [(0, "no solved example"), (1, "1 solved example"), (4, "4 solved examples")])
def test_system_text(samples, shots, words):
    assert texts(build_messages(samples[:shots], samples[9]))[0].endswith(f"after {words}.")


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (" mars", "mars"),
        (" mars\nQuestion: what", "mars"),
        (" mars\nShort answer", "mars"),
        (" mars Short answer: x", "mars"),
        (" mars Answer: x", "mars"),
        ("\n mars\n", "mars"),
        (" Question: what", ""),
        (" American Shorthair", "American Shorthair"),
        (" Shorts", "Shorts"),
        (" Question mark", "Question mark"),
        (" red, blue", "red"),
        ("1,000", "1,000"),
        ("", ""),
    ],
)
def test_cleaned_generation(raw, answer):
    assert clean_generation(raw) == answer


def test_the_key_of_an_equal_prompt_is_not_made_again(samples):
    read = []

    def digest(path):
        read.append(path.name)
        return "content"

    keys = [prompt_key(Prompt((samples[0],), replace(samples[9])), PROFILES["mini"], "model", digest) for _ in range(3)]
    assert len(set(keys)) == 1
    assert read == [samples[0].image_path.name, samples[9].image_path.name]


def test_key_changes_with_everything_an_answer_depends_on(samples):
    profile = PROFILES["mini"]
    digest = lambda path: f"content of {path.name}"  # noqa: E731
    prompt = Prompt((samples[0], samples[2]), samples[9])
    base = prompt_key(prompt, profile, "model", digest)
    assert base == prompt_key(prompt, profile, "model", digest)
    changed = [
        prompt_key(prompt, profile, "other", digest),
        prompt_key(prompt, replace(profile, max_new_tokens=6), "model", digest),
        prompt_key(prompt, profile, "model", lambda path: "other content"),
        prompt_key(Prompt((samples[2], samples[0]), samples[9]), profile, "model", digest),
        prompt_key(Prompt((samples[0],), samples[9]), profile, "model", digest),
    ]
    assert len({base, *changed}) == 6
    moved = replace(samples[9], index=77, image_path=Path("copy.jpg"))
    same = lambda path: "content"  # noqa: E731
    assert prompt_key(Prompt((), moved), profile, "m", same) == prompt_key(Prompt((), samples[9]), profile, "m", same)
