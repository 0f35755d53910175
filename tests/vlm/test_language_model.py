"""A VLM by its name."""

import json
import shutil

import pytest
from helpers.servers import free_port

from lever_mlflow import mini
from lever_mlflow.data.okvqa import load_split
from lever_mlflow.exceptions import DataError, ServerError
from lever_mlflow.files.model_folders import folder_digest
from lever_mlflow.mini.dataset import ensure_dataset
from lever_mlflow.vlm.language_model import VlmName, check_language_model, open_language_model
from lever_mlflow.vlm.local import BATCH_TOKENS, LocalVLM
from lever_mlflow.vlm.prompt import Prompt
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


def test_the_models_own_generation_config_is_part_of_its_digest(tmp_path, cache_dir):
    """It changes answers, so the same weights with another one are another VLM, and runs record what it says."""
    folder = tmp_path / "vlm"
    shutil.copytree(mini.VLM_PATH, folder)
    plain = open_language_model(VlmName(str(folder), profile="mini"), tmp_path)
    assert plain.digest == open_language_model(VlmName(str(mini.VLM_PATH), profile="mini"), tmp_path).digest
    assert "vlm_generation_config" not in plain.recorded
    val = load_split(ensure_dataset(cache_dir), "val")
    prompts = [Prompt((), sample) for sample in val[:4]]
    answers = dict(item for batch in plain.generate(prompts) for item in batch)
    path = folder / "generation_config.json"
    banned = plain.loaded.processor.tokenizer(list(answers.values()))["input_ids"]
    generation = {"bad_words_ids": [[token] for ids in banned for token in ids], "repetition_penalty": 1.05}
    structure = {"num_return_sequences": 2, "return_dict_in_generate": True, "do_sample": True, "temperature": 0.1}
    path.write_text(json.dumps({**json.loads(path.read_text()), **generation, **structure}))
    steered = open_language_model(VlmName(str(folder), profile="mini"), tmp_path)
    assert json.loads(steered.recorded["vlm_generation_config"]) == generation
    assert steered.digest != plain.digest
    assert steered.key(prompts[0]) != plain.key(prompts[0])
    assert steered.profile.digest == plain.profile.digest
    others = dict(item for batch in steered.generate(prompts) for item in batch)
    assert others.keys() == answers.keys()
    assert all(others[i] != answers[i] for i in answers)


def test_a_folder_without_weights_is_found_out_before_any_work(tmp_path):
    shutil.copytree(mini.VLM_PATH, tmp_path / "vlm")
    (tmp_path / "vlm" / "model.safetensors").unlink()
    model = open_language_model(VlmName(str(tmp_path / "vlm")), tmp_path)
    with pytest.raises(DataError, match="no weights"):
        check_language_model(model)
