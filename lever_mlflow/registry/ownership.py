"""Tells what a registered model was made for, and keeps versions of something else out of it.

Selectors are comparable, and one may replace the other, only on the same data set, VLM, encoder and way of asking and scoring.
So a registered model is made for one of each: a tag of the model and of each of its versions holds their digests. Users may put
versions of their own beside ours; those are never promoted and never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from lever_mlflow.evaluation.result import EvaluationInputs
from lever_mlflow.exceptions import MissingRunError, ParameterError
from lever_mlflow.registry.version_tags import VersionTag

__all__ = ["check_model", "check_version", "claim", "find_model", "is_ours", "made_for"]

_KINDS = {"dataset": "dataset_digest", "vlm": "vlm_digest", "encoder": "encoder_digest", "profile": "profile_digest"}
_TELLING = frozenset({VersionTag.EPOCH, VersionTag.EVALUATION_RUN, VersionTag.MODEL_DIGEST})
_SHOWN = 8  # characters of a digest


def made_for(inputs: EvaluationInputs | Mapping[str, str]) -> str:
    """Writes the digests of data set, VLM, encoder and profile as they stand in tags.

    Args:
        inputs: of the evaluation of a version, or the identity of an experiment.
    """
    values = inputs if isinstance(inputs, Mapping) else inputs.model_dump()
    return ",".join(f"{kind}={values[name]}" for kind, name in _KINDS.items())


def is_ours(version: ModelVersion) -> bool:
    """Says whether an evaluation of this package registered a version: it has a beta and another tag of such versions."""
    with suppress(KeyError, ValueError):
        return float(version.tags[VersionTag.KL_BETA]) >= 0 and not version.tags.keys().isdisjoint(_TELLING)
    return False


def find_model(name: str) -> RegisteredModel | None:
    """Returns the registered model of a name; None where there is none."""
    try:
        return MlflowClient().get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def check_model(name: str, wanted: str) -> RegisteredModel | None:
    """Checks that versions which were made for something may be added to a registered model; returns the model if there is one.

    Args:
        name: of the registered model.
        wanted: what the versions are made for, as ``made_for`` writes it.

    Raises:
        ParameterError: the model was made for something else, or holds nothing but versions of somebody else.
    """
    model = find_model(name)
    if model is None:
        return None
    present = model.tags.get(VersionTag.MADE_FOR)
    if present is not None and present != wanted:
        difference = _difference(present, wanted)
        raise ParameterError(f"model_name={name}: that registered model was {difference}; give another model_name")
    others = MlflowClient().search_model_versions(f"name = '{name}'") if present is None else []
    if others and not any(map(is_ours, others)):
        raise ParameterError(f"model_name={name}: that registered model holds versions of others only; give another model_name")
    return model


def claim(name: str, wanted: str) -> None:
    """Makes a registered model for something, unless it is there; a model of earlier versions of this package is tagged.

    Raises:
        ParameterError: as ``check_model``.
    """
    client, model = MlflowClient(), check_model(name, wanted)
    if model is None:
        try:
            client.create_registered_model(name, tags={VersionTag.MADE_FOR: wanted})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        model = check_model(name, wanted)
    if model is not None and VersionTag.MADE_FOR not in model.tags:
        client.set_registered_model_tag(name, VersionTag.MADE_FOR, wanted)


def check_version(name: str, version: ModelVersion) -> None:
    """Checks that a version of a registered model may be promoted or restored.

    Raises:
        MissingRunError: no evaluation registered the version, or it was made for something else than the model.
    """
    label = f"{name} version {version.version}"
    if not is_ours(version):
        raise MissingRunError(
            f"{label}: no evaluation of this project registered it, as its tags say; move the alias to one of those that "
            "`status` shows with a beta, or run the evaluate step"
        )
    model = find_model(name)
    wanted = None if model is None else model.tags.get(VersionTag.MADE_FOR)
    actual = version.tags.get(VersionTag.MADE_FOR, wanted)
    if wanted is not None and actual != wanted:
        raise MissingRunError(f"{label} was {_difference(str(actual), wanted)}; move the alias, or run the evaluate step")


def _difference(present: str, wanted: str) -> str:
    """Says which digests of a registered model differ from others."""
    pairs = zip(_KINDS, present.split(","), wanted.split(","), strict=False)
    differing = {
        kind: f"digest {before.partition('=')[2][:_SHOWN]}, not {now.partition('=')[2][:_SHOWN]}"
        for kind, before, now in pairs
        if before != now
    }
    return f"made for another {' and '.join(differing)} ({'; '.join(differing.values())})"
