import json
import logging
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.selector.checkpoint import load_selector, save_selector, selector_digest
from lever_mlflow.selector.checkpoint_folder import read_meta
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
    with pytest.raises(CheckpointError, match=r"x\.pt: .*\(missing cand_proj\.weight; unexpected surplus\); give"):
        load_selector(tmp_path / "x.pt")


def test_only_the_first_of_many_names_are_shown(selector, tmp_path):
    torch.save({**selector.state_dict(), **{f"head.{n}": torch.zeros(1) for n in range(7)}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"\(unexpected head\.0, head\.1, head\.2, head\.3, head\.4 and 2 more\)"):
        load_selector(tmp_path / "x.pt")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module.lever_lm.pointer_selector."])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_bare_weights_under_a_wrapper(selector, tmp_path, prefix, suffix):
    state = {prefix + name: tensor for name, tensor in selector.state_dict().items()}
    (torch.save if suffix == ".pt" else save_file)(state, tmp_path / f"x{suffix}")
    assert_same(selector, load_selector(tmp_path / f"x{suffix}"))


WRAPPED_LAYERS = {"input_proj.": "input_proj._orig_mod.", "cross_attn_layers.0.": "cross_attn_layers.0.module._orig_mod."}


@pytest.mark.parametrize("prefix", ["", "module.", "_fsdp_wrapped_module._orig_mod.module."])
def test_wrapped_layers(selector, tmp_path, prefix):
    state = {}
    for name, tensor in selector.state_dict().items():
        for layer, wrapped in WRAPPED_LAYERS.items():
            name = name.replace(layer, wrapped)
        state[prefix + name] = tensor
    torch.save({**state, "n_averaged": torch.tensor(3)} if prefix else state, tmp_path / "x.pt")
    assert_same(selector, load_selector(tmp_path / "x.pt"))


@pytest.mark.parametrize("key", ["model", "selector", "policy", "best"])
def test_weights_under_any_other_key_if_there_is_only_one_selector(selector, tmp_path, key):
    torch.save({"epoch": 3, "optimizer": {"state": {0: torch.zeros(1)}}, key: selector.state_dict()}, tmp_path / "x.pt")
    assert_same(selector, load_selector(tmp_path / "x.pt"))
    torch.save({key: selector.state_dict(), "ema": selector.state_dict()}, tmp_path / "y.pt")
    with pytest.raises(
        CheckpointError, match=rf"several selectors, under {min(key, 'ema')}, {max(key, 'ema')}; save the state"
    ):
        load_selector(tmp_path / "y.pt")


def test_bare_weights_beside_other_entries(selector, tmp_path):
    torch.save({**selector.state_dict(), "epoch": 3, "args": {"lr": 1.0}}, tmp_path / "x.pt")
    assert_same(selector, load_selector(tmp_path / "x.pt"))


@pytest.mark.parametrize(("save", "suffix"), [(torch.save, ".safetensors"), (save_file, ".pt"), (save_file, ".ckpt")])
def test_the_content_of_a_file_decides_and_not_its_name(selector, tmp_path, save, suffix):
    save(selector.state_dict(), tmp_path / f"x{suffix}")
    assert_same(selector, load_selector(tmp_path / f"x{suffix}"))


def test_a_folder_of_another_program(selector, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint folder, as it has no selector\.json, and holds no weights file"):
        load_selector(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    save_file(selector.state_dict(), tmp_path / "model.safetensors")
    assert_same(selector, load_selector(tmp_path))
    torch.save(selector.state_dict(), tmp_path / "optimizer.bin")
    with pytest.raises(CheckpointError, match=r"several weights files \(model.safetensors, optimizer.bin\); give one of them"):
        load_selector(tmp_path)


def test_two_selectors_in_a_file_are_refused(selector, tmp_path):
    state = {f"{part}.{name}": tensor for part in ("policy", "reference") for name, tensor in selector.state_dict().items()}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"several selectors, under policy\., reference\.; save the state dict of one"):
        load_selector(tmp_path / "x.pt")


def test_no_selector_in_a_file(tmp_path):
    torch.save({"linear.weight": torch.zeros(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"no weights input_proj\.weight, so no selector; its entries are linear\.weight"):
        load_selector(tmp_path / "x.pt")


@pytest.mark.parametrize(("group", "name"), [("model_config", "num_heads"), ("hyper_parameters", "n_heads")])
def test_layers_are_counted_and_stated_heads_are_used(tmp_path, caplog, group, name):
    torch.manual_seed(0)
    selector = PointerSelector(feature_dim=24, hidden_dim=16, n_layers=3, n_heads=4).eval()
    content = {"model_state_dict": selector.state_dict(), group: {name: 4, "dropout": 0.5}}
    torch.save(content, tmp_path / "x.pt")
    caplog.set_level(logging.INFO)
    loaded = load_selector(tmp_path / "x.pt")
    assert (loaded.config["n_layers"], loaded.config["n_heads"]) == (3, 4)
    assert_same(selector, loaded)
    assert not caplog.messages


def test_one_head_is_assumed_and_said_so(selector, tmp_path, caplog):
    torch.save(selector.state_dict(), tmp_path / "x.pt")
    caplog.set_level(logging.INFO)
    assert load_selector(tmp_path / "x.pt").config["n_heads"] == 1
    assert caplog.messages == [
        f"{tmp_path / 'x.pt'}: does not state the number of attention heads of its selector; 1 is assumed"
    ]


def test_the_weights_file_of_a_checkpoint_folder_stands_for_the_folder(tmp_path):
    torch.manual_seed(0)
    selector = PointerSelector(feature_dim=24, hidden_dim=16, n_heads=4).eval()
    save_selector(tmp_path / "c", selector, {})
    assert_same(selector, load_selector(tmp_path / "c" / "selector.safetensors"))


def test_a_gated_selector_of_lever_plus_is_loaded(tmp_path):
    torch.manual_seed(0)
    selector = PointerSelector(feature_dim=24, hidden_dim=16, query_update_gate=True).eval()
    torch.save({"epoch": 8, "phase": "grpo", "model_state_dict": selector.state_dict(), "kl_beta": 0.12}, tmp_path / "x.pt")
    assert_same(selector, load_selector(tmp_path / "x.pt"))
    save_selector(tmp_path / "c", load_selector(tmp_path / "x.pt"), {})
    assert_same(selector, load_selector(tmp_path / "c"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["decoder_gru.weight_ih", "step_emb.weight"], r"V4-2 .*\(decoder_gru\.weight_ih, step_emb\.weight\)"),
        (["decoder_gru.weight_ih", "div_lambda"], r"V4-3 .*earlier picks \(div_lambda\)"),
        (
            ["decoder_gru.weight_ih", "cand_encoder.layers.0.norm1.bias", "div_lambda"],
            r"V4-4 .*\(cand_encoder\.layers\.0\.norm1\.bias\)",
        ),
        (["attn_Wq.weight", "attn_Wc.weight", "attn_v.weight"], r"V4-5 .*\(attn_Wc\.weight, attn_Wq\.weight, attn_v\.weight\)"),
        (["topic_prototypes", "cover_lambda"], "V4-6"),
        (["dpp_proj.weight", "dpp_lambda"], "V4-7"),
        (["slot_emb.weight", "slot_cand_norm.bias"], r"V4-8 .*\(slot_emb\.weight\)"),
        (["refine_mlp.0.weight", "decoder_gru.bias_hh"], "V4-9"),
        (["stop_token", "step_emb.weight"], "V4-10"),
    ],
)
def test_later_selectors_of_lever_plus_are_named_in_one_line(selector, tmp_path, names, message):
    state = {f"lever_lm.pointer_selector.{n}": t for n, t in selector.state_dict().items()}
    torch.save(
        {"state_dict": {**state, **{f"lever_lm.pointer_selector.{n}": torch.zeros(1) for n in names}}}, tmp_path / "x.ckpt"
    )
    with pytest.raises(CheckpointError, match=rf"^{tmp_path / 'x.ckpt'}: a selector {message}") as error:
        load_selector(tmp_path / "x.ckpt")
    assert "this package has no such network. Train a new selector with rce" in str(error.value)
    assert "\n" not in str(error.value)


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


class Bytes:
    """Makes a gigabyte when it is unpickled."""

    def __reduce__(self):
        return (bytearray, (10**9,))


def test_no_checkpoint_makes_more_memory_than_it_has_bytes(selector, tmp_path):
    weights, path = selector.state_dict(), tmp_path / "x.pt"
    first = next(iter(weights))
    bombs = {
        "is no plain array of numbers": {name: torch.zeros(1).expand(tensor.shape) for name, tensor in weights.items()},
        "'input_proj.weight' is no plain array": {**weights, first: weights[first].to_sparse()},
        "makes objects of __builtin__ bytearray": {"state_dict": weights, "x": Bytes()},
    }
    for message, content in bombs.items():
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            load_selector(path)
    torch.save(weights, path)
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(CheckpointError, match=r"y\.pt: is a compressed archive"):
        load_selector(tmp_path / "y.pt")
    torch.save({**weights, first: torch.zeros(10**7, 0)}, path)  # whose hidden layers would take 400 TB
    with pytest.raises(CheckpointError, match="has shape"):
        load_selector(path)


@pytest.mark.parametrize("damage", ["version", "checksum"])
def test_an_archive_that_cannot_be_looked_into_is_not_loaded(selector, tmp_path, damage):
    """torch reads archives of any version and does not look at checksums, so what was not checked would be loaded."""
    path = tmp_path / "x.pt"
    torch.save(selector.state_dict(), path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # the first one in the directory, that of data.pkl
    content[entry + 6 if damage == "version" else entry + 16] ^= 0x60  # offsets in the directory by APPNOTE.TXT 4.3.12
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pt: not a readable checkpoint \(.(zip file version|Bad CRC-32)"):
        load_selector(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": 10**9}, "n_layers is 1000000000, but 1 in the weights"),
        ({"fusion": "x"}, "fusion='x'; choose one of mean"),
        ({"dropout": float("nan")}, r"selector\.json: holds NaN"),
    ],
)
def test_a_description_of_other_sizes_is_refused_before_anything_is_made(selector, tmp_path, change, message):
    save_selector(tmp_path / "c", selector, {})
    path = tmp_path / "c" / "selector.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "config": {**content["config"], **change}}))
    with pytest.raises(CheckpointError, match=message):
        load_selector(tmp_path / "c")
    path.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        load_selector(tmp_path / "c")
