"""Selects in-context demonstrations for vision-language models with a pointer network that is trained by offline RL.

The names below are the public interface. Each is imported from its module when it is first used, so that
``import lever_mlflow`` loads neither PyTorch nor MLflow nor Great Expectations.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lever_mlflow.data.vqa_accuracy import vqa_accuracy
    from lever_mlflow.gate import check as check_rl_data
    from lever_mlflow.gate.figures import figures_png as rl_data_figures
    from lever_mlflow.library import ask, make_retriever, record_rl_data
    from lever_mlflow.pipeline.resources import Resources
    from lever_mlflow.selector.checkpoint import load_selector, save_selector
    from lever_mlflow.selector.network import PointerSelector
    from lever_mlflow.serving.requests import Query
    from lever_mlflow.serving.retriever import load_retriever
    from lever_mlflow.settings import GrpoSettings, RceSettings, RolloutSettings
    from lever_mlflow.training.curves import training_curves
    from lever_mlflow.training.grpo import train_grpo
    from lever_mlflow.training.rce import train_rce
    from lever_mlflow.trials.reading import load_rl_data
    from lever_mlflow.trials.rewards import Reward
    from lever_mlflow.vlm.prompt import Prompt

# Lets the threads of PyTorch's operations sleep while they wait for each other, unless the user has set the variable. By
# default they wait actively, and on a machine with other work a training then takes many times as long. OpenMP reads the
# variable once, when PyTorch is loaded, so it is set here; child processes inherit it. Results do not depend on it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
__all__ = [
    "GrpoSettings",
    "PointerSelector",
    "Prompt",
    "Query",
    "RceSettings",
    "Resources",
    "Reward",
    "RolloutSettings",
    "ask",
    "check_rl_data",
    "load_retriever",
    "load_rl_data",
    "load_selector",
    "make_retriever",
    "record_rl_data",
    "rl_data_figures",
    "save_selector",
    "train_grpo",
    "train_rce",
    "training_curves",
    "vqa_accuracy",
]

_SOURCES = {  # public name -> the module that defines it, and its name there
    "GrpoSettings": ("lever_mlflow.settings", "GrpoSettings"),
    "PointerSelector": ("lever_mlflow.selector.network", "PointerSelector"),
    "Prompt": ("lever_mlflow.vlm.prompt", "Prompt"),
    "Query": ("lever_mlflow.serving.requests", "Query"),
    "RceSettings": ("lever_mlflow.settings", "RceSettings"),
    "Resources": ("lever_mlflow.pipeline.resources", "Resources"),
    "Reward": ("lever_mlflow.trials.rewards", "Reward"),
    "RolloutSettings": ("lever_mlflow.settings", "RolloutSettings"),
    "ask": ("lever_mlflow.library", "ask"),
    "check_rl_data": ("lever_mlflow.gate", "check"),
    "load_retriever": ("lever_mlflow.serving.retriever", "load_retriever"),
    "load_rl_data": ("lever_mlflow.trials.reading", "load_rl_data"),
    "load_selector": ("lever_mlflow.selector.checkpoint", "load_selector"),
    "make_retriever": ("lever_mlflow.library", "make_retriever"),
    "record_rl_data": ("lever_mlflow.library", "record_rl_data"),
    "rl_data_figures": ("lever_mlflow.gate.figures", "figures_png"),
    "save_selector": ("lever_mlflow.selector.checkpoint", "save_selector"),
    "train_grpo": ("lever_mlflow.training.grpo", "train_grpo"),
    "train_rce": ("lever_mlflow.training.rce", "train_rce"),
    "training_curves": ("lever_mlflow.training.curves", "training_curves"),
    "vqa_accuracy": ("lever_mlflow.data.vqa_accuracy", "vqa_accuracy"),
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used.

    Raises:
        AttributeError: the package has no such name.
    """
    if name not in _SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _SOURCES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    """Lists the public names beside those that are already loaded."""
    return sorted({*globals(), *__all__})
