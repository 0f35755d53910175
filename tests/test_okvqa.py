import json

import pytest

from lever_mlflow.exceptions import DataError
from lever_mlflow.okvqa import load_split

QUESTIONS = "OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "mscoco_train2014_annotations.json"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


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
            answer["answer"] = text

    edit(okvqa_root / ANNOTATIONS, divide)
    assert load_split(okvqa_root, "train")[0].answer == "b"  # as often as c, but earlier


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (ANNOTATIONS, lambda c: c["annotations"].pop(4), "no annotation for question_id 30"),
        (QUESTIONS, lambda c: c["questions"].pop(4), "annotation without question: question_id 30"),
        (ANNOTATIONS, lambda c: c["annotations"][4]["answers"].pop(), "question_id 30: 9 answers, expected 10"),
        (ANNOTATIONS, lambda c: c["annotations"][4]["answers"][2].update(answer=7), r"answers\[2\]: answer is 7"),
        (ANNOTATIONS, lambda c: c["annotations"][4].update(image_id=77), "image_id 77, but 3 in"),
        (QUESTIONS, lambda c: c["questions"][4].update(question_id=10), "question_id 10 occurs twice"),
        (QUESTIONS, lambda c: c["questions"][4].update(question=None), r"questions\[4\]: question is None, expected str"),
        (QUESTIONS, lambda c: c.update(questions=[]), "no list 'questions'"),
    ],
)
def test_inconsistent_files_are_named(okvqa_root, file, change, message):
    edit(okvqa_root / file, change)
    with pytest.raises(DataError, match=message) as error:
        load_split(okvqa_root, "train")
    assert str(okvqa_root) in str(error.value)


def test_truncated_file(okvqa_root):
    path = okvqa_root / QUESTIONS
    path.write_text(path.read_text()[:500])
    with pytest.raises(DataError, match=r"not valid JSON at line 1, column .* truncated: download it again"):
        load_split(okvqa_root, "train")


def test_missing_file_folder_and_image(okvqa_root):
    (okvqa_root / "train2014" / "COCO_train2014_000000000003.jpg").unlink()
    with pytest.raises(DataError, match=r"000000000003.jpg: image of question_id 30 is missing"):
        load_split(okvqa_root, "train")
    (okvqa_root / ANNOTATIONS).unlink()
    with pytest.raises(DataError, match=f"{ANNOTATIONS}: no such file; download"):
        load_split(okvqa_root, "train")
    with pytest.raises(DataError, match="no such data set folder"):
        load_split(okvqa_root / "absent", "train")
