"""A VLM by its name."""

import shutil

import pytest
from helpers.servers import free_port

from lever_mlflow import mini
from lever_mlflow.exceptions import DataError, ServerError
from lever_mlflow.files.model_folders import folder_digest
from lever_mlflow.vlm.language_model import VlmName, check_language_model, open_language_model
from lever_mlflow.vlm.local import BATCH_TOKENS, LocalVLM
from lever_mlflow.vlm.server import ServerVLM


def test_a_folder_is_a_local_model(tmp_path):
    model = open_language_model(VlmName(str(mini.VLM_PATH), profile="mini"), tmp_path)
    assert isinstance(model, LocalVLM)
    assert (model.folder, model.profile.name, model.batch_tokens) == (mini.VLM_PATH, "mini", BATCH_TOKENS["cpu"])
    assert model.digest == f"{folder_digest(mini.VLM_PATH, tmp_path)}-float32"
    check_language_model(model)
    other = open_language_model(VlmName(str(mini.VLM_PATH), batch_tokens=100), tmp_path)
    assert (other.profile.name, other.batch_tokens) == ("qwen2.5-vl", 100)


def test_a_url_is_a_server(tmp_path):
    url = f"http://127.0.0.1:{free_port()}/v1"
    model = open_language_model(VlmName(url, "a model"), tmp_path)
    assert isinstance(model, ServerVLM)
    assert (model.url, model.name, model.profile.name) == (url, "a model", "openai")
    with pytest.raises(ServerError, match=f"^{url}: cannot be reached"):
        check_language_model(model)


def test_a_folder_without_weights_is_found_out_before_any_work(tmp_path):
    shutil.copytree(mini.VLM_PATH, tmp_path / "vlm")
    (tmp_path / "vlm" / "model.safetensors").unlink()
    model = open_language_model(VlmName(str(tmp_path / "vlm")), tmp_path)
    with pytest.raises(DataError, match="no weights"):
        check_language_model(model)
