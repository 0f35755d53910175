"""Model folders: which are taken, and by what they are known."""

import errno
import json
import shutil

import pytest
import torch
from transformers import AutoModel, CLIPModel, Qwen2_5_VLForConditionalGeneration

from lever_mlflow import mini
from lever_mlflow.data.encoders import check_encoder
from lever_mlflow.exceptions import DataError
from lever_mlflow.files.model_folders import folder_digest, load_pretrained, model_folder


@pytest.fixture
def clip(tmp_path):
    return shutil.copytree(mini.CLIP_PATH, tmp_path / "clip")


@pytest.mark.parametrize(
    ("name", "message"),
    [("tokenizer.json", "no tokenizer"), ("model.safetensors", "no weights"), ("config.json", "config.json: no such file")],
)
def test_an_incomplete_folder_is_found_out_before_any_work(clip, name, message):
    (clip / name).unlink()
    with pytest.raises(DataError, match=message):
        check_encoder(clip)


def test_a_model_of_another_type_is_refused():
    assert check_encoder(mini.CLIP_PATH) == ("image", "text")
    with pytest.raises(DataError, match="model_type 'qwen2_5_vl', which is no encoder; give a CLIP"):
        check_encoder(mini.VLM_PATH)


def test_a_name_is_a_folder_or_one_on_the_hub(clip, tmp_path):
    assert model_folder(str(clip)) == clip
    with pytest.raises(DataError, match=r": no config\.json in it; give a folder written by save_pretrained$"):
        model_folder(str(tmp_path))
    with pytest.raises(DataError, match="/no/such/folder: no such folder, and not a hub name like Qwen/"):
        model_folder("/no/such/folder")
    with pytest.raises(
        DataError, match=r"no/model: no such folder .looked for at .*, and the hub did not give it .*; download it"
    ):
        model_folder("no/model")  # tests run without the hub


def test_the_digest_is_of_names_and_contents_and_is_remembered(clip, tmp_path):
    digest = folder_digest(clip, tmp_path / "memo")
    assert len(digest) == 16
    assert digest == folder_digest(mini.CLIP_PATH, tmp_path / "memo")  # wherever the folder is
    (clip / "notes.md").write_text("no file of the model")
    assert folder_digest(clip, tmp_path / "memo") == digest
    config = clip / "config.json"
    config.write_text(config.read_text() + " ")
    changed = folder_digest(clip, tmp_path / "memo")
    assert changed != digest
    config.rename(clip / "other.json")
    assert folder_digest(clip, tmp_path / "memo") not in (digest, changed)
    memos = sorted((tmp_path / "memo").iterdir())
    assert [len(memo.read_text()) for memo in memos] == [16] * 4
    for memo in memos:
        memo.write_text("remembered 12345")
    assert folder_digest(clip, tmp_path / "memo") == "remembered 12345"
    for memo in memos:
        memo.write_text("")  # as a crash might leave it
    assert len(folder_digest(clip, tmp_path / "memo")) == 16


def test_half_weights_have_rotary_frequencies_of_full_precision():
    half, _ = load_pretrained(Qwen2_5_VLForConditionalGeneration, mini.VLM_PATH, dtype="bfloat16")
    full, _ = load_pretrained(Qwen2_5_VLForConditionalGeneration, mini.VLM_PATH)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    frequencies = half.model.language_model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, 10_000.0 ** (-torch.arange(0, 32, 2) / 32))  # as RoPE defines them, 32 per head
    assert torch.equal(frequencies, full.model.language_model.rotary_emb.inv_freq)
    for ours, theirs in zip(half.parameters(), full.parameters(), strict=True):
        assert torch.equal(ours, theirs.bfloat16())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 594.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:125] err == 0. DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError(),
    ],
)
def test_a_model_that_the_device_does_not_hold_is_not_called_damaged(monkeypatch, error):
    def full(*_, **settings):
        assert settings["device_map"] == "cuda"
        raise error

    monkeypatch.setattr(CLIPModel, "from_pretrained", full)
    with pytest.raises(DataError, match="clip: the device's memory does not hold the CLIPModel; give a smaller model, or free"):
        load_pretrained(CLIPModel, mini.CLIP_PATH, device="cuda")


def test_what_the_machine_lacks_is_not_called_damage_of_a_folder(monkeypatch):
    def fail(*_, **settings):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(CLIPModel, "from_pretrained", fail)
    with pytest.raises(OSError, match="Too many open files"):
        load_pretrained(CLIPModel, mini.CLIP_PATH)


def test_code_in_a_model_folder_is_never_run(clip, tmp_path, monkeypatch):
    """transformers would ask on the terminal whether to run it, unless it is told not to."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    (clip / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((clip / "config.json").read_text())
    code = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}
    (clip / "config.json").write_text(json.dumps({**config, "model_type": "evil", "auto_map": code}))
    with pytest.raises(DataError, match="clip: not a readable AutoModel folder"):
        load_pretrained(AutoModel, clip)
    (clip / "config.json").write_text(json.dumps({**config, "auto_map": code}))
    load_pretrained(AutoModel, clip)  # with the family's own class
    assert not (tmp_path / "ran").exists()
