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
    from lever_mlflow.selector.checkpoint import load_selector
    from lever_mlflow.selector.network import PointerSelector
    from lever_mlflow.serving.retriever import load_retriever
    from lever_mlflow.trials.rl_data import load_rl_data

# Lets the threads of PyTorch's operations sleep while they wait for each other, unless the user has set the variable. By
# default they wait actively, and on a machine with other work a training then takes many times as long. OpenMP reads the
# variable once, when PyTorch is loaded, so it is set here; child processes inherit it. Results do not depend on it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
__all__ = ["PointerSelector", "check_rl_data", "load_retriever", "load_rl_data", "load_selector", "vqa_accuracy"]

_SOURCES = {  # public name -> the module that defines it, and its name there
    "PointerSelector": ("lever_mlflow.selector.network", "PointerSelector"),
    "check_rl_data": ("lever_mlflow.gate", "check"),
    "load_retriever": ("lever_mlflow.serving.retriever", "load_retriever"),
    "load_rl_data": ("lever_mlflow.trials.rl_data", "load_rl_data"),
    "load_selector": ("lever_mlflow.selector.checkpoint", "load_selector"),
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
