"""Turns whatever comes from MLflow and from below it into one error in one line, and looks at MLflow's stores before any work.

MLflow lets exceptions of its database, its server and its artifact store through as they are: those of SQLAlchemy, of requests,
of a missing driver and so on. Here is the one place that knows them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import mlflow
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request, verify_rest_response
from sqlalchemy.pool import NullPool

from lever_mlflow.exceptions import LeverError, StoreError
from lever_mlflow.files.atomic import whole_file
from lever_mlflow.files.locks import lock_of, one_at_a_time
from lever_mlflow.files.urls import without_secrets
from lever_mlflow.runs.remedies import STORE, remedy
from lever_mlflow.shortages import in_one_line, is_of_the_process

__all__ = ["check_stores", "is_of_the_store", "reason_of", "store_errors"]

_PATIENCE = 10  # seconds for which a server is waited for before any work; MLflow itself waits for minutes
_BUSY = 60  # seconds for its first answer: one that has been reached may have much to do for others
_LONGEST = 400  # characters of a reason; a server that is none of MLflow's may answer a whole page
_SEARCH = "/api/2.0/mlflow/experiments/search"
_OURS, _BELOW = "lever_mlflow", ("mlflow", "sqlalchemy")
_SAID_OF_A_LOST_FILE = ("readonly database", "disk I/O error", "no such table")  # by SQLite
_BEFORE, _BEHIND = "(raised", ("[SQL", "[param", "(Background")  # beginnings of the lines that SQLAlchemy adds to a reason


@contextmanager
def store_errors() -> Iterator[None]:
    """Turns what comes from MLflow or from below it inside the block into one error, and so what the machine lacks.

    Raises:
        StoreError: MLflow refused something, or its database, server or artifact store failed; the message names it and says
            what to do.
        LeverError: memory or threads did not suffice, or a file elsewhere cannot be read or written. Other exceptions are left
            alone.
    """
    try:
        yield
    except LeverError:
        raise
    except Exception as error:
        if is_of_the_store(error) and not is_of_the_process(error):
            raise StoreError(f"MLflow at {_place()}: {reason_of(error)}") from error
        message = in_one_line(error)
        if message is None:
            raise
        raise LeverError(message) from error


def is_of_the_store(error: BaseException | None) -> bool:
    """Says whether an exception comes from MLflow or from below it: between its place and our code, MLflow was called."""
    return isinstance(error, MlflowException) or (isinstance(error, Exception) and _passed_mlflow(error.__traceback__))


def reason_of(error: BaseException) -> str:
    """Returns the reason that an exception of MLflow's gives, without secrets, in one line with what to do about it."""
    parts = [error, error.__cause__ or error.__context__]
    whole = " ".join(f"{type(part).__name__}: {part}" for part in parts if part is not None)
    action = _lost_database(whole) or remedy(whole)
    return f"{_shown(error).removesuffix('.')}; {action}" if action else _shown(error)


def _lost_database(reason: str) -> str:
    """Says what to do where the file of a SQLite database that was in use is gone; empty where the reason is another one."""
    if not any(words in reason for words in _SAID_OF_A_LOST_FILE):
        return ""
    for uri in (mlflow.get_tracking_uri(), mlflow.get_registry_uri()):
        file = sqlalchemy.make_url(uri).database if uri.startswith("sqlite:///") else None
        if not file or file == ":memory:" or file.startswith("file:"):  # URIs of SQLite may name no file
            continue
        if not Path(file).exists():
            return f"the file {file} was deleted or moved: put it back, or restore a backup, and run the command again"
    return ""


def check_stores(*, writing: bool = True) -> None:
    """Looks whether MLflow's stores can be used, before any work and without MLflow's minutes of patience; once for each store.

    Args:
        writing: whether they will be written to.

    Raises:
        StoreError: a store cannot be reached or is no store of MLflow's; or it is a folder of files.
    """
    with store_errors():
        for uri in dict.fromkeys((mlflow.get_tracking_uri(), mlflow.get_registry_uri())):
            _look_at(uri, writing)


@cache
def _look_at(uri: str, writing: bool) -> None:
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        _ask_server(uri)
    elif scheme.partition("+")[0] in DATABASE_ENGINES:
        _ask_database(uri, writing)
    elif scheme == "file" or (not scheme and not uri.startswith(("databricks", "uc"))):
        raise StoreError(
            f"MLflow at {without_secrets(uri)}: a store in a folder of files, which MLflow no longer maintains and which lacks "
            f"what the comparison and the registry need; give {STORE}=sqlite:///mlflow.db, and take the runs over with "
            "`mlflow migrate-filestore`"
        )


def _ask_server(uri: str) -> None:
    credentials = get_default_host_creds(uri)
    options: dict[str, Any] = {"max_retries": 0, "timeout": (_PATIENCE, _BUSY), "raise_on_status": False}
    answer = verify_rest_response(http_request(credentials, _SEARCH, "POST", json={"max_results": 1}, **options), _SEARCH)
    content = answer.json()
    if not isinstance(content, dict) or content.keys() - {"experiments", "next_page_token"}:
        raise MlflowException(f"the answer is not MLflow's: {answer.text}")


def _ask_database(uri: str, writing: bool) -> None:
    """Connects once; MLflow itself would try for minutes, and would put its tables among those of another program."""
    kind = urlsplit(uri).scheme.partition("+")[0]
    patience = {"sqlite": {"timeout": _PATIENCE}}.get(kind, {"connect_timeout": _PATIENCE} if kind != "mssql" else {})
    with sqlalchemy.create_engine(uri, poolclass=NullPool, connect_args=patience).connect() as connection:
        tables = set(sqlalchemy.inspect(connection).get_table_names())
        if writing and kind == "sqlite":
            connection.commit()
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # takes the right to write, and so needs it
            connection.rollback()
    if not tables and writing:
        with one_at_a_time(lock_of(uri), "another process makes the tables of the store just now; waiting for its end"):
            _make_tables(uri)
    if "alembic_version" not in tables and tables & {"experiments", "runs", "metrics", "params", "tags"}:
        raise MlflowException(f"the database holds tables of something else: {', '.join(sorted(tables)[:5])}")


def _make_tables(uri: str) -> None:
    """Makes MLflow's tables in a database that has none, unless another process was faster.

    MLflow takes a second and more than a thousand statements for it. SQLite keeps those before a kill, and no command can go on
    from there, so a SQLite file is made beside its place.
    """
    if not uri.startswith("sqlite:"):
        MlflowClient(uri, uri).search_experiments(max_results=1)
        return
    path = Path(sqlalchemy.make_url(uri).database or "")
    if path.is_file() and not path.stat().st_size:
        with whole_file(path, "wb") as file:
            MlflowClient(f"sqlite:///{file.name}", f"sqlite:///{file.name}").search_experiments(max_results=1)


def _passed_mlflow(traceback: TracebackType | None) -> bool:
    """Says whether a traceback leads through MLflow after it has left this package for the last time."""
    packages = []
    while traceback is not None:
        packages.append(str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        traceback = traceback.tb_next
    ours = max((place for place, package in enumerate(packages) if package == _OURS), default=-1)
    return any(package in _BELOW for package in packages[ours + 1 :])


def _place() -> str:
    """Returns the address of the store, and that of the registry where it is another one."""
    tracking, registry = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    return without_secrets(tracking if registry == tracking else f"{tracking}, registry {registry}")


def _shown(error: BaseException) -> str:
    """Returns what an exception says, in one line without what SQLAlchemy adds, cut where it is long."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith(_BEFORE)]
    text = " ".join(takewhile(lambda line: not line.startswith(_BEHIND), lines))
    text = without_secrets(" ".join(text.split()) or type(error).__name__)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
