"""Registration of an evaluation's best epoch as a retriever that can be served."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lever_mlflow.pipeline.context import OVERRIDES, Context
from lever_mlflow.registry import versions
from lever_mlflow.serving import logged_models
from lever_mlflow.serving.retriever import RetrieverSettings, load_retriever, save_retriever
from lever_mlflow.vlm.prompt import PromptProfile

__all__ = ["register_best"]


def register_best(context: Context, result: Mapping[str, Any]) -> str:
    """Puts the retriever of an evaluation's best epoch behind its beta's alias, and returns the version.

    The retriever is logged in the active run, unless a version holds it already.
    """
    registration, settings = result["registration"], _settings(context, result)
    model_id, name = registration["model_id"], context.registered_name
    tags = {**registration["tags"], "selector_digest": settings.checkpoint_digest}
    if not versions.holds(name, settings.digest):
        model_id = _log_retriever(context, result["kl_beta"], model_id, settings, tags)
    return versions.register(model_id, name, result["kl_beta"], settings.digest, tags, registration["description"])


def _settings(context: Context, result: Mapping[str, Any]) -> RetrieverSettings:
    inputs, evaluation = result["inputs"], result["settings"]
    folder = Path(context.resources.encoder).expanduser()
    return RetrieverSettings(
        checkpoint_digest=result["registration"]["checkpoint_digest"],
        dataset_digest=inputs["dataset_digest"],
        encoder=str(folder.resolve()) if folder.is_dir() else context.resources.encoder,
        encoder_digest=inputs["encoder_digest"],
        profile=PromptProfile(**result["profile"]),
        pool_sampler=evaluation["pool_sampler"],
        pool_size=evaluation["pool_size"],
        seed=int(inputs["seed"]),
    )


def _log_retriever(
    context: Context, kl_beta: float, model_id: str, settings: RetrieverSettings, tags: Mapping[str, Any]
) -> str:
    """Logs the retriever around an epoch's checkpoint; it is loaded first, since MLflow only warns of what cannot be."""
    resources = context.resources
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = logged_models.checkpoint_folder(f"models:/{model_id}")
        save_retriever(folder, settings, checkpoint, resources.train, resources.features("train"))
        load_retriever(folder)
        return logged_models.log_retriever(
            f"retriever-{versions.beta_alias(kl_beta)}",
            folder,
            params={"kl_beta": kl_beta, "epoch": tags["epoch"], "checkpoint_model": model_id},
            tags={"retriever_digest": settings.digest, **{name: tags[name] for name in OVERRIDES if name in tags}},
        )
