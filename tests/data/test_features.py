import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, CLIPModel

from lever_mlflow import mini
from lever_mlflow.data import features
from lever_mlflow.data.features import sample_features
from lever_mlflow.data.okvqa import load_split
from lever_mlflow.exceptions import DataError
from lever_mlflow.files import images


@pytest.fixture
def train(okvqa_root):
    return load_split(okvqa_root, "train")


def test_features_agree_with_the_stock_model(train, tmp_path):
    table = sample_features(train, mini.CLIP_PATH, "encoder", tmp_path)
    model, processor = (
        CLIPModel.from_pretrained(mini.CLIP_PATH, dtype=torch.float32),
        AutoProcessor.from_pretrained(mini.CLIP_PATH),
    )
    sample = train[5]
    inputs = processor(text=[sample.question], images=[Image.open(sample.image_path)], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    image, text = output.image_embeds[0].numpy(), output.text_embeds[0].numpy()  # L2-normalised by the model
    np.testing.assert_allclose(table.image_SD[5], image, atol=1e-5)
    np.testing.assert_allclose(table.text_SD[5], text, atol=1e-5)
    np.testing.assert_allclose(table.fused_SD[5], (image + text) / np.linalg.norm(image + text), atol=1e-5)
    assert table.fused_SD.shape == (20, 512)
    assert table.of("mean") is table.fused_SD
    np.testing.assert_allclose(table.of("concat")[5], np.concatenate([image, text]) / 2**0.5, atol=1e-5)


def test_features_are_computed_once_per_content(train, tmp_path, monkeypatch):
    first = sample_features(train, mini.CLIP_PATH, "encoder", tmp_path)
    monkeypatch.setattr(features, "Encoder", None)  # a second computation would fail
    again = sample_features(train, mini.CLIP_PATH, "encoder", tmp_path)
    assert again.digest == first.digest
    np.testing.assert_array_equal(again.fused_SD, first.fused_SD)
    with pytest.raises(TypeError):
        sample_features(train, mini.CLIP_PATH, "other encoder", tmp_path)
    Image.new("RGB", (56, 56)).save(train[0].image_path)  # another image under the same name
    images._digests.clear()
    with pytest.raises(TypeError):
        sample_features(train, mini.CLIP_PATH, "encoder", tmp_path)


def test_an_image_that_does_not_decode_is_named(train, tmp_path):
    train[4].image_path.write_bytes(train[4].image_path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"COCO_train2014_000000000003.jpg: does not decode as an image"):
        sample_features(train, mini.CLIP_PATH, "encoder", tmp_path)


def test_a_folder_that_is_no_clip_model(train, tmp_path):
    with pytest.raises(DataError, match=r"config\.json: no such file; give a model folder"):
        sample_features(train, tmp_path, "encoder", tmp_path)


def test_weights_that_are_missing_or_damaged_are_never_made_up(train, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(mini.CLIP_PATH, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"1 weights are missing, such as text_projection\.weight"):
        sample_features(train, folder, "encoder", tmp_path)
    (folder / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(DataError, match="not a readable AutoModel folder"):
        sample_features(train, folder, "encoder", tmp_path)


@pytest.mark.parametrize("kind", ["image", "fused"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "of other samples"])
def test_damaged_files_of_the_cache_are_made_again(train, tmp_path, caplog, kind, damage):
    expected = np.array(sample_features(train, mini.CLIP_PATH, "encoder", tmp_path).fused_SD)
    (path,) = (tmp_path / "features").glob(f"*-{kind}.npy")
    if damage == "of other samples":
        np.save(path, np.load(path)[:3])
    else:
        path.write_bytes(path.read_bytes()[: 5000 if damage == "cut" else 0])
    np.testing.assert_array_equal(sample_features(train, mini.CLIP_PATH, "encoder", tmp_path).fused_SD, expected)
    assert f"{path}: " in caplog.text
    assert "; the features are computed again" in caplog.text


def test_large_images_are_not_held_at_once(train, tmp_path, monkeypatch):
    expected, batches, encode = sample_features(train, mini.CLIP_PATH, "encoder", tmp_path), [], features.Encoder.images

    def images(encoder, batch):
        batches.append(len(batch))
        return encode(encoder, batch)

    width, height = Image.open(train[0].image_path).size
    monkeypatch.setattr(features.Encoder, "images", images)
    monkeypatch.setattr(features, "MOST_PIXELS", 2 * width * height)
    table = sample_features(train, mini.CLIP_PATH, "encoder", tmp_path / "again")
    different = len({sample.image_path for sample in train})
    assert batches[1:] == [2] * (different // 2) + [1] * (different % 2)  # the first image is that of the encoder's check
    np.testing.assert_allclose(table.image_SD, expected.image_SD, rtol=0, atol=1e-6)
