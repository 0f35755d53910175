import json
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.selector.checkpoint import load_selector, read_meta, save_selector, selector_digest
from lever_mlflow.selector.network import PointerSelector


@pytest.fixture
def selector():
    torch.manual_seed(3)
    return PointerSelector(feature_dim=24, hidden_dim=16).eval()


def assert_same(selector, other):
    generator = torch.Generator().manual_seed(0)
    query, pool = torch.randn(1, 24, generator=generator), torch.randn(1, 9, 24, generator=generator)
    assert torch.equal(selector.greedy(query, pool, 4), other.greedy(query, pool, 4))
    assert selector_digest(selector) == selector_digest(other)


def test_folder_round_trip(selector, tmp_path):
    save_selector(tmp_path / "c", selector, {"epoch": 2})
    assert_same(selector, load_selector(tmp_path / "c"))
    assert read_meta(tmp_path / "c") == {"epoch": 2}
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["selector.json", "selector.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_an_existing_folder_is_not_overwritten(selector, tmp_path):
    save_selector(tmp_path / "c", selector, {})
    with pytest.raises(CheckpointError, match="exists already"):
        save_selector(tmp_path / "c", selector, {})


def test_pt_file(selector, tmp_path):
    torch.save({"model_state_dict": selector.state_dict(), "epoch": 1}, tmp_path / "old.pt")
    assert_same(selector, load_selector(tmp_path / "old.pt"))


def test_lightning_file_with_older_names(selector, tmp_path):
    state = {}
    for name, tensor in selector.state_dict().items():
        name = name.replace("cross_attn_layers.0.", "cross_attn.").replace("attn_norms.0.", "attn_norm.")
        state[f"lever_lm.pointer_selector.{name}"] = tensor
    state["lever_lm.image_encoder.weight"] = torch.zeros(2)
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.0", "global_step": 5}, tmp_path / "old.ckpt")
    assert_same(selector, load_selector(tmp_path / "old.ckpt"))


class Payload:
    def __reduce__(self):
        return (open, ("/tmp/never-written", "w"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable checkpoint"),
        (b"garbage" * 20, "not loaded|not a readable checkpoint"),
        (pickle.dumps(Payload()), "not loaded|not a readable checkpoint"),
    ],
)
def test_damaged_or_hostile_files_are_refused(tmp_path, content, message):
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_selector(tmp_path / "bad.pt")


def test_pickled_objects_in_a_torch_file_are_not_executed(selector, tmp_path):
    Path("/tmp/never-written").unlink(missing_ok=True)
    torch.save(
        {"model_state_dict": selector.state_dict(), "hyper_parameters": Namespace(lr=1), "hook": Payload()}, tmp_path / "x.pt"
    )
    assert_same(selector, load_selector(tmp_path / "x.pt"))
    assert not Path("/tmp/never-written").exists()


@pytest.mark.parametrize("weights", [None, [1, 2], {1: torch.zeros(2)}, {"input_proj.weight": "text"}])
def test_state_dicts_that_are_none(tmp_path, weights):
    torch.save({"model_state_dict": weights}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="something else than named tensors"):
        load_selector(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 2}, "do not belong together"),
        ({"n_heads": 0}, "no selector of sizes"),
        ({"surplus": 1}, "no selector of sizes"),
        ({"hidden_dim": "16"}, "no selector of sizes"),
        ({"dropout": 5}, "no selector of sizes"),
    ],
)
def test_an_edited_description_is_refused(selector, tmp_path, change, message):
    save_selector(tmp_path / "c", selector, {})
    path = tmp_path / "c" / "selector.json"
    content = json.loads(path.read_text())
    content["config"].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        load_selector(tmp_path / "c")


def test_missing_and_unexpected_names_are_listed(selector, tmp_path):
    state = selector.state_dict()
    state["surplus"] = state.pop("cand_proj.weight")
    torch.save({"model_state_dict": state}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"missing \['cand_proj.weight'\], unexpected \['surplus'\]"):
        load_selector(tmp_path / "x.pt")


def test_nan_weights_are_refused(selector, tmp_path):
    state = selector.state_dict()
    state["query_proj.weight"][0, 0] = torch.nan
    torch.save({"model_state_dict": state}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"query_proj\.weight holds NaN"):
        load_selector(tmp_path / "x.pt")


def test_truncated_safetensors(selector, tmp_path):
    save_selector(tmp_path / "c", selector, {})
    weights = tmp_path / "c" / "selector.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not readable weights"):
        load_selector(tmp_path / "c")


def test_missing_path(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_selector(tmp_path / "nothing")
