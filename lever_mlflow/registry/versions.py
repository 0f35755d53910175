"""The model registry: one registered model per data set and VLM, a version per beta, aliases ``kl-0-12`` and the like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from lever_mlflow.exceptions import MissingRunError
from lever_mlflow.registry.model_card import TABLE_TAGS, renewed

__all__ = ["beta_alias", "find_version", "holds", "register", "registered_model", "versions"]

_LONGEST_TAG = 5000  # of a version's tags; MLflow takes more, but nobody reads more


def beta_alias(kl_beta: float) -> str:
    """Alias of a beta's best version: ``kl-0-12`` for 0.12, since MLflow allows no dots in aliases."""
    return f"kl-{kl_beta:.12g}".replace(".", "-").replace("+", "")


def holds(name: str, digest: str) -> bool:
    """Whether a registered model has a version of this digest, so that ``register`` adds none."""
    return _of_digest(MlflowClient(), name, digest) is not None


def register(model_id: str, name: str, kl_beta: float, digest: str, tags: Mapping[str, Any], description: str = "") -> str:
    """Makes a logged model the version behind its beta's alias, and returns the version.

    The same digest adds no version: the one that holds it gets the alias, and its tags and description are renewed; what
    was written there when it was promoted stays.
    """
    client = MlflowClient()
    version = _of_digest(client, name, digest) or _created(client, name, model_id, digest)
    wanted = {**tags, "model_digest": digest, "kl_beta": f"{kl_beta:g}"}
    for key, value in wanted.items():
        if version.tags.get(key) != (text := str(value)[:_LONGEST_TAG]):
            client.set_model_version_tag(name, version.version, key, text)
    for key in version.tags.keys() - wanted.keys():
        if key.startswith(TABLE_TAGS):
            client.delete_model_version_tag(name, version.version, key)
    if description:
        client.update_model_version(name, version.version, renewed(description, version.description or ""))
    client.set_registered_model_alias(name, beta_alias(kl_beta), version.version)
    return str(version.version)


def find_version(name: str, kl_beta: float) -> ModelVersion:
    """The version behind a beta's alias.

    Raises:
        MissingRunError: no such registered model, or no version for this beta; the message lists the betas that there are.
    """
    remedy = f"run `mlflow run . -e evaluate -P kl_beta={kl_beta:g}` first"
    aliases = registered_model(name, remedy).aliases
    alias = beta_alias(kl_beta)
    if alias not in aliases:
        known = ", ".join(sorted(other for other in aliases if other.startswith("kl-"))) or "none"
        raise MissingRunError(f"kl_beta={kl_beta:g}: {name} has no version with alias {alias} (it has: {known}); {remedy}")
    return MlflowClient().get_model_version(name, str(aliases[alias]))


def registered_model(name: str, remedy: str = "run `mlflow run . -e evaluate` first") -> RegisteredModel:
    """A registered model with its tags and aliases.

    Raises:
        MissingRunError: there is none of this name.
    """
    try:
        return MlflowClient().get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise MissingRunError(f"no registered model {name}; {remedy}") from None


def versions(name: str) -> list[tuple[ModelVersion, list[str]]]:
    """Every version of a registered model with its aliases, in the order of their numbers.

    Raises:
        MissingRunError: no such registered model.
    """
    aliases = registered_model(name).aliases
    found = sorted(MlflowClient().search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version))
    return [(item, sorted(alias for alias, v in aliases.items() if str(v) == str(item.version))) for item in found]


def _created(client: MlflowClient, name: str, model_id: str, digest: str) -> ModelVersion:
    """A new version; of several that were made for a checkpoint at the same time all but the first are deleted again.

    A version is made together with its digest, and a later number after an earlier one is there to be seen: so all who made one
    agree on the first, and the others never get an alias.
    """
    created = mlflow.register_model(f"models:/{model_id}", name, tags={"model_digest": digest})
    first = _of_digest(client, name, digest) or created
    if str(first.version) != str(created.version):
        client.delete_model_version(name, created.version)
    return first


def _of_digest(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """The first version that holds a checkpoint."""
    found = client.search_model_versions(f"name = '{name}' and tags.model_digest = '{digest}'")
    return min(found, key=lambda version: int(version.version), default=None)
