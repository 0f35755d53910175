"""Every mode that Pillow opens becomes RGB in its own range, or is refused."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from lever_mlflow.data.okvqa import describe, read_split
from lever_mlflow.exceptions import DataError
from lever_mlflow.files.colours import ColourError, to_rgb
from lever_mlflow.files.images import decode_image, read_image

GREY16 = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
SCALED = [0, 0, 1, 1, 128, 255]  # 128 / 257 = 0.498, 129 / 257 = 0.502, 257 / 257 = 1, 32768 / 257 = 127.502, 65535 / 257


def saved(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def with_tag(tiff, tag, value):
    """Returns a TIFF file with another value of a tag of its first directory, which fits into two bytes."""
    content, (start,) = bytearray(tiff), struct.unpack("<I", tiff[4:8])
    for entry in range(start + 2, start + 2 + 12 * struct.unpack("<H", tiff[start : start + 2])[0], 12):
        if struct.unpack("<H", tiff[entry : entry + 2])[0] == tag:
            content[entry + 8 : entry + 10] = struct.pack("<H", value)
    return bytes(content)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_grey_of_16_bits_is_scaled(tmp_path, format):
    content = saved(Image.fromarray(GREY16), format)
    (tmp_path / "a").write_bytes(content)
    for image in (decode_image(content), read_image(tmp_path / "a")):
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), np.array(SCALED, dtype=np.uint8)[None, :, None].repeat(3, axis=2))


def test_grey_of_a_big_endian_tiff_is_scaled():
    content = saved(Image.frombytes("I;16B", (6, 1), GREY16.astype(">u2").tobytes()), "TIFF")
    assert Image.open(io.BytesIO(content)).mode == "I;16B"
    assert np.asarray(decode_image(content))[0, :, 0].tolist() == SCALED


def test_a_tiff_states_its_bits_and_where_its_white_is():
    tiff = saved(Image.fromarray(np.array([[0, 2048, 4095]], dtype=np.uint16)), "TIFF")
    image = Image.open(io.BytesIO(tiff))
    image.tag_v2[258] = (12,)  # of 4,095; Pillow writes no such file
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 128, 255]  # 2048 * 255 / 4095 = 127.53
    negative = with_tag(saved(Image.fromarray(GREY16), "TIFF"), 262, 0)
    assert np.asarray(decode_image(negative))[0, :, 0].tolist() == [255 - value for value in SCALED]


@pytest.mark.parametrize(
    ("mode", "color", "rgb"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 7, (7, 7, 7)),
        ("LA", (7, 0), (7, 7, 7)),
        ("La", (50, 128), (99, 99, 99)),  # 50 * 255 / 128 = 99.6
        ("P", 0, (0, 0, 0)),
        ("PA", (0, 0), (0, 0, 0)),
        ("RGB", (4, 5, 6), (4, 5, 6)),
        ("RGBX", (4, 5, 6, 0), (4, 5, 6)),
        ("RGBA", (4, 5, 6, 0), (4, 5, 6)),
        ("RGBa", (50, 25, 10, 128), (99, 49, 19)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (255, 128, 128), (255, 255, 255)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("LAB", (128, 128, 128), (119, 119, 119)),  # L* = 100 * 128 / 255 = 50.2
    ],
)
def test_modes_of_8_bits(mode, color, rgb):
    assert to_rgb(Image.new(mode, (2, 2), color)).getpixel((1, 1)) == rgb


def test_every_mode_of_pillow_is_decided():
    refused_modes = {"I;16", "I;16B", "I;16L", "I;16N", "I", "F"}  # of no known format
    for mode in Image.MODES:
        if mode in refused_modes:
            with pytest.raises(ColourError, match=f"holds numbers of Pillow's mode {mode} in a None file"):
                to_rgb(Image.new(mode, (1, 1)))
        else:
            assert to_rgb(Image.new(mode, (1, 1))).mode == "RGB"


@pytest.mark.parametrize("values", [np.float32([[0.5, 300.0]]), np.int32([[-5, 70_000]])])
def test_numbers_without_a_range_are_refused(okvqa_root, values):
    path = okvqa_root / "train2014" / "COCO_train2014_000000000003.jpg"
    path.write_bytes(saved(Image.fromarray(values), "TIFF"))
    with pytest.raises(
        ColourError, match=rf"^{path}: holds numbers of Pillow's mode [IF] in a TIFF file, which states no range"
    ):
        read_image(path)
    with pytest.raises(DataError, match=r"^holds numbers of Pillow's mode"):
        decode_image(path.read_bytes())
    message = describe(read_split(okvqa_root, "train").bad)
    assert message.startswith("2 with an image whose numbers are no colours (question_id 30, question_id 31: ")
    assert message.endswith("; convert the images)")


def test_16_bits_of_a_colour_keep_their_upper_8(tmp_path):
    """Pillow itself reads them like this."""
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + np.array([65535, 32768, 255], dtype=">u2").tobytes())
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    assert decode_image(content).getpixel((0, 0)) == (255, 128, 0)


def test_the_first_frame_counts():
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    for format in ("PNG", "TIFF", "WEBP"):
        content = saved(
            frames[0], format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
        )
        assert decode_image(content).getpixel((0, 0)) == (255, 0, 0)
