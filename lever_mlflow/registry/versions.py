"""Registers versions: one registered model per data set and VLM, a version per beta, aliases ``kl-0-12`` and the like."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.utils import logging_utils

from lever_mlflow.exceptions import MissingRunError
from lever_mlflow.files.urls import without_secrets
from lever_mlflow.invocation import command
from lever_mlflow.registry.model_card import renewed
from lever_mlflow.registry.ownership import check_version, claim, find_model
from lever_mlflow.registry.version_tags import VersionTag, measured
from lever_mlflow.runs.fields import LONGEST_VERSION_TEXT, fitted
from lever_mlflow.runs.whole import lack_of_version
from lever_mlflow.settings import format_beta

__all__ = ["beta_alias", "describe_model", "find_version", "holds", "register", "registered_model", "versions"]

_ALIAS = "kl-"
_tag_text = partial(fitted, longest=LONGEST_VERSION_TEXT, whole="evaluation.json")

log = logging.getLogger(__name__)


def beta_alias(kl_beta: float) -> str:
    """Names the alias of a beta's best version: ``kl-0-12`` for 0.12, since MLflow allows no dots in aliases."""
    return f"{_ALIAS}{format_beta(kl_beta)}".replace(".", "-").replace("+", "")


def holds(name: str, digest: str) -> bool:
    """Says whether a registered model has a version of this digest that is whole, so that ``register`` adds none."""
    return _version_of_digest(MlflowClient(), name, digest) is not None


def register(model_id: str, name: str, kl_beta: float, digest: str, tags: Mapping[str, Any], description: str = "") -> str:
    """Makes a logged model the version behind its beta's alias, and returns the version.

    The same digest adds no version: the version that holds it gets the alias, and its tags and description are renewed. What
    was written there when it was promoted stays.

    Raises:
        ParameterError: as ``claim``, where the tags say what the version is made for.
    """
    client = MlflowClient()
    values = {VersionTag.KL_BETA: format_beta(kl_beta), **tags, VersionTag.MODEL_DIGEST: digest}
    texts = {str(tag): _tag_text(str(value)) for tag, value in values.items()}  # in the order in which the UI shows them
    if VersionTag.MADE_FOR in texts:
        claim(name, texts[VersionTag.MADE_FOR])
    version = _version_of_digest(client, name, digest) or _created(client, name, model_id, texts)
    for tag, text in texts.items():
        if version.tags.get(tag) != text:
            client.set_model_version_tag(name, version.version, tag, text)
    for tag in measured(version.tags) - texts.keys():
        client.delete_model_version_tag(name, version.version, tag)
    if description:
        card = renewed(description, version.description or "")
        client.update_model_version(name, version.version, without_secrets(card))
    client.set_registered_model_alias(name, beta_alias(kl_beta), version.version)
    return str(version.version)


def describe_model(name: str, description: str) -> None:
    """Describes a registered model, unless somebody has described it already."""
    if not registered_model(name).description:
        MlflowClient().update_registered_model(name, fitted(description, LONGEST_VERSION_TEXT))


def find_version(name: str, kl_beta: float) -> ModelVersion:
    """Returns the version behind a beta's alias.

    Raises:
        MissingRunError: there is no such registered model, or no version for this beta, and the message lists the others; or as
            ``check_version``, and where somebody has moved the alias to a version of another beta.
    """
    beta, alias = format_beta(kl_beta), beta_alias(kl_beta)
    remedy = f"run `{command('evaluate', kl_beta=kl_beta)}` first, which says so where it registers nothing"
    aliases = registered_model(name, remedy).aliases
    if alias not in aliases:
        others = ", ".join(sorted(other for other in aliases if other.startswith(_ALIAS))) or "none"
        raise MissingRunError(f"kl_beta={beta}: {name} has no version with alias {alias} (it has: {others}); {remedy}")
    version = MlflowClient().get_model_version(name, str(aliases[alias]))
    check_version(name, version)
    trained = float(version.tags[VersionTag.KL_BETA])
    if not math.isclose(trained, kl_beta, rel_tol=1e-5):  # tags of earlier versions of this package have six digits
        raise MissingRunError(f"{name} version {version.version} has the alias {alias}, but beta {trained:g}; {remedy}")
    return version


def registered_model(name: str, remedy: str = "") -> RegisteredModel:
    """Returns a registered model with its tags and aliases.

    Args:
        name: of the registered model.
        remedy: says what to do where there is none; by default the command of the evaluation, which registers versions.

    Raises:
        MissingRunError: there is none of this name.
    """
    remedy = remedy or f"run `{command('evaluate')}` first"
    model = find_model(name)
    if model is None:
        raise MissingRunError(f"no registered model {name}; {remedy}")
    return model


def versions(name: str) -> list[tuple[ModelVersion, list[str]]]:
    """Lists every version of a registered model with its aliases, in the order of the versions' numbers.

    Raises:
        MissingRunError: there is no such registered model.
    """
    aliases = registered_model(name).aliases
    ordered = sorted(MlflowClient().search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version))
    return [(item, sorted(alias for alias, v in aliases.items() if str(v) == str(item.version))) for item in ordered]


def _created(client: MlflowClient, name: str, model_id: str, tags: Mapping[str, str]) -> ModelVersion:
    """Adds a version; of several that are made for a model at the same time all but the first are deleted again.

    A version is made together with its digest, and whoever sees a later number also sees the earlier ones. So all that made one
    agree on the first, and the others never get an alias.
    """
    logging_utils.disable_logging()  # MLflow prints what the log of the evaluation says already
    try:
        created = mlflow.register_model(f"models:/{model_id}", name, tags=dict(tags))
    finally:
        logging_utils.enable_logging()
    first = _version_of_digest(client, name, tags[VersionTag.MODEL_DIGEST]) or created
    if str(first.version) != str(created.version):
        client.delete_model_version(name, created.version)
    return first


def _version_of_digest(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """Finds the first version of a registered model that holds a model of this digest and whose files are whole."""
    versions = client.search_model_versions(f"name = '{name}' and tags.{VersionTag.MODEL_DIGEST} = '{digest}'")
    looked_at = [(version, lack_of_version(version)) for version in sorted(versions, key=lambda version: int(version.version))]
    whole = next((version for version, lack in looked_at if not lack), None)
    if whole is None:
        for version, lack in looked_at:
            _say_once(f"{name} version {version.version} is registered anew: {lack}")
    return whole


@cache
def _say_once(message: str) -> None:
    log.warning("%s", message)
