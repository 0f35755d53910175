"""Image files: what is decoded, what is refused, and what is remembered."""

import base64
import hashlib
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.images import (
    batches_of_images,
    decode_image,
    fit_image,
    fitted_image,
    header_size,
    image_digest,
    image_size,
    image_sizes,
    png_data_url,
    read_image,
    thumbnail,
)


def content(size=(12, 8), format="PNG", mode="RGB", color=0):
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, format)
    return file.getvalue()


@pytest.fixture
def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("mode", "color", "rgb"),
    [("L", 7, (7, 7, 7)), ("1", 1, (255, 255, 255)), ("RGBA", (1, 2, 3, 0), (1, 2, 3)), ("RGB", (4, 5, 6), (4, 5, 6))],
)
def test_every_image_becomes_rgb(tmp_path, mode, color, rgb):
    (tmp_path / "a.jpg").write_bytes(content(mode=mode, color=color))  # a PNG, whatever it is called
    for image in (read_image(tmp_path / "a.jpg"), decode_image(content(mode=mode, color=color))):
        assert (image.mode, image.size, image.getpixel((11, 7))) == ("RGB", (12, 8), rgb)


def test_an_orientation_is_not_applied(tmp_path, noise):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    noise.save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png").size == image_size(tmp_path / "a.png") == (90, 60)


def test_damaged_and_missing_files_are_named(tmp_path, noise):
    noise.save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-900])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("cut.jpg", "text.jpg"):
        with pytest.raises(DataError, match=rf"/{name}: does not decode as an image \(.*\); copy it again$"):
            read_image(tmp_path / name)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"/missing.jpg: image cannot be read \(No such file or directory\); restore it"):
            read(tmp_path / "missing.jpg")
    assert image_size(tmp_path / "cut.jpg") == (90, 60)  # its header is whole
    with pytest.raises(DataError, match=r"^does not decode as an image \(of an unknown format\)$"):
        decode_image(b"no image")


def test_a_header_is_read_in_the_allowed_formats_alone():
    assert header_size(content((12, 8), "JPEG"), ("PNG", "JPEG")) == (12, 8)
    with pytest.raises(DataError, match=r"^is no PNG or JPEG image \(of an unknown format\)$"):
        header_size(content(format="GIF"), ("PNG", "JPEG"))
    bomb = content((20_000, 20_000), mode="1")
    for read in (decode_image, lambda file: header_size(file, ("PNG",))):
        with pytest.raises(DataError, match="exceeds limit"):
            read(bomb)


@pytest.mark.parametrize(
    ("size", "bounds", "fitted"),
    [((90, 60), (28 * 28, 10**6), (84, 56)), ((90, 60), (200_000, 10**6), (560, 392)), ((900, 600), (784, 7840), (84, 56))],
)
def test_sides_are_multiples_of_28_within_the_bounds(tmp_path, size, bounds, fitted):
    (tmp_path / "a.png").write_bytes(content(size))
    image = fitted_image(tmp_path / "a.png", *bounds)
    assert image.size == fitted
    assert bounds[0] <= image.size[0] * image.size[1] <= bounds[1]
    with pytest.raises(DataError, match=r"^row 1: cannot be shown to the VLM \(.*\); crop or replace the image$"):
        fit_image(Image.new("RGB", (2010, 10)), "row 1", *bounds)


def test_a_data_url_is_without_loss(noise):
    head, _, data = png_data_url(noise).partition(",")
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), np.asarray(noise))


def test_sizes_are_remembered_until_a_file_changes(tmp_path, monkeypatch):
    good, bad, memo = tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "memo" / "sizes.json"
    good.write_bytes(content((12, 8)))
    bad.write_text("no image")
    opened = []
    monkeypatch.setattr(Image, "open", lambda path, real=Image.open, **keywords: opened.append(path) or real(path, **keywords))

    def sizes():
        opened.clear()
        results = image_sizes([good, bad, good], memo)
        assert list(results) == [good, bad]
        assert isinstance(results[bad], DataError)
        return results[good]

    assert sizes() == (12, 8)
    assert sorted(opened) == [bad, good]
    assert list(json.loads(memo.read_text())) == [str(good)]
    assert sizes() == (12, 8)
    assert opened == [bad]
    good.write_bytes(content((20, 10)))
    os.utime(good, ns=(0, 1))
    assert sizes() == (20, 10)
    memo.write_text("{")
    assert sizes() == (20, 10)
    assert sorted(opened) == [bad, good]


def test_a_digest_is_of_the_files_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(content())
    assert image_digest(tmp_path / "a.png") == hashlib.sha256(content()).hexdigest()
    with pytest.raises(DataError, match=r"b\.png: image cannot be read \(No such file"):
        image_digest(tmp_path / "b.png")


def test_a_picture_that_was_replaced_is_never_shown_under_the_digest_of_the_former(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(content((12, 8)))
    image_digest(path)
    assert read_image(path).size == (12, 8)
    path.write_bytes(content((20, 10)))
    with pytest.raises(DataError, match=r"/a\.png: this image was replaced while the command ran; run the command again$"):
        read_image(path)
    assert image_sizes([path]) == {path: (20, 10)}  # the data set is read once more, as a notebook may do
    assert read_image(path).size == (20, 10)
    assert image_digest(path) == hashlib.sha256(content((20, 10))).hexdigest()


def test_a_thumbnail_is_a_jpeg_of_at_most_that_size(tmp_path):
    for size, expected in (((300, 150), (100, 50)), ((40, 80), (40, 80))):  # a smaller image stays as large as it is
        (tmp_path / "image.png").write_bytes(content(size, mode="RGBA", color=(1, 2, 3, 0)))
        image = Image.open(io.BytesIO(thumbnail(tmp_path / "image.png", 100)))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", expected)


def test_a_file_that_another_program_would_have_to_decode_is_no_image(tmp_path, monkeypatch):
    """Pillow runs Ghostscript for EPS, whatever the file is called."""
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was run"))
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n")
    with pytest.raises(DataError, match=r"a\.jpg: does not decode as an image \(cannot identify"):
        read_image(tmp_path / "a.jpg")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(content((10_000, 8_948), mode="1"))
    with pytest.raises(DataError, match=r"10000 x 8948 pixels, at most 89,478,485 are taken"):
        image_size(path)


def test_batches_are_bounded_by_images_and_by_pixels():
    def batches(*pixels):
        return [list(pixels[batch]) for batch in batches_of_images(pixels, most_images=3, most_pixels=10)]

    assert batches() == []
    assert batches(1, 2, 3, 4) == [[1, 2, 3], [4]]
    assert batches(5, 5, 5) == [[5, 5], [5]]
    assert batches(11, 1, 12, 13) == [[11], [1], [12], [13]]
    assert batches(0, 0, 0, 0, 0) == [[0, 0, 0], [0, 0]]
