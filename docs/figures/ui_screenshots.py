"""Screenshots of the MLflow UI comparing two betas, taken with headless Chromium.

    make demo && .venv/bin/python docs/figures/ui_screenshots.py

writes ``ui_compare.png`` (accuracies of two evaluations as parallel coordinates) and ``ui_curves.png`` (KL of two trainings)
beside this file. It needs ``chromium`` (Debian: ``apt-get install chromium``) and reads the demo's store, or another one:
``ui_screenshots.py sqlite:////path/mlflow.db experiment``.
"""

import io
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import mlflow
from PIL import Image

FOLDER = Path(__file__).parent
SIZE = (1890, 1000)
CONTENT = (200, 0, 1400, 700)  # without the menu on the left and the assistant on the right
KL_BY_STEP = "metric=%22kl%22&plot_metric_keys=[%22kl%22]&x_axis=step"


def main(store: str = "sqlite:///mlflow.db", experiment: str = "demo") -> None:
    """Takes both screenshots of the newest two runs of each step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(f"http://127.0.0.1:{port}/health")
        client = mlflow.MlflowClient(store)
        number = client.get_experiment_by_name(experiment).experiment_id
        experiments = quote(json.dumps([number]))
        for step, file, page in (
            ("evaluate", "ui_compare.png", "compare-runs?runs={runs}&experiments={experiments}"),
            ("grpo", "ui_curves.png", f"metric?runs={{runs}}&experiments={{experiments}}&{KL_BY_STEP}"),
        ):
            found = client.search_runs([number], f"tags.`lever.step` = '{step}' and attributes.status = 'FINISHED'")[:2]
            runs = quote(json.dumps([run.info.run_id for run in found]))
            address = f"http://127.0.0.1:{port}/#/{page.format(runs=runs, experiments=experiments)}"
            Image.open(io.BytesIO(screenshot(address))).crop(CONTENT).save(FOLDER / file, optimize=True)
            print(FOLDER / file)
    finally:
        server.terminate()
        server.wait()


def wait(address: str, seconds: float = 60.0) -> None:
    """Until the server answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def screenshot(address: str) -> bytes:
    """A PNG of a page, after its scripts had a minute of virtual time."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("error: chromium is not installed; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        options += [f"--user-data-dir={folder}/profile", f"--window-size={SIZE[0]},{SIZE[1]}", "--virtual-time-budget=60000"]
        subprocess.run([browser, *options, f"--screenshot={file}", address], capture_output=True, check=True, timeout=180)
        return file.read_bytes()


if __name__ == "__main__":
    main(*sys.argv[1:])
