"""Fixtures of the tests of VLMs on servers."""

import threading

import numpy as np
import pytest
from helpers.vlm_servers import Script, cards, completion
from PIL import Image

from lever_mlflow.data.samples import Sample


@pytest.fixture
def script():
    """script(chat, models, base) is a running server."""
    servers = []

    def start(chat=lambda body, number: completion("yes"), models=cards("m"), base="/v1"):  # noqa: B008
        server = Script(chat, models, base)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def picture(tmp_path):
    """A sample with an image of 1,000 x 710 pixels of noise."""
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (710, 1000, 3), dtype=np.uint8)).save(path)
    return Sample(0, 1, 1, "what is it?", path, ("noise",) * 10)
