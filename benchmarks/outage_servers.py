"""Takes servers away from running experiments: MLflow's tracking server, and the server of a VLM."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from benchmarks.outage_cases import Cases, Row
from benchmarks.outage_world import World
from tests.helpers.servers import Server
from tests.helpers.vlm_servers import Script, cards, completion

OUTAGE = 60.0  # seconds
_RESTART = 5.0  # seconds that the server of a VLM takes to be there again
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}  # MLflow itself waits for a server for about four minutes


def tracking_server(cases: Cases) -> Iterator[Row]:
    """Kills the tracking server for a minute, and for good."""
    for stage in cases.stages:
        with served(cases, f"server-{stage}") as (server, world):
            back = (OUTAGE, server.start)
            yield cases.disturbed(
                f"tracking server away for {OUTAGE:.0f} s", stage, world, partial(kill, server), goes_on=True, after=back
            )
    for stage in cases.stages:
        with served(cases, f"server-gone-{stage}") as (server, world):
            yield cases.disturbed(
                "tracking server away for good",
                stage,
                world,
                partial(kill, server),
                server.start,
                goes_on=False,
                environment=_IMPATIENT,
            )


@contextmanager
def served(cases: Cases, name: str) -> Iterator[tuple[Server, World]]:
    """Starts a tracking server with a SQLite database for the block, and makes a world that uses it."""
    folder = cases.folder / f"{name}-server"
    folder.mkdir()
    server = Server(folder)
    server.start()
    try:
        yield server, cases.world(name, uri=server.uri)
    finally:
        server.kill()


def kill(server: Server) -> None:
    """Kills a server and its workers from another process than the one that started it."""
    assert server.process is not None, "only a server that was started is killed"
    os.killpg(server.process.pid, signal.SIGKILL)


class VLMServer:
    """Answers in a thread of this process, each prompt always in the same way; it can be restarted on its port."""

    def __init__(self) -> None:
        self.script = Script(self._answer, cards("scripted"))
        self.port, self.url = self.script.server_port, self.script.url
        self._serve()

    def restart(self) -> None:
        """Goes away for some seconds, and comes back."""
        self.stop()
        time.sleep(_RESTART)
        self.script = Script(self._answer, cards("scripted"), port=self.port)
        self._serve()

    def stop(self) -> None:
        """Ends the server."""
        self.script.shutdown()
        self.script.server_close()

    def _serve(self) -> None:
        threading.Thread(target=self.script.serve_forever, daemon=True).start()

    @staticmethod
    def _answer(body: Any, number: int) -> Any:
        text = str(body["messages"])
        return completion(("one", "two", "zero", "round")[hashlib.sha256(text.encode()).digest()[0] % 4])


def vlm_server(cases: Cases) -> Iterator[Row]:
    """Restarts the server of the VLM while it is asked."""
    server = VLMServer()
    options = {"vlm": server.url}
    try:
        calm = cases.world("vlm-calm", answers=False, options=options)
        ended = calm.main(before=server.script.socket.close)
        assert ended.code == 0, ended.errors
        compared = cases.compared_with(calm.results().values)
        for stage in {"rollout", "baselines", "evaluate"} & set(cases.stages):
            world = cases.world(f"vlm-{stage}", answers=False, options=options)
            leave = server.script.socket.close  # the fork holds the port open otherwise
            yield compared.disturbed(
                f"VLM server away for {_RESTART:.0f} s",
                stage,
                world,
                lambda: None,
                goes_on=True,
                before=leave,
                after=(0.0, server.restart),
            )
    finally:
        server.stop()


def second_server(cases: Cases) -> Iterator[Row]:
    """Runs another tracking server on the same database, and has it read and write meanwhile."""
    with served(cases, "two-servers") as (server, world):
        other = Server(Path(server.folder), store=server.store)
        other.start()
        try:
            fork = get_context("fork")  # no thread, as commands are forks of this process
            end = fork.Event()
            writer = fork.Process(target=write_until, args=(other.uri, end), daemon=True)
            writer.start()
            yield cases.disturbed("two tracking servers on one database", "rce", world, lambda: None, end.set, goes_on=True)
            writer.join()
        finally:
            other.kill()


def write_until(uri: str, end: Event) -> None:
    """Logs in an experiment of its own until it is told to end."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run = client.create_run(client.create_experiment("another"))
    while not end.wait(0.02):
        client.log_metric(run.info.run_id, "value", 1.0)
    client.set_terminated(run.info.run_id)
