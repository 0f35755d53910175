"""Moves the aliases ``champion`` and ``previous-champion`` of a registered model, one process at a time and as a whole.

MLflow has no compare-and-swap on aliases, but of several processes only one can create a registered model of a given name. So
change n begins with the creation of ``<name>.champion-change-<n>``, which holds all that the change will write, and ends
with the tag ``champion_changes`` = n of the registered model. Whoever finds a change that was begun and not ended waits for it,
and writes it in place of its process after ``PATIENCE`` seconds, or sooner where that process can be seen to be gone. Anybody
may create registered models, so a change counts only once the registered model's own tag ``champion_change`` names it, which
takes the right to edit that model.

These records stand among the users' registered models. So each has a tag that says whose record it is, and only a model with
this tag and without versions is ever deleted. A model of such a name without the tag stays, and its number is passed over.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from lever_mlflow.exceptions import MissingRunError, PromotionError
from lever_mlflow.invocation import command
from lever_mlflow.process_identity import is_there, this_process
from lever_mlflow.registry.version_tags import VersionTag
from lever_mlflow.registry.versions import registered_model
from lever_mlflow.runs.artifacts import as_recorded
from lever_mlflow.runs.tags import PREFIX

__all__ = [
    "CHAMPION",
    "PATIENCE",
    "PREVIOUS_CHAMPION",
    "Change",
    "Holders",
    "change",
    "finish_rollback",
    "holders",
    "is_name_of_record",
    "now",
    "restored",
    "rollback",
    "settle",
]

CHAMPION, PREVIOUS_CHAMPION = "champion", "previous-champion"
PATIENCE = 20.0  # seconds for which a change that another process has begun is waited for
_OF_GONE = 1.0  # seconds in place of them for a process that is gone, whose last request may still be under way
_COUNT, _CONFIRMED, _VERSION_TAG = "champion_changes", "champion_change", "version."
_PROCESS = "process"  # tag of each record; the process that makes the change
_RECORD, _RECORD_OF = ".champion-change-", f"{PREFIX}champion_change_of"  # in the name of each record; its tag that says whose

log = logging.getLogger(__name__)


class Holders(NamedTuple):
    """Holds the versions behind ``champion`` and ``previous-champion``; None where there is none."""

    champion: str | None
    previous: str | None


@dataclass(frozen=True)
class Change:
    """Describes what a change leaves: the versions behind both aliases, and what is written on the new champion.

    ``previous`` None leaves that alias as it is; ``by`` says who makes the change, for others who come across it. ``says`` is
    logged when the change is written and not yet ended, so that a user who has not read it may run the command again.
    """

    champion: str
    previous: str | None
    by: str
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str | None = None
    says: str = ""


def holders(name: str) -> Holders:
    """Returns the present champion and the former one.

    Raises:
        MissingRunError: there is no such registered model.
    """
    aliases = registered_model(name).aliases
    return Holders(*(str(aliases[alias]) if alias in aliases else None for alias in (CHAMPION, PREVIOUS_CHAMPION)))


def is_name_of_record(name: str) -> bool:
    """Says whether a registered model of this name could be taken for the record of a change of champion."""
    return re.search(rf"{re.escape(_RECORD)}\d+$", name) is not None


def settle(name: str) -> int:
    """Waits for a change that another process has begun, or finishes it in its place.

    Returns how many changes there have been; a number under which somebody else keeps a registered model counts as one.

    Raises:
        MissingRunError: there is no such registered model. PromotionError: its tag ``champion_changes`` is no number.
    """
    return _settled(name)[0]


def finish_rollback(name: str) -> Holders | None:
    """Finishes a rollback that a process which is gone had begun, and returns the new holders; None where there was none.

    Whoever has not read that a rollback was done runs it again, which must not take it back.

    Raises:
        MissingRunError, PromotionError: as for ``settle``.
    """
    _, finished = _settled(name)
    return holders(name) if finished is not None and VersionTag.RESTORED in finished.tags else None


def _settled(name: str) -> tuple[int, Change | None]:
    """Settles as ``settle``, and returns beside the number the last change that was finished in place of another process."""
    client, former_token, since, finished = MlflowClient(), "", 0.0, None
    while True:
        n_changes = _count(name)
        begun = _find(client, _record(name, n_changes + 1))
        if begun is None:
            _remove_of_ended(client, name, n_changes)
            return n_changes, finished
        if not _is_record_of(name, begun):
            log.warning("%s: %s is somebody's registered model and stays; the next number is taken", name, begun.name)
            client.set_registered_model_tag(name, _COUNT, str(n_changes + 1))
        elif (token := begun.tags.get("token", "none")) != former_token:
            former_token, since = token, time.monotonic()
        elif time.monotonic() - since > (min(_OF_GONE, PATIENCE) if _is_gone(begun) else PATIENCE):
            confirmed = registered_model(name).tags.get(_CONFIRMED) == f"{n_changes + 1} {former_token}"
            verb = "finishing" if confirmed else "passing over"
            log.warning("%s: %s change %d of champion, begun by %s", name, verb, n_changes + 1, begun.tags.get("by", "nobody"))
            finished = _read(begun) if confirmed else None
            _finish(client, name, n_changes + 1, former_token, finished)
        else:
            time.sleep(0.1)


def change(name: str, expected: Holders, new: Change) -> None:
    """Makes a change, if the aliases are still ``expected``: those that the change was decided on.

    Raises:
        PromotionError: the aliases were changed meanwhile, or MLflow was so slow that others may have finished this change.
    """
    client = MlflowClient()
    while True:
        number = settle(name) + 1
        present = holders(name)
        if present != expected:
            raise PromotionError(
                f"{name}: {_in_words(present)}, but {_in_words(expected)} when this began; somebody else changed it meanwhile, "
                f"and this changed nothing; look at `{command('status')}` and run it again"
            )
        began, token = time.monotonic(), uuid.uuid4().hex
        if _begin(client, name, number, token, new):
            break
    if time.monotonic() - began > PATIENCE / 2:  # others might finish it, and go on to the next, before this gets to write
        raise PromotionError(f"{name}: MLflow took too long; this change is finished by the next promote or rollback")
    _finish(client, name, number, token, new)


def rollback(name: str, by: str) -> Holders:
    """Swaps both aliases, and returns the new holders.

    The version that becomes champion is tagged with the time, the version that it replaces, and ``by``: who rolls back.

    Raises:
        MissingRunError: there is no previous champion to go back to. PromotionError: as for ``change``.
    """
    settle(name)
    present, version = holders(name), restorable(name)
    record = f"{now()}, in place of version {present.champion or 'none'}, by {by}"
    after = Holders(version, present.champion)
    change(name, present, Change(version, present.champion, by, {VersionTag.RESTORED: record}, says=restored(name, after)))
    return after


def restored(name: str, after: Holders) -> str:
    """Says what a rollback has done."""
    return f"{name}: version {after.champion} is champion again, version {after.previous} previous-champion"


def restorable(name: str) -> str:
    """Returns the version that a rollback makes champion again.

    Raises:
        MissingRunError: there is no previous champion to go back to.
    """
    present = holders(name)
    if present.previous is None or present.previous == present.champion:
        raise MissingRunError(f"{name}: {_in_words(present)}, and there is no other version to go back to; promote one first")
    return present.previous


def now() -> str:
    """Returns the time in UTC, such as ``2026-01-31T12:00:00+00:00``."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _begin(client: MlflowClient, name: str, number: int, token: str, new: Change) -> bool:
    """Begins change ``number``, and says whether this process may make it: nobody else has begun or ended it."""
    tags = {_RECORD_OF: name, "token": token, "by": new.by, _PROCESS: this_process()}
    tags |= {"champion": new.champion, "previous": new.previous or ""}
    tags |= {f"{_VERSION_TAG}{key}": value for key, value in new.tags.items()}
    try:
        client.create_registered_model(_record(name, number), tags=tags, description=new.description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        existing = _find(client, _record(name, number))
        if existing is None or existing.tags.get("token") != token:  # else it was created, but the answer got lost
            return False
    if _count(name) >= number:  # ended between this process' look and its creation
        _remove(client, name, number, token)
        return False
    try:
        client.set_registered_model_tag(name, _CONFIRMED, f"{number} {token}")
    except MlflowException:
        _remove(client, name, number, token)
        raise
    return True


def _finish(client: MlflowClient, name: str, number: int, token: str, new: Change | None) -> None:
    """Writes all of a change, or nothing of one that was not confirmed, and ends it; may be done again and by several."""
    if new is not None:
        _write(client, name, number, new)
    client.set_registered_model_tag(name, _COUNT, str(number))
    _remove(client, name, number, token)


def _remove(client: MlflowClient, name: str, number: int, token: str) -> None:
    """Deletes the record of a change, and never anything else; a record that stays after its change has no effect."""
    record = _find(client, _record(name, number))
    if record is None or not _is_record_of(name, record) or record.tags.get("token", "none") != token:
        return
    if record.latest_versions:
        log.warning("%s: %s has versions that somebody put there, so it stays; it has no effect", name, record.name)
        return
    try:
        client.delete_registered_model(record.name)
    except MlflowException as error:  # deleted by who finished it too; or another user's, and then it stays without effect
        if not _is_missing(error) and error.error_code != "PERMISSION_DENIED":
            raise


def _remove_of_ended(client: MlflowClient, name: str, number: int) -> None:
    """Deletes the record of a change that has ended, which a process leaves that is killed just before it would delete it."""
    record = _find(client, _record(name, number))
    if record is not None and _is_record_of(name, record):
        _remove(client, name, number, record.tags.get("token", "none"))


def _write(client: MlflowClient, name: str, number: int, new: Change) -> None:
    writes: list[Callable[[], Any]] = [
        partial(client.set_model_version_tag, name, new.champion, key, value) for key, value in new.tags.items()
    ]
    if new.description:
        writes.append(partial(client.update_model_version, name, new.champion, new.description))
    if new.previous:
        writes.append(partial(client.set_registered_model_alias, name, PREVIOUS_CHAMPION, new.previous))
    writes.append(partial(client.set_registered_model_alias, name, CHAMPION, new.champion))
    for write in writes:
        try:
            write()
        except MlflowException as error:
            if not _is_missing(error):
                raise
            log.warning("%s: change %d of champion: %s", name, number, error)  # somebody has deleted that version
    if new.says:
        log.info("%s", new.says)


def _record(name: str, number: int) -> str:
    return f"{name}{_RECORD}{number}"


def _is_record_of(name: str, model: RegisteredModel) -> bool:
    return bool(model.tags.get(_RECORD_OF) == name)


def _is_gone(record: RegisteredModel) -> bool:
    return is_there(record.tags.get(_PROCESS, "")) is False


def _read(record: RegisteredModel) -> Change:
    tags = {key.removeprefix(_VERSION_TAG): value for key, value in record.tags.items() if key.startswith(_VERSION_TAG)}
    texts = record.tags
    with as_recorded(f"registered model {record.name}", "one of its tags"):
        return Change(texts["champion"], texts["previous"] or None, texts["by"], tags, record.description or None)


def _count(name: str) -> int:
    text = registered_model(name).tags.get(_COUNT, "0")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise PromotionError(
            f"{name}: the tag {_COUNT} of this registered model is {text!r}, expected the number of changes of champion; "
            "give the tag another name if it is yours, or else delete it"
        )
    return int(text)


def _find(client: MlflowClient, name: str) -> RegisteredModel | None:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if _is_missing(error):
            return None
        raise


def _is_missing(error: MlflowException) -> bool:
    return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")


def _in_words(present: Holders) -> str:
    champion = "there is no champion" if present.champion is None else f"version {present.champion} is champion"
    return champion if present.previous is None else f"{champion}, version {present.previous} previous-champion"
