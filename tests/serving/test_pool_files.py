"""The demonstrations of a retriever: they come back as they were, with their images or from a folder."""

import json

import numpy as np
import pytest

from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.serving.pool_files import POOL_IMAGES, load_pool, save_pool


def test_the_pool_comes_back_as_it_was(small, tmp_path):
    save_pool(tmp_path, small.train, small.features("train"), 10**6)
    pool = load_pool(tmp_path)
    assert [(s.question_id, s.image_id, s.question, s.answer) for s in pool.samples] == [
        (s.question_id, s.image_id, s.question, s.answer) for s in small.train
    ]
    table = small.features("train")
    for kind in ("image_SD", "text_SD", "fused_SD", "concat_SD"):
        np.testing.assert_array_equal(getattr(pool.features, kind), getattr(table, kind))
    path = small.train[0].image_path
    assert pool.image(path.name) == path.read_bytes()


def test_images_too_large_for_the_model_are_read_from_a_folder(small, tmp_path, monkeypatch):
    total = sum(path.stat().st_size for path in {sample.image_path for sample in small.train})
    for name, limit in (("with", total), ("without", total - 1)):
        (tmp_path / name).mkdir()
        save_pool(tmp_path / name, small.train, small.features("train"), limit)
    pool, path = load_pool(tmp_path / "without"), small.train[0].image_path
    assert load_pool(tmp_path / "with").image(path.name) == path.read_bytes()
    monkeypatch.delenv(POOL_IMAGES, raising=False)
    with pytest.raises(ParameterError, match=f"as_messages: the images of the pool are not in this model.*set {POOL_IMAGES}"):
        pool.image(path.name)
    monkeypatch.setenv(POOL_IMAGES, str(path.parent))
    assert pool.image(path.name) == path.read_bytes()
    monkeypatch.setenv(POOL_IMAGES, str(tmp_path))
    with pytest.raises(DataError, match=f"{POOL_IMAGES}: no readable {path.name} there"):
        pool.image(path.name)
    (tmp_path / path.name).write_bytes(b"another")
    with pytest.raises(DataError, match=f"{POOL_IMAGES}: {path.name} there is not the training image"):
        pool.image(path.name)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/b.png", ".."])
def test_an_image_of_a_pool_is_the_name_of_a_file_alone(make_retriever, name):
    folder = make_retriever() / "pool"
    content = json.loads((folder / "pool.json").read_text())
    content["items"][0]["image"] = name
    (folder / "pool.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="is not the name of a file alone"):
        load_pool(folder)
