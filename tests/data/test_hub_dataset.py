"""Data sets in the hub's formats, written by ``datasets`` itself into a folder, and read from there."""

import builtins
import hashlib
import io
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lever_mlflow.data.hub_dataset import ensure_hub_dataset
from lever_mlflow.data.okvqa import describe, load_split, read_split, tally
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.settings import DataSettings

datasets = pytest.importorskip("datasets", reason="not installed: python -m pip install 'datasets>=5.0'")

SPLITS = ("train", "validation")
TEN = [f"answer {i}" for i in range(10)]


def png(red):
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 0, 0)).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def columns(first=0, **others):
    """Three rows on two images."""
    return {
        "question": [f"what is {first + i}?" for i in range(3)],
        "answers": [TEN] * 3,
        "image": [png(first), png(first + 1), png(first)],
        **others,
    }


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(train, validation) leaves them as Parquet files in a folder and returns it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")

    def make(train, validation=None, image="image"):
        folder = tmp_path / "set"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for split, rows in zip(SPLITS, (train, validation or columns(100)), strict=True):
            table = datasets.Dataset.from_dict(rows)
            table = table.cast_column(image, datasets.Image()) if image in rows else table
            table.to_parquet(folder / f"{split}.parquet")
        return folder

    return make


@pytest.fixture
def read(tmp_path):
    """read(folder, **columns) is the folder in the official layout."""
    return lambda folder, **names: ensure_hub_dataset(str(folder), names, SPLITS, tmp_path / "cache")


def test_columns_become_the_official_files(write, read):
    root = read(
        write(columns(question_id=[7, 5, 6], image_id=[2, 1, 2]), columns(100, question_id=[8, 9, 4], image_id=[3, 2, 3]))
    )
    train, val = load_split(root, "train"), load_split(root, "val")
    assert [(s.index, s.question_id, s.image_id, s.question) for s in train] == [
        (0, 7, 2, "what is 0?"),
        (1, 5, 1, "what is 1?"),
        (2, 6, 2, "what is 2?"),
    ]
    assert [(s.question_id, s.image_id) for s in val] == [(8, 3), (9, 2), (4, 3)]
    assert {s.answers for s in (*train, *val)} == {tuple(TEN)}
    assert train[0].image_path == root / "train2014" / "COCO_train2014_000000000002.jpg"
    assert train[0].image_path.read_bytes() == png(0)["bytes"]
    names = [f"COCO_train2014_{image_id:012d}.jpg" for image_id in (1, 2)]
    assert sorted(path.name for path in (root / "train2014").iterdir()) == names


def test_without_ids_questions_and_images_are_numbered_over_both_splits(write, read):
    root = read(write(columns(), columns(1)))  # images 0 1 0, and 1 2 1
    splits = [load_split(root, split) for split in ("train", "val")]
    assert [[s.question_id for s in split] for split in splits] == [[1, 2, 3], [4, 5, 6]]
    assert [[s.image_id for s in split] for split in splits] == [[1, 2, 1], [2, 3, 2]]


def test_ids_as_text_are_numbers_or_are_numbered(write, read):
    numbers = {"question_id": ["11", "007", "3"], "image_id": ["b", "a", "b"]}
    others = {"question_id": ["12", "13", "14"], "image_id": ["c", "a", "c"]}
    root = read(write(columns(**numbers), columns(100, **others)))
    splits = [load_split(root, split) for split in ("train", "val")]
    assert [[s.question_id for s in split] for split in splits] == [[11, 7, 3], [12, 13, 14]]
    assert [[s.image_id for s in split] for split in splits] == [[1, 2, 1], [3, 2, 3]]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([[{"answer": text, "confidence": "yes"} for text in TEN]] * 3, TEN),
        (["only this"] * 3, ["only this"] * 10),
    ],
)
def test_forms_of_answers(write, read, answers, expected):
    root = read(write(columns(answers=answers), columns(100, answers=answers)))
    assert load_split(root, "train")[0].answers == tuple(expected)


def test_what_the_annotators_wrote_is_kept_beside_stems(write, read):
    objects = [{"answer": "race", "raw_answer": "racing"}] * 9 + [{"answer": "race", "raw_answer": None}]
    root = read(write(columns(answers=[objects] * 3), columns(100, answers=[objects] * 3)))
    sample = load_split(root, "train")[0]
    assert sample.answers == ("racing",) * 9 + ("race",)
    assert sample.stemmed_answers == ("race",) * 10


def test_answers_of_a_sequence_feature(write, read):
    """Objects under ``Sequence`` arrive as an object of lists."""
    fields = {"answer": "string", "raw_answer": "string", "answer_id": "int64"}
    objects = datasets.Sequence({name: datasets.Value(kind) for name, kind in fields.items()})
    features = datasets.Features({"question": datasets.Value("string"), "answers": objects, "image": datasets.Image()})
    raw = [f"{text}s" for text in TEN]
    rows = columns(answers=[{"answer": TEN, "raw_answer": raw, "answer_id": list(range(10))}] * 3)
    folder = write(columns())
    for split in SPLITS:
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    sample = load_split(read(folder), "train")[2]
    assert (sample.answers, sample.stemmed_answers) == (tuple(raw), tuple(TEN))


def test_other_names_of_columns_and_splits(write, tmp_path):
    names = {"question": "q", "answers": "labels", "image": "picture"}
    rows = {names[column]: values for column, values in columns().items()} | {"id": [1, 2, 3], "question_id": ["x"] * 3}
    folder = write(rows, rows, image="picture")
    root = ensure_hub_dataset(str(folder), {**names, "question_id": "id"}, ("train[:2]", "train[2:]"), tmp_path / "cache")
    assert [s.question_id for s in load_split(root, "train")] == [1, 2]
    assert [s.question_id for s in load_split(root, "val")] == [3]


def test_bad_rows_are_bad_items(write, read):
    rows = columns(question=["what?", None, "who?"], image=[None, png(1), png(2)], answers=[TEN, TEN, TEN[:9]])
    root = read(write(rows))
    assert tally(read_split(root, "train").bad) == "1 of the wrong form, 1 without 10 answers, 1 with a missing image"
    rows = columns(image=[{"bytes": b"no image", "path": None}, png(1), png(1)], answers=[TEN, None, TEN])
    split = read_split(read(write(rows)), "train")
    assert tally(split.bad) == "1 of the wrong form, 1 with an image that does not decode"
    assert [s.question for s in split.samples] == ["what is 2?"]


def test_a_copy_is_kept_for_the_same_content_and_columns(write, read, tmp_path):
    folder = write(columns())
    root = read(folder)
    stamp = (root / "mscoco_val2014_annotations.json").stat().st_mtime_ns
    assert read(folder) == root
    assert (root / "mscoco_val2014_annotations.json").stat().st_mtime_ns == stamp
    other = read(write(columns(1)))
    assert other != root
    assert load_split(other, "train")[0].question == "what is 1?"
    again = read(write(columns(question_id=[1, 2, 3], id=[4, 5, 6]), columns(100, question_id=[7, 8, 9], id=[1, 2, 3])))
    assert read(folder, question_id="id") not in (root, other, again)


def test_what_fails_leaves_nothing(write, read, tmp_path):
    folder = write(columns(image_id=[1, 1, 1]), columns(100, image_id=[3, 4, 3]))
    with pytest.raises(DataError, match=r"column image_id: 1 stands for different images; name another column with hf_columns"):
        read(folder)
    assert not list((tmp_path / "cache" / "hub-datasets").iterdir())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"answers": "labels"}, r"no column labels \(there are: question, answers, image\); name it with hf_columns=answers="),
        ({"question_id": "id"}, r"no column id \(there are: question, answers, image\); name it with hf_columns=question_id="),
        ({"image": "question"}, r"column question is Value\(.*\), expected images"),
        ({"question": "answers"}, r"column answers is List\(.*\), expected text"),
        ({"picture": "image"}, r"hf_columns: picture is not one of question, answers, image, question_id, image_id"),
    ],
)
def test_wrong_columns(write, read, names, message):
    with pytest.raises((DataError, ParameterError), match=message):
        read(write(columns()), **names)


def test_wrong_names_and_damaged_files(write, read, tmp_path):
    folder = write(columns(), columns(100, answers=["a", "b", "c"]))
    with pytest.raises(DataError, match=r"split train: cannot be read \(Couldn't cast array of type"):
        read(folder)
    folder = write(columns())
    with pytest.raises(DataError, match=r"hf:.*set, split val: cannot be read \(Unknown split"):
        ensure_hub_dataset(str(folder), {}, ("train", "val"), tmp_path)
    with pytest.raises(DataError, match=r"hf:owner/absent, split train: cannot be read \(.*\); check the name and hf_splits"):
        read("owner/absent")
    path = folder / "train.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"split train: cannot be read \("):
        read(folder)


LISTED = [str(TEN), json.dumps(TEN), str(TEN).replace(", ", ",")]


@pytest.mark.parametrize("forms", [*([form] * 3 for form in LISTED), LISTED])
def test_lists_that_were_written_as_text_are_lists(write, read, forms):
    root = read(write(columns(answers=forms), columns(100, answers=forms)))
    assert {sample.answers for split in ("train", "val") for sample in load_split(root, split)} == {tuple(TEN)}


def test_objects_that_were_written_as_text_are_objects(write, read):
    objects = json.dumps([{"answer": "race", "raw_answer": "racing", "answer_id": n} for n in range(10)])
    sample = load_split(read(write(columns(answers=[objects] * 3), columns(100, answers=[objects] * 3))), "train")[0]
    assert (sample.answers, sample.stemmed_answers) == (("racing",) * 10, ("race",) * 10)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            [str(TEN), "cat", str(TEN)],
            "has texts that hold lists, such as that in row 0, and others that cannot be read as lists, such as 'cat' in row 1",
        ),
        (["['a' 'b']"] * 3, r"has texts that cannot be read as lists, such as \"\['a' 'b'\]\" in row 0"),  # as NumPy writes it
        (["[a, b]"] * 3, r"has texts that cannot be read as lists, such as '\[a, b\]' in row 0"),
        (["array(['a'], dtype=object)"] * 3, "has texts that cannot be read as lists"),
        (["{'a': 1}"] * 3, "has texts that cannot be read as lists"),
        (["[1, 2]"] * 3, "has texts that cannot be read as lists"),
        (["[]"] * 3, "has texts that cannot be read as lists"),
        (["[" * 100_000] * 3, "has texts that cannot be read as lists"),
    ],
)
def test_texts_that_look_like_lists_are_refused(write, read, answers, message):
    with pytest.raises(DataError, match=message) as error:
        read(write(columns(answers=answers), columns(100, answers=answers)))
    assert ", split train: column answers has texts" in str(error.value)
    assert str(error.value).endswith("; give lists of 10 texts, or name another column with hf_columns=answers=COLUMN")


def test_an_answer_may_begin_with_a_bracket(write, read):
    answers = ["[unk]", "(a)", "cat"]
    samples = load_split(read(write(columns(answers=answers), columns(100, answers=answers))), "train")
    assert [sample.answer for sample in samples] == answers


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        ("question_id", [[1], [2], [3]], r"List\(Value\('int64'\)\), expected whole numbers or texts"),
        ("image_id", [{"a": 1}] * 3, r"\{'a': Value\('int64'\)\}, expected whole numbers or texts"),
        ("image_id", [1.0, 2.0, 3.0], r"Value\('float64'\), expected whole numbers or texts"),
        ("question_id", [True, False, True], r"Value\('bool'\), expected whole numbers or texts"),
        ("question_id", [None] * 3, r"Value\('null'\), expected whole numbers or texts"),
        ("answers", [1, 2, 3], r"Value\('int64'\), expected 10 texts"),
        ("answers", [[1] * 10] * 3, r"List\(Value\('int64'\)\), expected 10 texts"),
        ("answers", [[[text] for text in TEN]] * 3, r"List\(List\(Value\('string'\)\)\), expected 10 texts"),
        ("answers", [[{"answer": 7}] * 10] * 3, r"List\(\{'answer': Value\('int64'\)\}\), expected 10 texts"),
        ("answers", [[{"text": "a"}] * 10] * 3, r"List\(\{'text': Value\('string'\)\}\), expected 10 texts"),
        ("answers", [None] * 3, r"Value\('null'\), expected 10 texts"),
        ("question", [1, 2, 3], r"Value\('int64'\), expected text"),
        ("question", [["a"]] * 3, r"List\(Value\('string'\)\), expected text"),
    ],
)
def test_a_column_of_another_type_is_named_with_its_type(write, read, column, values, kind):
    folder = write(columns(**{column: values}), columns(100, **{column: values}))
    with pytest.raises(DataError, match=rf"^hf:{folder}: column {column} is {kind}.*; .* hf_columns={column}=COLUMN") as error:
        read(folder)
    assert "hub-datasets" not in str(error.value)


def test_an_id_column_that_cannot_be_used_can_be_left_out(write, read):
    rows = {"question_id": [[1], [2], [3]], "image_id": [5, None, 6]}
    folder = write(columns(**rows), columns(100, **rows))
    with pytest.raises(DataError, match=r"column question_id is .* number the rows with hf_columns=question_id=none"):
        read(folder)
    with pytest.raises(DataError, match=r"split train: column image_id has no value in row 1; .* hf_columns=image_id=none"):
        read(folder, question_id="none")
    root = read(folder, question_id="none", image_id="none")
    assert [(s.question_id, s.image_id) for s in load_split(root, "train")] == [(1, 1), (2, 2), (3, 1)]


@pytest.mark.parametrize("ids", [["7", "007", "8"], ["1", "2", str(2**63)], ["١", "1", "2"]])
def test_ids_that_are_no_different_numbers_are_numbered(write, read, ids):
    root = read(write(columns(question_id=ids), columns(100, question_id=["x", "y", ids[1]])))
    splits = [load_split(root, split) for split in ("train", "val")]
    assert [[s.question_id for s in split] for split in splits] == [[1, 2, 3], [4, 5, 2]]


def test_bad_rows_are_named_by_the_data_set_and_not_by_a_file_in_the_cache(write, read):
    Image.new("RGB", (60, 3)).save(narrow := io.BytesIO(), "PNG")
    rows = {
        "question": ["what?", None, "\u200b", "a", "b", "c", "d"],
        "answers": [TEN[:9], *[TEN] * 6],
        "image": [
            png(1),
            png(1),
            png(1),
            None,
            {"bytes": b"no image", "path": None},
            {"bytes": narrow.getvalue(), "path": None},
            png(2),
        ],
    }
    folder = write(rows)
    split = read_split(read(folder), "train", max_aspect=20)
    place, remedy = f"hf:{folder}, split train", "mend these rows, or name other columns with hf_columns"
    empty = "question is empty, or nothing of it can be seen; give text"
    limit = "the longer side must be below 20 times the shorter"
    assert describe(split.bad).split("; 1 ") == [
        f"1 of the wrong form (row 1: {place}: question is None, expected str; {remedy})",
        f"without 10 answers (row 0: 9 answers in {place}; {remedy})",
        f"with an empty or overlong text (row 2: {place}: {empty}; {remedy})",
        f"with a missing image (row 3: the image in {place}; {remedy})",
        f"with an image that does not decode (row 4: the image in {place}: does not decode as an image "
        f"(cannot identify image file 'the image in {place}'); {remedy})",
        f"with an image too narrow for the VLM (row 5: the image in {place} is 60 x 3, {limit}; crop or replace the images)",
    ]
    assert [sample.question for sample in split.samples] == ["d"]


def test_without_the_library_one_line_says_how_to_get_it(monkeypatch, tmp_path):
    def without(name, *arguments, real=builtins.__import__, **keywords):
        if name == "datasets":
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ParameterError, match=r"needs the datasets library; .*: python -m pip install 'datasets>=5\.0'"):
        ensure_hub_dataset("owner/name", {}, SPLITS, tmp_path)


def test_as_a_data_set_of_a_run(write, cache_dir):
    folder = write(columns())
    resources = Resources(dataset=f"hf:{folder}", cache_dir=cache_dir, data=DataSettings(hf_columns={"image": "image"}))
    resources.check()
    expected = hashlib.sha256()
    for sample in (*resources.train, *resources.val):
        image = hashlib.sha256(sample.image_path.read_bytes()).hexdigest()
        item = (sample.question_id, sample.image_id, sample.question, sample.answers, image)
        expected.update(json.dumps(item).encode())
    assert resources.dataset_digest == expected.hexdigest()[:16]
    assert re.fullmatch("set-mini-[0-9a-f]{8}", resources.label)


def test_a_table_reads_no_image_outside_of_its_folder(write, read, tmp_path):
    folder, secret = write(columns()), tmp_path / "secret.png"
    secret.write_bytes(png(7)["bytes"])
    (folder / "own.png").write_bytes(png(8)["bytes"])
    (folder / "link.png").symlink_to(secret)
    table = pq.read_table(folder / "train.parquet")
    paths = [str(folder / "own.png"), str(secret), str(folder / "link.png")]
    images = pa.array([{"bytes": None, "path": path} for path in paths], table.schema.field("image").type)
    pq.write_table(table.set_column(2, table.schema.field("image"), images), folder / "train.parquet")
    split = read_split(read(folder), "train")
    assert [sample.question for sample in split.samples] == ["what is 0?"]
    assert tally(split.bad) == "2 with a missing image"
