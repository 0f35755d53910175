"""The model registry: one registered model per data set and VLM, a version per beta, aliases ``kl-0-12`` and ``champion``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from lever_mlflow.exceptions import MissingRunError

__all__ = ["CHAMPION", "PREVIOUS_CHAMPION", "beta_alias", "holds", "promote", "register"]

CHAMPION, PREVIOUS_CHAMPION = "champion", "previous-champion"


def beta_alias(kl_beta: float) -> str:
    """Alias of a beta's best version: ``kl-0-12`` for 0.12, since MLflow allows no dots in aliases."""
    return f"kl-{kl_beta:.12g}".replace(".", "-").replace("+", "")


def holds(name: str, digest: str) -> bool:
    """Whether a registered model has a version of this digest, so that ``register`` adds none."""
    return _with_digest(MlflowClient(), name, digest) is not None


def register(model_id: str, name: str, kl_beta: float, checkpoint_digest: str, tags: Mapping[str, Any]) -> str:
    """Makes a logged checkpoint the version behind its beta's alias, and returns the version.

    The same checkpoint adds no version: the one that holds it gets the alias, and its tags are renewed.
    """
    client = MlflowClient()
    version = _with_digest(client, name, checkpoint_digest) or mlflow.register_model(f"models:/{model_id}", name)
    for key, value in {**tags, "checkpoint_digest": checkpoint_digest, "kl_beta": f"{kl_beta:g}"}.items():
        client.set_model_version_tag(name, version.version, key, str(value))
    client.set_registered_model_alias(name, beta_alias(kl_beta), version.version)
    return str(version.version)


def promote(name: str, kl_beta: float) -> tuple[str, str | None]:
    """Makes the version behind a beta's alias the champion; returns it and the former champion, if another one.

    The former champion becomes ``previous-champion``. Promoting the present champion changes nothing.

    Raises:
        MissingRunError: no such registered model, or no version for this beta; the message lists the betas that there are.
    """
    client = MlflowClient()
    candidate = _aliased(client, name, beta_alias(kl_beta))
    if candidate is None:
        raise MissingRunError(_unknown(client, name, kl_beta))
    champion = _aliased(client, name, CHAMPION)
    if champion is not None and champion.version == candidate.version:
        return str(candidate.version), None
    if champion is not None:
        client.set_registered_model_alias(name, PREVIOUS_CHAMPION, champion.version)
    client.set_registered_model_alias(name, CHAMPION, candidate.version)
    return str(candidate.version), None if champion is None else str(champion.version)


def _with_digest(client: MlflowClient, name: str, checkpoint_digest: str) -> ModelVersion | None:
    versions = client.search_model_versions(f"name = '{name}'")
    return next((v for v in versions if v.tags.get("checkpoint_digest") == checkpoint_digest), None)


def _aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model, no such alias
            return None
        raise


def _unknown(client: MlflowClient, name: str, kl_beta: float) -> str:
    remedy = f"run `mlflow run . -e evaluate -P kl_beta={kl_beta:g}` first"
    try:
        aliases = sorted(alias for alias in client.get_registered_model(name).aliases if alias.startswith("kl-"))
    except MlflowException:
        return f"kl_beta={kl_beta:g}: no registered model {name}; {remedy}"
    known = ", ".join(aliases) or "none"
    return f"kl_beta={kl_beta:g}: {name} has no version with alias {beta_alias(kl_beta)} (it has: {known}); {remedy}"
