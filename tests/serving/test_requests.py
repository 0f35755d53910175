"""Rows of a request: what becomes a query, and the one line that tells what is wrong."""

import base64
import io
import os

import numpy as np
import pytest
from PIL import Image

from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.serving.requests import QUERY_IMAGES, FeatureDims, Row, read_queries
from lever_mlflow.settings import ServingSettings

LIMITS = ServingSettings(max_rows=3, max_image_bytes=100_000, max_image_pixels=10_000)
UNIT = [0.6, 0.8]


def file(size=(8, 8), format="PNG", mode="RGB"):
    content = io.BytesIO()
    Image.new(mode, size).save(content, format)
    return content.getvalue()


def encoded(content):
    return base64.b64encode(content).decode()


PNG = encoded(file())


def read(*rows):
    return read_queries([Row.model_validate(row, strict=True) for row in rows], FeatureDims(2, 2), LIMITS)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_question_with_its_image(format):
    content = file((10, 6), format)
    (query,) = read({"question": "what is this?", "image": encoded(content), "image_features": None})
    assert (query.question, query.image, query.features, query.decoded().size) == ("what is this?", content, None, (10, 6))


def test_features():
    (query,) = read({"image_features": UNIT, "text_features": np.array([0, 1])})
    assert [part.tolist() for part in query.features] == [[np.float32(0.6), np.float32(0.8)], [0, 1]]
    assert query.features[0].dtype == np.float32


def float32(*numbers):
    return np.array(numbers, dtype="<f4").tobytes()


def test_features_are_the_same_in_every_form():
    """0.6 and 0.8 as float32 are 0x3f19999a and 0x3f4ccccd, whose bytes stand in little-endian order."""
    assert encoded(float32(*UNIT)) == "mpkZP83MTD8=" == encoded(bytes.fromhex("9a99193fcdcc4c3f"))
    rows = [{"image_features": form, "text_features": [0, 1]} for form in (UNIT, "mpkZP83MTD8=", float32(*UNIT))]
    expected, *others = read(*rows)
    for query in others:
        assert query.content_id == expected.content_id
        assert query.features[0].tobytes() == expected.features[0].tobytes() == float32(*UNIT)
        assert query.features[0].dtype == np.float32


def test_an_image_as_bytes():
    as_bytes, as_text = read({"question": "a", "image": file()}, {"question": "a", "image": PNG})
    assert as_bytes.content_id == as_text.content_id
    with pytest.raises(ParameterError, match="row 0: image has more than 100000 bytes"):
        read({"question": "a", "image": bytes(100_001)})
    with pytest.raises(ParameterError, match=r"row 0: image is no PNG or JPEG image"):
        read({"question": "a", "image": b"a.png"})


def test_the_content_names_a_query_wherever_it_is():
    one, two = {"question": "a", "image": PNG}, {"image_features": UNIT, "text_features": UNIT}
    ids = [query.content_id for query in (*read(one, two), *read(two, one))]
    assert ids[0] == ids[3] != ids[1] == ids[2]
    assert all(0 <= number < 2**63 for number in ids)
    others = {"question": "b", "image": PNG}, {"question": "a", "image": encoded(file((9, 9)))}
    assert len({ids[0], *(query.content_id for query in read(*others))}) == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "row 0: holds nothing; give question and image, or image_features and text_features"),
        ({"question": "a"}, "row 0: holds question; give question and image, or"),
        ({"question": "a", "image": None}, "row 0: holds question; give"),
        ({"question": "a", "image": PNG, "text_features": UNIT}, "row 0: holds image and question and text_features; give"),
        (
            {"question": "a", "picture": PNG},
            "row 0: unknown column 'picture'; columns are question, image, image_",
        ),
        ({"question": 5, "image": PNG}, "row 0: question is of type int; give text"),
        ({"question": " \n", "image": PNG}, "row 0: question is empty"),
        ({"question": "a" * 2001, "image": PNG}, "row 0: question has 2001 characters, at most 2000 are taken"),
        ({"question": "\ud800", "image": PNG}, "row 0: question holds half of a surrogate pair"),
        ({"question": "a", "image": 5}, "row 0: image is of type int"),
        ({"question": "a", "image": ""}, "row 0: image is no PNG or JPEG image (of an unknown format)"),
        ({"question": "a", "image": PNG[:-1]}, "row 0: image is not base64"),
        (
            {"question": "a", "image": PNG[:40] + "\n" + PNG[40:]},
            "row 0: image is not base64; encode the file without",
        ),
        ({"question": "a", "image": "é" + PNG}, "row 0: image is not base64"),
        ({"question": "a", "image": "http://127.0.0.1/a.png"}, "row 0: image is a URL, and none is fetched"),
        ({"question": "a", "image": "HTTPS://a/b"}, "row 0: image is a URL"),
        ({"question": "a", "image": "file:///etc/a.png"}, "row 0: image is a URL"),
        ({"question": "a", "image": f"data:image/png;base64,{PNG}"}, "row 0: image is a URL"),
        ({"question": "a", "image": "/etc/a.png"}, f"row 0: image is a path, and {QUERY_IMAGES} is not set"),
        (
            {"question": "a", "image": encoded(file(format="GIF"))},
            "row 0: image is no PNG or JPEG image (of an unknown format)",
        ),
        ({"question": "a", "image": encoded(b"%PDF-1.7")}, "row 0: image is no PNG or JPEG image"),
        ({"question": "a", "image": encoded(file((101, 100)))}, "row 0: image has 101 x 100 pixels, at most 10000 are taken"),
        (
            {"question": "a", "image": encoded(file((20_000, 20_000), mode="1"))},
            "row 0: image is no PNG or JPEG image (Image",
        ),
        ({"question": "a", "image": "A" * 133_341}, "row 0: image has more than 100000 bytes"),
        ({"image_features": UNIT}, "row 0: holds image_features; give"),
        ({"image_features": UNIT, "text_features": [1]}, "row 0: text_features: 1 numbers, expected 2; give"),
        ({"image_features": [[1], [0]], "text_features": UNIT}, "row 0: image_features: not a list of numbers"),
        ({"image_features": "ab", "text_features": UNIT}, "row 0: image_features: not a list of numbers, nor the bytes of"),
        ({"image_features": "mpkZP83MTD8", "text_features": UNIT}, "row 0: image_features: not a list of numbers, nor"),
        ({"image_features": "mpkZP\n83MTD8=", "text_features": UNIT}, "row 0: image_features: not a list of numbers, nor"),
        ({"image_features": "é", "text_features": UNIT}, "row 0: image_features: not a list of numbers, nor"),
        ({"image_features": encoded(b"123"), "text_features": UNIT}, "row 0: image_features: not a list of numbers, nor"),
        ({"image_features": 5, "text_features": UNIT}, "row 0: image_features: not a list of numbers, nor"),
        ({"image_features": np.array(1.0), "text_features": UNIT}, "row 0: image_features: not a list of numbers, nor"),
        ({"image_features": "", "text_features": UNIT}, "row 0: image_features: 0 numbers, expected 2; give"),
        ({"image_features": encoded(float32(1, 0, 0)), "text_features": UNIT}, "row 0: image_features: 3 numbers, expected 2"),
        ({"image_features": np.array([1.0]).tobytes(), "text_features": UNIT}, "row 0: image_features: of length 1.875"),
        ({"image_features": encoded(float32(np.nan, 1)), "text_features": UNIT}, "row 0: image_features: of length nan"),
        ({"image_features": encoded(float32(np.inf, 1)), "text_features": UNIT}, "row 0: image_features: of length inf"),
        ({"image_features": UNIT, "text_features": float32(3, 4)}, "row 0: text_features: of length 5, expected finite"),
        ({"image_features": [True, False], "text_features": UNIT}, "row 0: image_features: not a list of numbers"),
        (
            {"image_features": [float("nan"), 1.0], "text_features": UNIT},
            "row 0: image_features: of length nan, expected",
        ),
        ({"image_features": [float("inf"), 1.0], "text_features": UNIT}, "row 0: image_features: of length inf"),
        ({"image_features": [10**400, 1], "text_features": UNIT}, "row 0: image_features: of length inf"),
        ({"image_features": UNIT, "text_features": [3.0, 4.0]}, "row 0: text_features: of length 5, expected finite numbers"),
        ({"image_features": UNIT, "text_features": [0, 0]}, "row 0: text_features: of length 0"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_row_that_is_wrong(row, message, monkeypatch):
    monkeypatch.delenv(QUERY_IMAGES, raising=False)
    with pytest.raises(ParameterError) as raised:
        read(row)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250


def test_no_rows_and_too_many():
    with pytest.raises(ParameterError, match="no rows in the request"):
        read()
    row = {"question": "a", "image": PNG}
    assert [query.name for query in read(row, row, row)] == ["row 0", "row 1", "row 2"]
    with pytest.raises(ParameterError, match="4 rows in the request, at most 3 are taken"):
        read(row, row, row, row)
    with pytest.raises(ParameterError, match="row 1: holds nothing"):
        read(row, {})


def test_a_truncated_image_is_named_when_it_is_decoded():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8))
    for format in ("PNG", "JPEG"):
        content = io.BytesIO()
        noise.save(content, format)
        (query,) = read({"question": "a", "image": encoded(content.getvalue()[:-1500])})
        with pytest.raises(DataError, match=r"^row 0: image does not decode as an image \(.+\); send the whole file$"):
            query.decoded()


def test_paths_are_read_in_the_given_folder_alone(tmp_path, monkeypatch):
    folder, outside = tmp_path / "images", tmp_path / "outside"
    for place in (folder / "deep", outside):
        place.mkdir(parents=True)
    content = file()
    for path in (folder / "a.png", folder / "deep" / "b.JPG", outside / "c.png"):
        path.write_bytes(content)
    (folder / "large.png").write_bytes(bytes(100_001))
    (folder / "link.png").symlink_to(outside / "c.png")
    (folder / "elsewhere").symlink_to(outside)
    (folder / "inner.png").symlink_to(folder / "a.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    monkeypatch.setenv(QUERY_IMAGES, str(folder))
    for image in ("a.png", "deep/b.JPG", "deep/../a.png", "inner.png", str(folder / "a.png")):
        assert read({"question": "a", "image": image})[0].image == content
    outside_or_missing = ["../outside/c.png", str(outside / "c.png"), "link.png", "elsewhere/c.png", "missing.png"]
    unusual = ["folder.png", "pipe.png", "a\0.png", "x" * 5000 + ".png", "/proc/self/environ.png", ".png"]
    for image in (*outside_or_missing, *unusual):
        with pytest.raises(ParameterError) as raised:
            read({"question": "a", "image": image})
        assert str(raised.value) == f"row 0: image is no readable file in the folder that {QUERY_IMAGES} names; send base64"
    with pytest.raises(ParameterError, match="row 0: image has more than 100000 bytes"):
        read({"question": "a", "image": "large.png"})
    monkeypatch.setenv(QUERY_IMAGES, str(tmp_path / "no such folder"))
    with pytest.raises(ParameterError, match="no readable file in the folder"):
        read({"question": "a", "image": "a.png"})
