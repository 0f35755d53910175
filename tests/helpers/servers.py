"""Real servers on loopback, each in a temporary folder: MLflow's tracking server and PostgreSQL."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request


def free_port():
    """Returns a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """Runs ``mlflow server`` with its artifacts behind its proxy, in a folder; its store is sqlite there, or another one."""

    def __init__(self, folder, *options, store=None, workers=1, **environment):
        self.folder = folder
        self.options = ["--workers", str(workers), *options]
        self.environment = environment
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.store = store or f"sqlite:///{folder / 'mlflow.db'}"
        self.process = None

    def start(self):
        """Starts the server and returns once it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), *self.options]
        command += ["--backend-store-uri", self.store, "--artifacts-destination", str(self.folder / "artifacts")]
        log = (self.folder / "server.log").open("a")
        environment = {**os.environ, **self.environment}
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                failed = self.process.poll() is not None or time.monotonic() > deadline
                assert not failed, (self.folder / "server.log").read_text()
                time.sleep(0.2)

    def kill(self):
        """Kills the server and its workers at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Postgres:
    """Runs a PostgreSQL server in a folder of its own; root runs it as the user ``postgres``, as it refuses root."""

    def __init__(self, folder, programs):
        self.folder, self.programs, self.port = folder, programs, free_port()
        self.user = "postgres" if os.geteuid() == 0 else None
        self.uri = f"postgresql+psycopg2://mlflow@127.0.0.1:{self.port}/postgres"
        if self.user:
            shutil.chown(folder, self.user)

    def start(self):
        """Creates the database and starts the server."""
        self._run("initdb", "--pgdata", self.folder / "data", "--username", "mlflow", "--auth", "trust", "--no-sync")
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        self._run("pg_ctl", "start", "--wait", "--pgdata", self.folder / "data", "-o", options, "-l", self.folder / "log")

    def stop(self):
        """Stops the server at once."""
        self._run("pg_ctl", "stop", "--pgdata", self.folder / "data", "-m", "immediate")

    def _run(self, program, *arguments):
        command = [self.programs / program, *arguments]
        subprocess.run(command, user=self.user, cwd=self.folder, check=True, stdout=subprocess.DEVNULL, timeout=120)
