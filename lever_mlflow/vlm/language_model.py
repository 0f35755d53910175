"""Opens a VLM by its name: a folder, a hub name, or the URL of a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lever_mlflow.files.model_folders import check_model, folder_digest, model_folder
from lever_mlflow.settings import AUTO
from lever_mlflow.vlm.local import LocalVLM
from lever_mlflow.vlm.prompt import QWEN_PROFILE
from lever_mlflow.vlm.server import ServerVLM, is_server

__all__ = ["LanguageModel", "VlmName", "check_language_model", "open_language_model"]

LanguageModel = LocalVLM | ServerVLM


@dataclass(frozen=True)
class VlmName:
    """Names a VLM and how it is run, in a form that can be sent to another process.

    Attributes:
        name: folder or hub name of a Qwen2.5-VL, or the URL of an OpenAI-compatible server.
        served_name: the model's name on that server; ``auto`` is the only one that it has.
        profile: key of ``PROFILES`` for a local model.
        device: ``cpu`` or ``cuda``, for a local model.
        batch_tokens: as for ``LocalVLM``.
    """

    name: str
    served_name: str = AUTO
    profile: str = QWEN_PROFILE
    device: str = "cpu"
    batch_tokens: int = 0


def open_language_model(vlm: VlmName, digest_dir: Path) -> LanguageModel:
    """Returns the VLM of this name. Weights are loaded, and a server is contacted, when they are first needed.

    Args:
        vlm: what to open; a hub model is downloaded on first use.
        digest_dir: folder in which digests of model folders are remembered.

    Raises:
        DataError: the name leads to no model folder.
        ParameterError: the URL cannot be used.
    """
    if is_server(vlm.name):
        return ServerVLM(vlm.name, vlm.served_name)
    folder = model_folder(vlm.name)
    return LocalVLM(folder, folder_digest(folder, digest_dir), vlm.profile, vlm.device, vlm.batch_tokens)


def check_language_model(model: LanguageModel) -> None:
    """Looks into a model's folder, or asks a server for its model; loads nothing.

    Raises:
        DataError: the folder holds no Qwen2.5-VL.
        ServerError: the server cannot be reached, or is not compatible with OpenAI's interface.
        ParameterError: the server has no such model, or several and none is named.
    """
    if isinstance(model, ServerVLM):
        _ = model.card
    else:
        check_model(model.folder, "qwen2_5_vl")
