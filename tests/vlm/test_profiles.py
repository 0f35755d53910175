"""Prompt profiles: those of the package, and files of users."""

import json
from dataclasses import asdict

import pytest

from lever_mlflow import mini
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.vlm.language_model import VlmName, open_language_model
from lever_mlflow.vlm.profiles import PROFILES, find_profile
from lever_mlflow.vlm.prompt import build_messages

GENERIC = asdict(PROFILES["generic"])


@pytest.fixture
def profile_file(tmp_path):
    """profile_file(**changes) is the path of the generic profile with changes; None leaves a field out."""

    def write(**changes):
        content = {name: value for name, value in {**GENERIC, **changes}.items() if value is not None}
        (tmp_path / "mine.json").write_text(json.dumps(content))
        return str(tmp_path / "mine.json")

    return write


def test_digests_of_earlier_versions_are_kept():
    """Cached answers and finished runs are found by them."""
    digests = {name: PROFILES[name].digest for name in ("qwen2.5-vl", "openai", "mini")}
    assert digests == {"qwen2.5-vl": "9f74efa6669b30b3", "openai": "e0202245bcdbb430", "mini": "821efa70e014ebfa"}


def test_a_profile_is_named_by_its_file_and_every_one_is_different():
    assert [profile.name for profile in PROFILES.values()] == list(PROFILES)
    assert len({profile.digest for profile in PROFILES.values()}) == len(PROFILES)


def test_a_file_of_ones_own(profile_file, samples, tmp_path):
    path = profile_file(name="mine", num_beams=1, system="", demonstration="Q {question} A {answer}. ", query="Q {question} A")
    profile = find_profile(path)
    (turn,) = build_messages(samples[2:3], samples[9], profile)  # no system turn
    assert [part.get("text") for part in turn["content"]] == [None, "Q question 2? A answer 2. ", None, "Q question 9? A"]
    model = open_language_model(VlmName(str(mini.VLM_PATH), profile=path), tmp_path)
    assert (model.profile, model.profile.digest) == (profile, profile.digest)
    assert open_language_model(VlmName("http://127.0.0.1:1/v1", profile=path), tmp_path).profile == profile


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0, expected at least 1"),
        ({"num_beams": "3"}, "num_beams: Input should be a valid integer"),
        ({"max_pixels": 10}, "max_pixels is 10, expected at least min_pixels, 200704"),
        ({"query": "Question:"}, "query: 'Question:' lacks {question}"),
        ({"demonstration": "{question} {answr}"}, r"demonstration: '{question} {answr}' cannot be filled in \(KeyError"),
        ({"system": "{"}, "system: '{' cannot be filled in"),
        ({"min_pixels": None}, "min_pixels: Field required"),
        ({"beams": 3}, "beams: Unexpected keyword argument"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(profile_file, changes, message):
    with pytest.raises(ParameterError, match=rf"^profile=.*mine\.json: not a prompt profile \(.*{message}.*docs/real-data\.md"):
        find_profile(profile_file(**changes))


def test_a_name_that_is_none_is_refused(tmp_path):
    with pytest.raises(
        ParameterError, match=r"^profile=qwen: no such file .looked for at .*; give a JSON file, or one of qwen2\.5-vl"
    ):
        find_profile("qwen")
    (tmp_path / "cut.json").write_text('{"name": ')
    with pytest.raises(ParameterError, match="not a prompt profile"):
        find_profile(str(tmp_path / "cut.json"))


def test_servers_take_no_beams(profile_file, tmp_path):
    with pytest.raises(ParameterError, match="num_beams is 3, but servers have no beam search; set it to 1"):
        open_language_model(VlmName("http://127.0.0.1:1/v1", profile=profile_file()), tmp_path)
