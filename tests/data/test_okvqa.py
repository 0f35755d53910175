import json
import os

import pytest
from PIL import Image

from lever_mlflow.data.okvqa import describe, load_split, read_split, tally
from lever_mlflow.exceptions import DataError

QUESTIONS = "OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "mscoco_train2014_annotations.json"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def image(root, image_id):
    return root / "train2014" / f"COCO_train2014_{image_id:012d}.jpg"


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_samples_in_the_order_of_the_questions_file(okvqa_root):
    samples = load_split(okvqa_root, "train")
    assert [s.index for s in samples] == list(range(20))
    third = samples[3]
    assert (third.question_id, third.image_id, third.question) == (21, 2, "what is thing 3?")
    assert third.image_path == okvqa_root / "train2014" / "COCO_train2014_000000000002.jpg"
    assert third.answers == ("thing 3",) * 10
    assert third.answer == "thing 3"


def test_a_demonstration_shows_the_most_frequent_answer(okvqa_root):
    def divide(content):
        for answer, text in zip(content["annotations"][0]["answers"], "aabbbbcccc", strict=True):
            answer["raw_answer"] = text

    edit(okvqa_root / ANNOTATIONS, divide)
    assert load_split(okvqa_root, "train")[0].answer == "b"  # as often as c, but earlier


def test_answers_are_as_the_annotators_wrote_them(okvqa_root):
    def stem(content):
        for answer in content["annotations"][0]["answers"]:
            answer.update(raw_answer="racing", answer="race")
        for answer in content["annotations"][1]["answers"]:  # a file of one form, such as those of VQAv2
            del answer["raw_answer"]

    edit(okvqa_root / ANNOTATIONS, stem)
    first, second, *_ = read_split(okvqa_root, "train", scoring="plain").samples
    assert (first.answer, first.answers, first.stemmed_answers) == ("racing", ("racing",) * 10, ("race",) * 10)
    assert (second.answer, second.answers, second.stemmed_answers) == ("thing 1", ("thing 1",) * 10, ())
    assert (first.accuracy("race"), first.accuracy("racing"), second.accuracy("thing 1")) == (1.0, 0.0, 1.0)
    assert {sample.scoring for sample in load_split(okvqa_root, "train")} == {"raw"}


# Questions 30 and 31 are the fourth and fifth, on image 3.
@pytest.mark.parametrize(
    ("file", "change", "message", "left_out"),
    [
        (ANNOTATIONS, lambda c: c["annotations"].pop(4), "1 without annotation (question_id 30: not in", {30}),
        (QUESTIONS, lambda c: c["questions"].pop(4), "1 annotations without question (question_id 30: not in", {30}),
        (
            ANNOTATIONS,
            lambda c: c["annotations"][4]["answers"].pop(),
            "1 without 10 answers (question_id 30: 9 answers in",
            {30},
        ),
        (
            ANNOTATIONS,
            lambda c: c["annotations"][4].update(answers=[]),
            "1 without 10 answers (question_id 30: 0 answers in",
            {30},
        ),
        (ANNOTATIONS, lambda c: c["annotations"][4].update(answers="yes"), "answers is 'yes', expected list", {30}),
        (ANNOTATIONS, lambda c: c["annotations"][4].update(answers=["yes"] * 10), "answers[0]: answer is None, expected", {30}),
        (ANNOTATIONS, lambda c: c["annotations"][4]["answers"][2].update(answer=7), "answers[2]: answer is 7, expected", {30}),
        (
            ANNOTATIONS,
            lambda c: c["annotations"][4]["answers"][2].update(raw_answer=None),
            "answers[2]: raw_answer is None, expected text",
            {30},
        ),
        (ANNOTATIONS, lambda c: c["annotations"][4].update(image_id=77), "image_id 77 in", {30}),
        (ANNOTATIONS, lambda c: c["annotations"].append(c["annotations"][4]), "1 with a question_id that occurs twice", {30}),
        (
            QUESTIONS,
            lambda c: c["questions"][4].update(question_id=10),
            "question_id that occurs twice (question_id 10",
            {10, 30},
        ),
        (QUESTIONS, lambda c: c["questions"][4].update(question=None), "1 of the wrong form (question_id 30:", {30}),
        (QUESTIONS, lambda c: c["questions"][4].update(image_id="3"), "image_id is '3', expected int", {30}),
        (QUESTIONS, lambda c: c["questions"][4].update(image_id=True), "image_id is True, expected int", {30}),
        (QUESTIONS, lambda c: c["questions"][4].update(image_id=-3), "image_id is -3, expected an id of 0 to 2^63", {30}),
        (QUESTIONS, lambda c: c["questions"][4].pop("question_id"), "1 of the wrong form (questions[4]:", {30}),
        (QUESTIONS, lambda c: c["questions"].__setitem__(4, "what?"), "'what?' is no object", {30}),
        (QUESTIONS, lambda c: c["questions"][4].update(image_id=999), "image_id 3 in", {30}),
    ],
)
def test_bad_items_are_named_and_the_others_kept(okvqa_root, file, change, message, left_out):
    before = load_split(okvqa_root, "train")
    edit(okvqa_root / file, change)
    with pytest.raises(DataError) as error:
        load_split(okvqa_root, "train")
    assert message in str(error.value)
    assert str(okvqa_root) in str(error.value)
    samples, _, n_left_out = read_split(okvqa_root, "train")
    assert n_left_out == len(json.loads((okvqa_root / QUESTIONS).read_text())["questions"]) - len(samples)
    assert [s.question_id for s in samples] == [s.question_id for s in before if s.question_id not in left_out]
    assert [s.index for s in samples] == list(range(len(samples)))
    assert {(s.question, s.answers, s.image_path) for s in samples} <= {(s.question, s.answers, s.image_path) for s in before}


def test_everything_that_is_wrong_is_told_at_once(okvqa_root):
    for image_id in (3, 4):
        image(okvqa_root, image_id).unlink()
    truncate(image(okvqa_root, 5))
    image(okvqa_root, 6).write_text("no image")
    Image.new("RGB", (600, 3)).save(image(okvqa_root, 7))
    edit(okvqa_root / ANNOTATIONS, lambda c: c["annotations"].pop(0))
    split = read_split(okvqa_root, "train", max_aspect=200)
    assert tally(split.bad) == (
        "1 without annotation, 4 with a missing image, 4 with an image that does not decode, "
        "2 with an image too narrow for the VLM"
    )
    assert split.left_out == 11
    text = describe(split.bad)
    assert f"4 with a missing image (question_id 30, question_id 31, question_id 40, ...: {image(okvqa_root, 3)}; copy" in text
    assert (
        f"(question_id 50, question_id 51, question_id 60, ...: {image(okvqa_root, 5)}: does not decode as an image (" in text
    )
    assert f"{image(okvqa_root, 7)} is 600 x 3, the longer side must be below 200 times the shorter; crop" in text
    assert read_split(okvqa_root, "train", max_aspect=201).left_out == 9


def test_a_decompression_bomb_does_not_decode(okvqa_root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 56 * 56 // 2 - 1)  # an error from twice that on
    assert tally(read_split(okvqa_root, "train").bad) == "20 with an image that does not decode"


def test_images_that_decoded_are_remembered_until_they_change(okvqa_root, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(Image, "open", lambda path, real=Image.open, **keywords: opened.append(path) or real(path, **keywords))

    def bad():
        opened.clear()
        return tally(read_split(okvqa_root, "train", memo_dir=tmp_path / "memo").bad)

    truncate(image(okvqa_root, 5))
    assert bad() == "2 with an image that does not decode"
    assert len(opened) == 10
    assert bad() == "2 with an image that does not decode"
    assert opened == [image(okvqa_root, 5)]
    changed = image(okvqa_root, 8)
    size = changed.stat().st_size
    changed.write_bytes(b"x" * size)
    os.utime(changed, ns=(0, 1))
    assert bad() == "4 with an image that does not decode"
    assert sorted(opened) == [image(okvqa_root, 5), changed]
    (memo,) = (tmp_path / "memo").iterdir()
    for damaged in ("{", "[]", '{"x": 1}', json.dumps({str(image(okvqa_root, 1)): [1, 2]})):
        memo.write_text(damaged)
        assert bad() == "4 with an image that does not decode"
        assert len(opened) == 10


@pytest.mark.parametrize("content", [{"questions": []}, {"questions": {}}, {}])
def test_a_file_without_its_list(okvqa_root, content):
    (okvqa_root / QUESTIONS).write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"{QUESTIONS}: no list 'questions'"):
        read_split(okvqa_root, "train")


def rename(root, *names):
    for name in names:
        (root / name).rename(root / f"v2_{name}")


def test_files_of_vqav2_are_read_by_their_names(okvqa_root):
    before = load_split(okvqa_root, "train")
    rename(okvqa_root, QUESTIONS, ANNOTATIONS)
    assert load_split(okvqa_root, "train") == before
    edit(okvqa_root / f"v2_{ANNOTATIONS}", lambda c: c["annotations"].pop())
    with pytest.raises(DataError, match=f"without annotation .*/v2_{ANNOTATIONS}"):
        load_split(okvqa_root, "train")
    (okvqa_root / f"v2_{ANNOTATIONS}").unlink()
    with pytest.raises(DataError, match=f"/v2_{ANNOTATIONS}: no such file; download the official files"):
        read_split(okvqa_root, "train")


def test_files_of_two_data_sets_in_one_folder_are_refused(okvqa_root):
    rename(okvqa_root, ANNOTATIONS)
    with pytest.raises(
        DataError, match=r"okvqa: holds files of OK-VQA and of VQAv2 \(OpenEnded_.*, v2_OpenEnded_.*\); give each"
    ):
        read_split(okvqa_root, "train")


def test_equal_texts_are_in_memory_once(okvqa_root):
    edit(okvqa_root / ANNOTATIONS, lambda c: [a.update(answers=c["annotations"][0]["answers"]) for a in c["annotations"]])
    edit(okvqa_root / QUESTIONS, lambda c: [q.update(question="what is it?") for q in c["questions"]])
    samples = load_split(okvqa_root, "train")
    assert len({id(sample.question) for sample in samples}) == len({id(sample.answers) for sample in samples}) == 1
    assert len({id(sample.image_path) for sample in samples}) == 10


def test_truncated_file(okvqa_root):
    path = okvqa_root / QUESTIONS
    path.write_text(path.read_text()[:500])
    with pytest.raises(DataError, match=r"not valid JSON at line 1, column .* truncated: download it again"):
        read_split(okvqa_root, "train")


def test_missing_file_and_folder(okvqa_root):
    (okvqa_root / ANNOTATIONS).unlink()
    with pytest.raises(DataError, match=f"{ANNOTATIONS}: no such file; download"):
        read_split(okvqa_root, "train")
    with pytest.raises(DataError, match="no such data set folder"):
        read_split(okvqa_root / "absent", "train")
