"""Text files in the encodings that people's tools write: read where the file states its encoding, named otherwise."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from lever_mlflow.cli.commands import cli
from lever_mlflow.cli.config_files import read_config
from lever_mlflow.comparison.results import read_results
from lever_mlflow.data.okvqa import load_split
from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.files.strict_json import read_object
from lever_mlflow.files.text import EncodingError, looked_for, open_text, read_text
from lever_mlflow.gate.suites import DEFAULT_PROJECT_DIR, read_suites
from lever_mlflow.selector.checkpoint import load_selector, save_selector
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.vlm.profiles import find_profile

TEXT = '{"a": "café, 日本"}'
STATED = ("utf-8", "utf-8-sig", "utf-16", "utf-32")  # Python writes the last three with their byte order marks
UNSTATED = [
    (lambda text: text.encode("latin-1"), "is not UTF-8 (byte 0xe9 in line 2), but text in another encoding, such as Latin-1"),
    (lambda text: text.encode("utf-16-le"), "is text in UTF-16 without a byte order mark; save it as UTF-8"),
    (lambda text: text.encode("utf-16-be"), "is text in UTF-16 without a byte order mark; save it as UTF-8"),
    (lambda text: gzip.compress(text.encode()), "is a file compressed with gzip; unpack it"),
    (lambda text: b"{\n\n\n" + bytes(40), "is no text, as it holds bytes of value 0; save it as UTF-8"),
    (
        lambda text: text.encode("utf-16")[:-1],
        "begins with the byte order mark of UTF-16, but is not text in it (truncated data)",
    ),
    (lambda text: text.encode()[:-3], "ends within a character of UTF-8; it may be truncated"),
]


@pytest.mark.parametrize("encoding", STATED)
def test_a_stated_encoding_is_read(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes(TEXT.encode(encoding))
    assert read_text(tmp_path / "a.json") == TEXT
    for chunk in (1, 1 << 20):
        assert read_object(tmp_path / "a.json", chunk, missing="", damaged="") == {"a": "café, 日本"}


@pytest.mark.parametrize(("encode", "message"), UNSTATED)
def test_another_encoding_is_named(tmp_path, encode, message):
    path = tmp_path / "a.json"
    path.write_bytes(encode('{\n"a": "é"}'))
    with pytest.raises(EncodingError) as error:
        read_text(path)
    assert str(error.value).startswith(message)
    with pytest.raises(DataError) as error:
        read_object(path, missing="", damaged="download it again")
    assert str(error.value).startswith(f"{path}: cannot be read, as it {message}")
    assert "download" not in str(error.value)


def test_an_empty_file_is_text(tmp_path):
    (tmp_path / "a").touch()
    with open_text(tmp_path / "a") as file:
        assert file.read() == ""


def test_a_relative_path_is_shown_with_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert looked_for("data/a.json") == f" (looked for at {tmp_path}/data/a.json)"
    assert looked_for("/data/a.json") == ""
    place = rf"no such [a-z ]+ \(looked for at {tmp_path}/a\)"
    cases = (
        (lambda: load_rl_data("a"), DataError),
        (lambda: load_split("a", "train"), DataError),
        (lambda: find_profile("a"), ParameterError),
        (lambda: read_config("a", {}), ParameterError),
        (lambda: read_results(Path("a")), DataError),
    )
    for read, error in cases:
        with pytest.raises(error, match=place):
            read()


@pytest.fixture
def doors(tmp_path, okvqa_root):
    """Files that users write, each with what reads it and a text that its content holds."""
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"name": "x", "num_beams": 1, "min_pixels": 1, "max_pixels": 2}))
    suites = tmp_path / "checks"
    shutil.copytree(DEFAULT_PROJECT_DIR, suites)
    config = tmp_path / "config.yaml"
    config.write_text("seed: 1\n")
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"unit": "percent", "runs": [{"label": "a", "epochs": [{"epoch": 1}]}]}))
    rl_data = tmp_path / "rl.json"
    trial = {"pointer": [0], "pointer_global": [1], "vqa_correct": 1, "vqa_acc_score": 1.0}
    rl_data.write_text(json.dumps({"0": {"candidate_pool_ids": [1, 2], "pointer_candidates": [trial]}}))
    save_selector(tmp_path / "selector", PointerSelector(feature_dim=4, hidden_dim=4), {})
    return {
        profile: lambda: find_profile(str(profile)),
        suites / "gx" / "expectations" / "rl_trials.json": lambda: read_suites(suites),
        config: lambda: read_config(str(config), cli.commands),
        results: lambda: read_results(results),
        rl_data: lambda: load_rl_data(rl_data).digest,
        okvqa_root / "mscoco_train2014_annotations.json": lambda: load_split(okvqa_root, "train"),
        tmp_path / "selector" / "selector.json": lambda: load_selector(tmp_path / "selector").config,
    }


def test_every_door_reads_stated_encodings_and_names_others(doors):
    for path, read in doors.items():
        plain, text = read(), path.read_text()
        for encoding in STATED[1:]:
            path.write_bytes(text.encode(encoding))
            assert read() == plain, (path, encoding)
        path.write_bytes(b"{\xe9" + text.encode())
        with pytest.raises(Exception, match=r"is not UTF-8 \(byte 0xe9 in line 1\), but text in another encoding"):
            read()
