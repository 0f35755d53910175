"""The public names of the package: what they are, that they load lazily, and that the example of the docs runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lever_mlflow
from lever_mlflow import library, settings
from lever_mlflow.data import vqa_accuracy as accuracy_module
from lever_mlflow.gate import check, figures
from lever_mlflow.pipeline import resources
from lever_mlflow.selector import checkpoint, network
from lever_mlflow.serving import requests, retriever
from lever_mlflow.training import curves, grpo, rce
from lever_mlflow.trials import reading, rewards
from lever_mlflow.vlm import prompt

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "pandas", "mlflow", "great_expectations", "transformers", "matplotlib", "click")


def test_public_names_are_the_documented_objects():
    assert sorted(lever_mlflow.__all__) == lever_mlflow.__all__ == list(lever_mlflow._SOURCES)
    assert {
        "GrpoSettings": settings.GrpoSettings,
        "PointerSelector": network.PointerSelector,
        "Prompt": prompt.Prompt,
        "Query": requests.Query,
        "RceSettings": settings.RceSettings,
        "Resources": resources.Resources,
        "Reward": rewards.Reward,
        "RolloutSettings": settings.RolloutSettings,
        "ask": library.ask,
        "check_rl_data": check,
        "load_retriever": retriever.load_retriever,
        "load_rl_data": reading.load_rl_data,
        "load_selector": checkpoint.load_selector,
        "make_retriever": library.make_retriever,
        "record_rl_data": library.record_rl_data,
        "rl_data_figures": figures.figures_png,
        "save_selector": checkpoint.save_selector,
        "train_grpo": grpo.train_grpo,
        "train_rce": rce.train_rce,
        "training_curves": curves.training_curves,
        "vqa_accuracy": accuracy_module.vqa_accuracy,
    } == {name: getattr(lever_mlflow, name) for name in lever_mlflow.__all__}


def test_dir_lists_the_public_names():
    assert {*lever_mlflow.__all__, "__version__"} <= set(dir(lever_mlflow))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'lever_mlflow' has no attribute 'load_everything'"):
        _ = lever_mlflow.load_everything


def packages_after(statement):
    """The heavy packages that are loaded in a fresh interpreter after a statement."""
    program = f"import sys\n{statement}\nprint(*sorted(set({HEAVY}) & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    return result.stdout.split()


def test_importing_the_package_loads_nothing_heavy():
    assert packages_after("import lever_mlflow; dir(lever_mlflow)") == []


def test_vqa_accuracy_loads_nothing_heavy():
    assert packages_after("from lever_mlflow import vqa_accuracy") == []


def documented_example():
    """The Python block in the docs' section about the library."""
    section = (ROOT / "docs" / "first-steps.md").read_text(encoding="utf-8").split("\n## From Python\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def test_example_in_the_docs_runs(tmp_path, monkeypatch, capsys, good_rl_data):
    (tmp_path / "rl_data.json").write_bytes(Path(good_rl_data).read_bytes())
    torch.manual_seed(0)
    checkpoint.save_selector(tmp_path / "model" / "artifacts" / "checkpoint", network.PointerSelector(feature_dim=512), {})
    monkeypatch.chdir(tmp_path)
    code = documented_example()
    assert len([line for line in code.splitlines() if line.strip()]) == 5
    names = {}
    exec(code, names)
    assert capsys.readouterr().out.splitlines() == ["pass 0.5", "0.9"]
    assert names["selector"].config["feature_dim"] == 512
