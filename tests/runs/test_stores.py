"""Stores that cannot be used: each ends in one line that names the store and says what to do, and shows no password."""

import contextlib
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pytest
from mlflow import MlflowClient

from lever_mlflow.exceptions import StoreError
from lever_mlflow.runs import stores
from lever_mlflow.runs.optional_runs import placeholder_run
from lever_mlflow.runs.remedies import remedy
from lever_mlflow.runs.steps import project_run

URI = "MLFLOW_TRACKING_URI"


@pytest.fixture
def refusal(mlflow_store, monkeypatch):
    """refusal(uri) is the line with which a run ends whose store is there."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def line(uri):
        mlflow.set_tracking_uri(uri)
        with pytest.raises(StoreError) as error, project_run("test"):
            pass
        assert "\n" not in str(error.value)
        assert "hunter2" not in str(error.value)
        return str(error.value)

    yield line
    mlflow.set_tracking_uri(mlflow_store)


def text_file(path, good):
    path.write_text("this is no database, but a text that somebody wrote")


def damaged(path, good):
    content = good.read_bytes()
    path.write_bytes(content[:20_000] + bytes(4_000) + content[30_000:40_000])


def newer(path, good):
    path.write_bytes(good.read_bytes())
    with sqlite3.connect(path) as connection:
        connection.execute("update alembic_version set version_num = 'ffffffffffff'")


def of_another_program(path, good):
    with sqlite3.connect(path) as connection:
        connection.execute("create table runs (pace int)")


def folder(path, good):
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "reason", "action"),
    [
        (text_file, "file is not a database", f"name another one, such as {URI}=sqlite:///mlflow.db"),
        (damaged, "database disk image is malformed", "restore a backup of it"),
        (newer, "found version ffffffffffff, but expected", "use the MLflow that made it, or after a backup upgrade"),
        (of_another_program, "tables of something else: runs", f"name another database in {URI}"),
        (folder, "unable to open database file", "its folder must exist"),
    ],
)
def test_files_that_are_no_usable_database(refusal, tmp_path, make, reason, action):
    make(tmp_path / "x.db", tmp_path / "mlflow.db")
    line = refusal(f"sqlite:///{tmp_path / 'x.db'}")
    assert line.startswith(f"MLflow at sqlite:///{tmp_path / 'x.db'}: ")
    assert reason in line
    assert action in line


def test_a_foreign_database_gets_no_tables(refusal, tmp_path):
    of_another_program(tmp_path / "x.db", None)
    refusal(f"sqlite:///{tmp_path / 'x.db'}")
    with sqlite3.connect(tmp_path / "x.db") as connection:
        assert connection.execute("select name from sqlite_master").fetchall() == [("runs",)]


def test_a_read_only_database_is_for_reading(refusal, mlflow_store):
    uri = mlflow_store.replace("sqlite:///", "sqlite:///file:") + "?mode=ro&uri=true"
    assert "attempt to write a readonly database; allow writing there" in refusal(uri)
    mlflow.set_tracking_uri(uri)
    with placeholder_run("status"):
        assert MlflowClient().get_experiment_by_name("test") is not None


@pytest.mark.parametrize(("busy", "answers"), [(10, True), (0.1, False)])
def test_a_server_that_has_been_reached_may_take_its_time_but_not_for_ever(refusal, monkeypatch, busy, answers):
    class Slow(BaseHTTPRequestHandler):
        def do_POST(self):
            time.sleep(0.5)
            with contextlib.suppress(OSError):  # nobody may be left to hear it
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'{"experiments": []}')

    monkeypatch.setattr(stores, "_PATIENCE", 0.2)
    monkeypatch.setattr(stores, "_BUSY", busy)
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        if answers:
            mlflow.set_tracking_uri(uri)
            stores.check_stores()
        else:
            assert "timed out" in refusal(uri)
        server.shutdown()


def test_a_locked_database(refusal, monkeypatch, tmp_path, mlflow_store):
    monkeypatch.setattr(stores, "_PATIENCE", 0.1)
    with sqlite3.connect(tmp_path / "mlflow.db") as holder:
        holder.execute("begin exclusive")
        stores._look_at.cache_clear()
        assert "database is locked; another process holds the database" in refusal(mlflow_store)


@pytest.mark.parametrize(
    ("uri", "reason", "action"),
    [
        ("mysql+pymysql://me:hunter2@h/db", "mysql+pymysql://***@h/db: No module named 'pymysql'", "`pip install pymysql`"),
        ("mysql://me:hunter2@h/db", "No module named 'MySQLdb'", "`pip install mysqlclient`"),
        ("oracle://me:hunter2@h/db", "unsupported URI 'oracle://***@h/db'", f"give {URI} as sqlite:///FILE"),
        ("sqlite://relative.db", "Invalid SQLite URL", f"give {URI} as sqlite:///FILE"),
        ("http://me:hunter2@127.0.0.1:1", "Connection refused", f"start it, or correct the address in {URI}"),
        ("postgresql+psycopg2://me:hunter2@127.0.0.1:1/db", "Connection refused", "start it"),
        ("file:///tmp/mlruns", "a store in a folder of files", "`mlflow migrate-filestore`"),
        ("mlruns", "a store in a folder of files", f"give {URI}=sqlite:///mlflow.db"),
    ],
)
def test_addresses_that_lead_nowhere(refusal, uri, reason, action):
    line = refusal(uri)
    assert reason in line
    assert action in line


def test_a_store_of_files_is_refused_even_where_mlflow_allows_it(refusal, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert "a store in a folder of files" in refusal(str(tmp_path / "mlruns"))


@pytest.fixture
def answering():
    """answering(status, body) is the URI of a server that always answers so, and the list of what it was asked."""
    servers = []

    def start(status, body):
        paths = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                paths.append(self.path)
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST

            def log_message(self, *arguments):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://me:hunter2@127.0.0.1:{servers[-1].server_port}", paths

    yield start
    for server in servers:
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "action"),
    [
        (200, b"<html>Welcome to nginx</html>", f"correct address and port in {URI}"),
        (200, b'{"hello": 1}', f"correct address and port in {URI}"),
        (200, b"[1]", f"correct address and port in {URI}"),
        (404, b"<html>nothing here</html>", f"correct address and port in {URI}"),
        (401, b"who are you?", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"),
        (403, b"no", "ask for the permission"),
        (500, b"oh", "look into the server's log"),
    ],
)
def test_servers_that_are_none_of_mlflow_or_let_nobody_in(refusal, answering, status, body, action):
    uri, paths = answering(status, body)
    line = refusal(uri)
    assert line.startswith(f"MLflow at http://***@127.0.0.1:{uri.rpartition(':')[2]}: ")
    assert action in line
    assert paths == ["/api/2.0/mlflow/experiments/search"]  # once, and nothing was written


def test_the_registry_is_looked_at_too(refusal, mlflow_store):
    mlflow.set_registry_uri("http://me:hunter2@127.0.0.1:1")
    try:
        line = refusal(mlflow_store)
    finally:
        mlflow.set_registry_uri("")
    assert line.startswith(f"MLflow at {mlflow_store}, registry http://***@127.0.0.1:1: ")


def test_a_database_that_breaks_in_the_middle(mlflow_store, tmp_path):
    def broken_off():
        with project_run("test"), sqlite3.connect(tmp_path / "mlflow.db") as connection:
            connection.execute("drop table tags")
            connection.commit()
            mlflow.set_tag("a", "b")

    with pytest.raises(StoreError, match=r"MLflow at sqlite:///.*no such table: tags; another program made it"):
        broken_off()


def test_a_database_that_is_deleted_in_the_middle(mlflow_store, tmp_path):
    def lost():
        with project_run("test"):
            (tmp_path / "mlflow.db").unlink()
            mlflow.set_tag("a", "b")

    with pytest.raises(
        StoreError, match=rf"readonly database; the file {tmp_path}/mlflow.db was deleted or moved: put it back"
    ):
        lost()


def test_a_fault_of_our_own_stays_what_it_is(mlflow_store):
    with pytest.raises(ZeroDivisionError), project_run("test"):
        1 / 0  # noqa: B018


def test_an_artifact_store_whose_driver_is_missing(mlflow_store):
    mlflow.create_experiment("remote", artifact_location="s3://me:hunter2@bucket/x")
    mlflow.set_experiment("remote")
    with (
        pytest.raises(StoreError, match=r"No module named 'boto3'; a driver is missing: .* `pip install boto3`"),
        project_run("a"),
    ):
        mlflow.log_text("x", "x.txt")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ID": "999"}, "`999` does not exist in the tracking server.*; unset MLFLOW_EXPERIMENT_ID and MLFLOW_EXPERIMENT_NAME"),
        ({"ID": "abc"}, "`abc` does not exist in the tracking server.*; unset MLFLOW_EXPERIMENT_ID and MLFLOW_EXPERIMENT_NAME"),
        ({"ID": "0", "NAME": "test"}, "does not match the experiment id .*; unset MLFLOW_EXPERIMENT_ID or"),
        ({"NAME": "gone"}, "Current state is deleted; restore it with `mlflow experiments restore`, or name another one"),
    ],
)
def test_experiments_that_are_not_there(mlflow_store, monkeypatch, variables, message):
    client = MlflowClient()
    client.delete_experiment(client.create_experiment("gone"))
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_EXPERIMENT_{name}", value)
    with pytest.raises(StoreError, match=message), project_run("test"):
        pass


@pytest.mark.parametrize(
    ("reason", "action"),
    [
        ('FATAL: password authentication failed for user "x"', f"correct user and password in {URI}"),
        ('FATAL: database "x" does not exist', f"create the database, or correct its name in {URI}"),
        ("SSLError: CERTIFICATE_VERIFY_FAILED", f"correct http or https in {URI}, or set MLFLOW_TRACKING_SERVER_CERT_PATH"),
        ("NoCredentialsError: Unable to locate credentials", "set the credentials of the artifact store in the environment"),
        ("OSError: [Errno 28] No space left on device", "free some space"),
        ("something else", ""),
    ],
)
def test_remedies(reason, action):
    assert remedy(reason) == action
