"""Requests to a tracking server on loopback that breaks off in the middle of an answer."""

import socket
import threading

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from lever_mlflow.runs.outages import persistently

WHOLE, BROKEN_OFF = b"{}", b""


@pytest.fixture
def server():
    """server(*bodies) answers one request after the other with these bodies, and calls each two bytes long; returns its URI."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(bodies):
        for body in bodies:
            connection, _ = listener.accept()
            with connection:
                request = connection.recv(65536)
                length = int(request.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                while len(request.split(b"\r\n\r\n", 1)[1]) < length:
                    request += connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n" + body)

    def start(*bodies):
        threading.Thread(target=answer, args=[bodies], daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    listener.close()


@pytest.mark.parametrize(("bodies", "calls"), [([WHOLE], 1), ([BROKEN_OFF, WHOLE], 2)])
def test_an_answer_that_breaks_off_is_asked_for_again(server, bodies, calls):
    client = mlflow.MlflowClient(server(*bodies))
    called = []

    def log():
        called.append(1)
        client.set_tag("0" * 32, "name", "value")

    persistently(log)
    assert len(called) == calls


def test_one_that_breaks_off_twice_is_an_error(server):
    client = mlflow.MlflowClient(server(BROKEN_OFF, BROKEN_OFF))
    with pytest.raises(MlflowException, match="IncompleteRead"):
        persistently(lambda: client.set_tag("0" * 32, "name", "value"))


def test_other_failures_are_not_repeated():
    called = []

    def fail():
        called.append(1)
        raise MlflowException("no such run")

    with pytest.raises(MlflowException, match="no such run"):
        persistently(fail)
    assert len(called) == 1
