"""The rules for the texts of an item, which are the same at every door."""

import base64
import io
import json

import pytest
from PIL import Image

from lever_mlflow.data.hub_dataset import ensure_hub_dataset
from lever_mlflow.data.item_rules import answers_problem, is_visible, text_problem
from lever_mlflow.data.okvqa import load_split, read_split, tally
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.serving.requests import FeatureDims, Row, read_queries
from lever_mlflow.settings import ServingSettings

UNSEEN = ["", "  \n\t", "\u200b\u200d", "\ufeff", "\u00a0\u3000", "\u3164", "\u2800", "\x00\x7f"]
SEEN = ["?", "a", "\u200b?", "何", "😀", "é", ".", "०"]


@pytest.mark.parametrize("text", UNSEEN)
def test_texts_in_which_nothing_can_be_seen(text):
    assert not is_visible(text)
    assert text_problem(text) == "is empty, or nothing of it can be seen; give text"


@pytest.mark.parametrize("text", SEEN)
def test_texts_in_which_something_can_be_seen(text):
    assert is_visible(text)
    assert text_problem(text) == ""


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is null; give text"),
        (7, "is of type int; give text"),
        (["a"], "is of type list; give text"),
        ("a" * 2001, "has 2001 characters, at most 2000 are taken; shorten it"),
        ("a\ud800", "holds half of a surrogate pair; give valid Unicode"),
        ("a" * 2000, ""),
    ],
)
def test_what_is_no_text_of_an_item(value, problem):
    assert text_problem(value) == problem


def test_single_annotators_may_answer_nothing():
    assert answers_problem(["", " ", "red"]) == ""
    assert answers_problem(["", " "]) == "all answers are empty, or nothing of them can be seen; give at least one"
    assert answers_problem(["red", "a" * 2001]) == "an answer has 2001 characters, at most 2000 are taken; shorten it"
    assert answers_problem([]) == ""  # their number is another rule


def image():
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    return content.getvalue()


def accepted_in_files(root, question):
    path = root / "OpenEnded_mscoco_train2014_questions.json"
    content = json.loads(path.read_text())
    content["questions"][4]["question"] = question
    path.write_text(json.dumps(content))
    split = read_split(root, "train")
    assert split.bad == [] or tally(split.bad) == "1 with an empty or overlong text"
    return not split.bad


def accepted_in_hub_data(folder, cache_dir, question):
    datasets = pytest.importorskip("datasets", reason="not installed: python -m pip install 'datasets>=5.0'")
    folder.mkdir()
    rows = {"question": ["a", question], "answers": [["a"] * 10] * 2, "image": [{"bytes": image(), "path": None}] * 2}
    for split in ("train", "validation"):
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        table.to_parquet(folder / f"{split}.parquet")
    split = read_split(ensure_hub_dataset(str(folder), {}, ("train", "validation"), cache_dir), "train")
    assert split.bad == [] or tally(split.bad) == "1 with an empty or overlong text"
    return not split.bad


def accepted_in_a_request(question):
    row = Row(question=question, image=base64.b64encode(image()).decode())
    try:
        return bool(read_queries([row], FeatureDims(4, 4), ServingSettings()))
    except ParameterError:
        return False


@pytest.mark.parametrize("question", ["\u200b \u3164", "a" * 2001, "a" * 2000, ".", "何"])
def test_every_door_has_the_same_rules(okvqa_root, tmp_path, question, monkeypatch):
    expected = text_problem(question) == ""
    assert accepted_in_files(okvqa_root, question) == expected
    assert accepted_in_hub_data(tmp_path / "hub", tmp_path / "cache", question) == expected
    assert accepted_in_a_request(question) == expected


def test_empty_answers_are_kept_but_not_shown(okvqa_root):
    path = okvqa_root / "mscoco_train2014_annotations.json"
    content = json.loads(path.read_text())
    for position, texts in ((0, ["", "", "", "", "native", "native", "red", "red", "red", "\u200b"]), (1, ["", " "] * 5)):
        for answer, text in zip(content["annotations"][position]["answers"], texts, strict=True):
            answer["raw_answer"] = text
    path.write_text(json.dumps(content))
    split = read_split(okvqa_root, "train")
    assert tally(split.bad) == "1 with an empty or overlong text"
    assert (split.bad[0].place, split.left_out) == (11, 1)
    sample = split.samples[0]
    assert (sample.answer, len(sample.answers)) == ("red", 10)
    assert (sample.accuracy("red"), sample.accuracy("")) == (0.9, 0.0)  # 3 of 10: (7 * 1 + 3 * 2/3) / 10


def test_the_first_of_equally_frequent_answers_is_shown(okvqa_root):
    assert load_split(okvqa_root, "train")[0].answer == "thing 0"
