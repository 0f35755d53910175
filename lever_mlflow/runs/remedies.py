"""Says what to do about the reasons for which MLflow's database, server or artifact store fails."""

from __future__ import annotations

import re

__all__ = ["STORE", "remedy"]

STORE = "MLFLOW_TRACKING_URI"  # the variable that names the store
_DRIVERS = {  # what provides a module that SQLAlchemy or an artifact store imports, where its name is another one
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "botocore": "boto3",
    "google": "google-cloud-storage",
    "azure": "azure-storage-blob",
}
# what to do about a reason in which these words are; the first row that fits is taken
_DATABASE = (
    ("No module named '(?P<module>[^'.]+)", "a driver is missing: install it with `pip install {driver}`"),
    ("out-of-date database schema", "use the MLflow that made it, or after a backup upgrade an older schema with that command"),
    ("file is not a database", "that file is no SQLite database; name another one, such as {store}=sqlite:///mlflow.db"),
    ("malformed|corrupt", "the database is damaged; restore a backup of it, or name another one in {store}"),
    (
        "table .* already exists|Online migration expected",
        "a process was killed while it made the tables; delete the database if it is new, or else restore a backup of it",
    ),
    ("is locked|Lock wait timeout", "another process holds the database; wait for its end, or use a tracking server"),
    ("readonly|read-only|Read-only", "allow writing there, or name another store in {store}"),
    ("unable to open database file", "its folder must exist, and you must be allowed to write there"),
    ("No space left|database or disk is full", "free some space"),
    (
        "no such (table|column)|tables of something else",
        "another program made it, or replaced it while it was in use; restore it, or name another database in {store}",
    ),
    ("password authentication failed|Access denied for user|no password supplied", "correct user and password in {store}"),
    ("database .* does not exist|Unknown database", "create the database, or correct its name in {store}"),
)
_SERVER = (
    ("error code 401|[Uu]nauthorized", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"),
    ("error code 403|[Pp]ermission|PERMISSION_DENIED|Forbidden", "ask for the permission, or name another store in {store}"),
    ("valid JSON|not MLflow|error code 40[45]", "something else answers there; correct address and port in {store}"),
    ("CERTIFICATE|WRONG_VERSION_NUMBER|SSL", "correct http or https in {store}, or set MLFLOW_TRACKING_SERVER_CERT_PATH"),
    ("Failed to resolve|translate host name|Name or service not known", "correct the host's name in {store}"),
    ("refused|[Tt]imed? ?out|unreachable|Connection aborted|Can't connect", "start it, or correct the address in {store}"),
    (r"too many \d+ error|error code 5\d\d", "look into the server's log, and run the command again"),
)
_SETTINGS = (
    (
        "unsupported URI|parse|load plugin|Invalid SQLite",
        "give {store} as sqlite:///FILE, postgresql://, mysql:// or http(s)://",
    ),
    ("[Cc]redentials", "set the credentials of the artifact store in the environment"),
    ("deleted (experiment|state)|must be in the 'active'", "restore it with `mlflow experiments restore`, or name another one"),
    ("No Experiment with id|valid experiment_id", "unset MLFLOW_EXPERIMENT_ID and MLFLOW_EXPERIMENT_NAME"),
    ("does not match the experiment", "unset MLFLOW_EXPERIMENT_ID or MLFLOW_EXPERIMENT_NAME"),
)


def remedy(reason: str) -> str:
    """Returns what to do about a reason, as MLflow or what is below it gives it; empty where nothing is known."""
    for words, action in (*_DATABASE, *_SERVER, *_SETTINGS):
        if match := re.search(words, reason):
            module = match.groupdict().get("module", "")
            return action.format(store=STORE, driver=_DRIVERS.get(module, module))
    return ""
