"""Registered models are named so that no two data sets or VLMs share one."""

import re

import pytest

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.pipeline.context import Context
from lever_mlflow.pipeline.resources import Resources


def name(**resources):
    return Context(Resources(**resources)).registered_name


def test_the_embedded_default_has_the_name_that_it_always_had():
    assert name() == "lever-selector-mini-mini"
    assert name(profile="generic", encoder="/models/clip") == "lever-selector-mini-mini"


def test_names_are_readable_and_unique(tmp_path, monkeypatch):
    folders = [
        "a/okvqa",
        "b/okvqa",
        "a/OKVQA",
        "a/ok vqa",
        "a/ok_vqa",
        "数据",
        "данные",
        "問題",
        "mini",
        f"a/{'x' * 200}",
        f"b/{'x' * 200}",
    ]
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    of_folders = [name(dataset=str(tmp_path / folder)) for folder in folders]
    of_vlms = [name(vlm=str(tmp_path / folder)) for folder in folders]
    of_others = [name(dataset=hub) for hub in ("hf:a/okvqa", "hf:b/okvqa")] + [name(vlm=hub) for hub in ("o/m", "p/m", "o/M")]
    on_servers = [name(vlm="http://127.0.0.1:1/v1", vlm_model=model) for model in ("m", "M", "mini", "o/m")]
    names = [name(), *of_folders, *of_vlms, *of_others, *on_servers]
    assert len(set(names)) == len(names)
    assert re.fullmatch("lever-selector-okvqa-mini-[0-9a-f]{8}", of_folders[0])
    assert all(re.fullmatch("[a-z0-9-]{1,200}", each) for each in names)


def test_one_data_set_has_one_name_however_it_is_given(tmp_path, monkeypatch):
    (tmp_path / "okvqa").mkdir()
    monkeypatch.chdir(tmp_path / "okvqa")
    names = {name(dataset=path) for path in (".", "../okvqa", f"{tmp_path}/okvqa", f"{tmp_path}/okvqa/")}
    assert len(names) == 1
    assert re.fullmatch("lever-selector-okvqa-mini-[0-9a-f]{8}", names.pop())


def test_names_that_no_registry_takes_are_refused_before_any_work():
    assert Context(Resources(), model_name="x" * 200).registered_name == "x" * 200
    with pytest.raises(ParameterError, match=r"model_name: x{20}\.\.\. has 201 characters, more than the 200 that"):
        Context(Resources(), model_name="x" * 201)
