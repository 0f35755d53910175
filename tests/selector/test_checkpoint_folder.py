import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.selector.checkpoint import save_selector, selector_digest
from lever_mlflow.selector.checkpoint_folder import read_meta, stated_selector
from lever_mlflow.selector.network import PointerSelector


@pytest.fixture
def selector():
    return PointerSelector(feature_dim=48, hidden_dim=16, n_heads=2, fusion="concat").eval()


@pytest.fixture
def folder(selector, tmp_path):
    save_selector(tmp_path / "c", selector, {"epoch": 2})
    return tmp_path / "c"


def test_a_whole_folder_states_what_its_selector_is(selector, folder):
    assert stated_selector(folder) == (48, "concat", selector_digest(selector))
    assert read_meta(folder) == {"epoch": 2}


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("config", {"feature_dim": 48, "hidden_dim": 16, "n_heads": 1, "fusion": "concat"}),  # another digest
        ("config", {"feature_dim": 48, "n_heads": 2, "fusion": "sum"}),
        ("config", {"feature_dim": "48", "n_heads": 2, "fusion": "concat"}),
        ("config", {"n_heads": 2}),  # as older folders
        ("config", []),
        ("digest", None),
    ],
)
def test_a_folder_that_states_something_else_is_left_to_load_selector(folder, part, content):
    description = json.loads((folder / "selector.json").read_text())
    (folder / "selector.json").write_text(json.dumps({**description, part: content}))
    assert stated_selector(folder) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_type_are_left_to_load_selector(folder, dtype):
    path = folder / "selector.safetensors"
    save_file({name: weights.to(dtype) for name, weights in load_file(path).items()}, path)
    assert stated_selector(folder) is None


def test_damaged_weights_are_left_to_load_selector(folder):
    (folder / "selector.safetensors").write_bytes(b"damaged")
    assert stated_selector(folder) is None
    (folder / "selector.safetensors").unlink()
    assert stated_selector(folder) is None


def test_a_missing_description_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"selector\.json"):
        read_meta(tmp_path)


def test_reading_a_folder_imports_no_torch(folder):
    code = "import sys; from pathlib import Path; from lever_mlflow.selector.checkpoint_folder import stated_selector; "
    code += f"print(stated_selector(Path({str(folder)!r})).feature_dim, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["48", "False"]
