"""Notes which files a run has left in the artifact store, and looks whether they are still there before the run is used again.

MLflow keeps runs in a database and their files elsewhere. A run that is found by its tags may have lost its files: a folder
was moved, a disk was full, somebody cleaned up. So the last artifact of each step is ``manifest.json``. It names the files of
the run with their sizes, and those of the logged models that the run made or that whoever takes its result needs. The digests
of files that lie on this machine's disks are noted too; for others, reading them to the end would cost too much.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

import mlflow
from mlflow.entities import FileInfo, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from pydantic import BaseModel, ValidationError

from lever_mlflow.exceptions import LeverError, first_line
from lever_mlflow.runs.artifacts import artifact
from lever_mlflow.runs.models import logged_models_of
from lever_mlflow.runs.tags import FACTS_FILE

__all__ = ["lack_of", "lack_of_model", "lack_of_version", "log_manifest"]

T = TypeVar("T")
MANIFEST_FILE = "manifest.json"
_MODEL_URI = "models:/"
_REMEDY = "nothing is known of them, so nothing is run anew; see that the store can be reached, or give rerun=true"


class _File(BaseModel):
    size: int | None  # in bytes; None where the store does not tell
    sha256: str | None = None


class _Manifest(BaseModel):
    artifacts: dict[str, _File]
    models: dict[str, dict[str, _File]]


def log_manifest(run_id: str, needs: Iterable[str] = ()) -> None:
    """Logs the manifest of a run; nothing may be logged in the run after it.

    Args:
        run_id: the active run.
        needs: URIs of further logged models that whoever takes the run's result reads; anything else among them is left out.
    """
    needed = (uri.removeprefix(_MODEL_URI) for uri in needs if uri.startswith(f"{_MODEL_URI}m-"))
    models = sorted({*logged_models_of(run_id), *needed})
    manifest = _Manifest(
        artifacts=_noted(_files_of_run(mlflow.get_run(run_id))),
        models={model_id: _noted(_files_of_model(model_id)) for model_id in models},
    )
    mlflow.log_text(manifest.model_dump_json(exclude_none=True), MANIFEST_FILE)


def lack_of(run: Run) -> str:
    """Says in words what a run has lost of its files and of the models that its result needs; empty where all is whole.

    Raises:
        LeverError: the store does not answer, so that nothing is known.
    """
    return _store_answer(f"run {run.info.run_id}", lambda: _lack_of_run(run))


def lack_of_model(model_id: str) -> str:
    """Says in words what a logged model has lost of its files, as ``lack_of``."""
    return _store_answer(f"model {model_id}", lambda: _lack_of_model(model_id))


def lack_of_version(version: ModelVersion) -> str:
    """Says in words what the model of a registered version has lost, as ``lack_of``; empty where it is no logged model."""
    source = str(version.source)
    return lack_of_model(source.removeprefix(_MODEL_URI)) if source.startswith(f"{_MODEL_URI}m-") else ""


def _store_answer(whose: str, look: Callable[[], T]) -> T:
    try:
        return look()
    except LeverError:
        raise
    except Exception as error:  # each kind of artifact store has exceptions of its own library
        raise LeverError(f"{whose}: its files cannot be looked at ({first_line(error)}); {_REMEDY}") from error


def _lack_of_run(run: Run) -> str:
    files = _files_of_run(run)
    names = {item.path for item in files.list_artifacts(None)}
    if MANIFEST_FILE not in names:
        return "" if FACTS_FILE in names else f"its {FACTS_FILE} is gone" if names else "its files are gone"
    manifest = _manifest(run.info.run_id)
    if manifest is None:
        return f"its {MANIFEST_FILE} is damaged"
    if lack := _lack(files, manifest.artifacts):
        return f"its {lack}"
    lacks = (_lack_of_model(model_id, noted) for model_id, noted in manifest.models.items())
    return next(filter(None, lacks), "")


def _lack_of_model(model_id: str, noted: Mapping[str, _File] | None = None) -> str:
    """Says which file of a model is gone or has changed since a manifest noted it; empty where none is.

    ``noted`` holds the files by a manifest, by default that of the run that logged the model, if that run has one.
    """
    try:
        files = _files_of_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return f"the model {model_id} was deleted"
    noted = _note_of_its_run(model_id) if noted is None else noted
    if not noted:
        return "" if files.list_artifacts(None) else f"the files of model {model_id} are gone"
    lack = _lack(files, noted)
    return f"of model {model_id}, {lack}" if lack else ""


def _note_of_its_run(model_id: str) -> Mapping[str, _File]:
    run_id = str(mlflow.get_logged_model(model_id).source_run_id)
    try:
        run = mlflow.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    there = MANIFEST_FILE in {item.path for item in _files_of_run(run).list_artifacts(None)}
    manifest = _manifest(run_id) if there else None
    return {} if manifest is None else manifest.models.get(model_id, {})


def _manifest(run_id: str) -> _Manifest | None:
    """Reads the manifest of a run that has one; None where it is damaged."""
    try:
        return _Manifest.model_validate_json(artifact(run_id, MANIFEST_FILE).read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError):
        return None


def _noted(files: ArtifactRepository) -> dict[str, _File]:
    return {item.path: _File(size=item.file_size, sha256=_digest(files, item.path)) for item in _walk(files)}


def _walk(files: ArtifactRepository, folder: str | None = None) -> Iterator[FileInfo]:
    for item in files.list_artifacts(folder):
        if item.is_dir:
            yield from _walk(files, item.path)
        else:
            yield item


def _lack(files: ArtifactRepository, noted: Mapping[str, _File]) -> str:
    """Says which noted file is gone or has changed; empty where none is. Files that are not noted do not matter."""
    folders = {str(PurePosixPath(path).parent) for path in noted}
    items = {item.path: item for folder in folders for item in files.list_artifacts(None if folder == "." else folder)}
    for path, file in noted.items():
        if path not in items:
            return f"{path} is gone"
        size = items[path].file_size
        if None not in (size, file.size) and size != file.size:
            return f"{path} has {size:,} bytes, and had {file.size:,}"
        if file.sha256 and _digest(files, path) not in (None, file.sha256):
            return f"{path} has changed"
    return ""


def _digest(files: ArtifactRepository, path: str) -> str | None:
    """Returns the SHA-256 of a file on this machine's disks; None for a file elsewhere."""
    if not isinstance(files, LocalArtifactRepository):
        return None
    with Path(files.artifact_dir, path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files_of_run(run: Run) -> ArtifactRepository:
    return get_artifact_repository(run.info.artifact_uri)


def _files_of_model(model_id: str) -> ArtifactRepository:
    return get_artifact_repository(mlflow.get_logged_model(model_id).artifact_location)
