"""Opens a VLM by its name: a folder, a hub name, or the URL of a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.files.model_folders import folder_digest, model_folder
from lever_mlflow.settings import AUTO, ResourceSettings, VlmDtype
from lever_mlflow.vlm.generic import GenericVLM
from lever_mlflow.vlm.local import LocalVLM, model_type
from lever_mlflow.vlm.profiles import GENERIC_PROFILE, QWEN_PROFILE, SERVER_PROFILE, find_profile
from lever_mlflow.vlm.qwen import FAMILIES, QwenVLM
from lever_mlflow.vlm.server import ServerVLM
from lever_mlflow.vlm.server_address import is_server

__all__ = ["LanguageModel", "VlmName", "check_language_model", "open_language_model"]

LanguageModel = LocalVLM | ServerVLM

_PROFILES = {"qwen2_vl": QWEN_PROFILE, "qwen2_5_vl": QWEN_PROFILE, "qwen3_vl": "qwen3-vl", "qwen3_5": "qwen3-vl"}


@dataclass(frozen=True)
class VlmName:
    """Names a VLM and how it is run, in a form that can be sent to another process.

    Attributes:
        name: folder or hub name of a model, or the address of an OpenAI-compatible server.
        served_name: the model's name on that server; ``auto`` is the only one that it has.
        profile: name or file of a prompt profile; ``auto`` is that of the family.
        device: ``cpu`` or ``cuda``, for a local model.
        batch_tokens, dtype: as for ``LocalVLM``.
        timeout, max_poor_answers: as for ``ServerVLM``.
    """

    name: str
    served_name: str = AUTO
    profile: str = AUTO
    device: str = "cpu"
    batch_tokens: int = 0
    dtype: VlmDtype = "auto"
    timeout: float = ResourceSettings.vlm_timeout
    max_poor_answers: float = ResourceSettings.max_poor_answers


def open_language_model(vlm: VlmName, digest_dir: Path) -> LanguageModel:
    """Returns the VLM of this name. Weights are loaded, and a server is contacted, when they are first needed.

    Args:
        vlm: what to open; a hub model is downloaded on first use.
        digest_dir: folder in which digests of model folders are remembered.

    Raises:
        DataError: the name leads to no model folder.
        ParameterError: the URL or the profile cannot be used.
    """
    if is_server(vlm.name):
        profile = find_profile(SERVER_PROFILE if vlm.profile == AUTO else vlm.profile)
        if profile.num_beams > 1:
            raise ParameterError(
                f"profile={vlm.profile}: num_beams is {profile.num_beams}, but servers have no beam search; set it to 1"
            )
        return ServerVLM(vlm.name, vlm.served_name, profile, timeout=vlm.timeout, max_poor_answers=vlm.max_poor_answers)
    folder = model_folder(vlm.name)
    family = model_type(folder)
    profile = find_profile(_PROFILES.get(family, GENERIC_PROFILE) if vlm.profile == AUTO else vlm.profile)
    model_class = QwenVLM if family in FAMILIES else GenericVLM
    return model_class(folder, folder_digest(folder, digest_dir), profile, vlm.device, vlm.batch_tokens, vlm.dtype)


def check_language_model(model: LanguageModel) -> None:
    """Looks into a model's folder, or asks a server for its model; loads no weights.

    Raises:
        DataError: the folder holds no model that can be run.
        ServerError: the server cannot be reached, or is not compatible with OpenAI's interface.
        ParameterError: the server has no such model, or several and none is named.
    """
    model.check()
