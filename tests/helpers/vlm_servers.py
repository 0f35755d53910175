"""Servers of VLMs on loopback: transformers' own on the embedded model, and small ones that follow a script."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lever_mlflow import mini
from lever_mlflow.exceptions import ServerError
from lever_mlflow.vlm.prompt import Prompt
from lever_mlflow.vlm.server import ServerVLM

from .servers import free_port

NAME = "lever/mini-vlm"


class TransformersServe:
    """``transformers serve`` on the embedded model, which it finds in a hub cache of its own."""

    def __init__(self, folder):
        snapshots = folder / "hub" / f"models--{NAME.replace('/', '--')}"
        shutil.copytree(mini.VLM_PATH, snapshots / "snapshots" / "1")
        (snapshots / "refs").mkdir()
        (snapshots / "refs" / "main").write_text("1")
        self.log, port = folder / "server.log", free_port()
        self.url = f"http://127.0.0.1:{port}/v1"
        command = [str(Path(sys.executable).parent / "transformers"), "serve", "--host", "127.0.0.1", "--port", str(port)]
        self.process = subprocess.Popen(
            [*command, "--device", "cpu", "--dtype", "float32"],
            env={**os.environ, "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_OFFLINE": "1"},
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    return
            except OSError:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.2)

    @property
    def n_answers(self):
        """How many prompts it has answered, by its own account."""
        return self.log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200')

    def stop(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def completion(text):
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


def cards(*names, **entries):
    return {"object": "list", "data": [{"id": name, "object": "model", "created": time.time(), **entries} for name in names]}


class Script(ThreadingHTTPServer):
    """Answers requests below ``base`` with ``models`` and with what ``chat(body, number of the request)`` returns.

    That is a JSON value or text; or a status and such a value; or both and headers. Other requests have status 404.
    """

    daemon_threads = True
    request_queue_size = 128  # connections that wait; the usual 5 are fewer than the requests that come at once

    def __init__(self, chat, models, base="/v1", port=0):
        self.chat, self.models, self.base, self.bodies, self.headers, self.paths = chat, models, base, [], [], []
        self.counting = threading.Lock()
        super().__init__(("127.0.0.1", port), ScriptHandler)
        self.root = f"http://127.0.0.1:{self.server_port}"
        self.url = self.root + base

    def handle_error(self, request, client_address):
        """A client that has gone away is part of the tests."""


class ScriptHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.paths.append(self.path)
        there = self.path.partition("?")[0] == f"{self.server.base}/models" and self.server.models is not None
        self.reply(self.server.models if there else (404, {"detail": "Not Found"}))

    def do_POST(self):
        self.server.paths.append(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.counting:  # requests come in several threads, and each number is that of one request
            self.server.bodies.append(body)
            number = len(self.server.bodies)
        self.server.headers.append(self.headers)
        there = self.path.partition("?")[0] == f"{self.server.base}/chat/completions"
        self.reply(self.server.chat(body, number) if there else (404, {"detail": "Not Found"}))

    def reply(self, what):
        status, content, headers = (*what, {})[:3] if isinstance(what, tuple) else (200, what, {})
        kind = "text/html" if isinstance(content, str) else "application/json"
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def texts(batches):
    """Answers in the order of the prompts, each of which has exactly one."""
    answers = [item for batch in batches for item in batch]
    assert sorted(position for position, _ in answers) == list(range(len(answers)))
    return [text for _, text in sorted(answers)]


def ask(server, *samples, **choices):
    """Answers to a zero-shot prompt for each sample."""
    return texts(ServerVLM(server.url, **choices).generate([Prompt((), sample) for sample in samples]))


def failure(server, *samples, **choices):
    with pytest.raises(ServerError) as caught:
        ask(server, *samples, **choices)
    message = str(caught.value)
    assert message.startswith(f"{server.url}: ")
    assert "\n" not in message
    return message.removeprefix(f"{server.url}: ")
