"""Screenshots of the MLflow UI and of the report, taken with headless Chromium.

    make demo ARGS="-P kl_betas=0.05,0.12,0.15,0.5" && .venv/bin/python docs/figures/ui_screenshots.py

writes beside this file: ``report.png`` (the first screen of the newest report), ``ui_run.png`` (the run of a whole experiment),
``ui_compare.png`` (accuracies of its evaluations), ``ui_curves.png`` (KL of its trainings), ``ui_version.png`` (a registered
version) and ``answers.png`` (the page of answers). It needs ``chromium`` (Debian: ``apt-get install chromium``) and reads the
demo's store, or another one: ``ui_screenshots.py sqlite:////path/mlflow.db experiment``.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import mlflow
from PIL import Image

FOLDER = Path(__file__).parent
SIZE = (1890, 1000)
CONTENT = (200, 0, 1400, 800)  # without the menu on the left and the assistant on the right
MODEL_TRAINING = "workflowType=machine_learning"
KL_BY_STEP = "metric=%22val%2Fkl_exact%22&plot_metric_keys=[%22val%2Fkl_exact%22]&x_axis=step"


def main(store: str = "sqlite:///mlflow.db", experiment: str = "demo") -> None:
    """Takes all screenshots of the newest whole experiment."""
    mlflow.set_tracking_uri(store)
    client = mlflow.MlflowClient()
    number = client.get_experiment_by_name(experiment).experiment_id
    top = newest(client, number, "main")[0]
    runs = {step: newest_of_each_beta(client, number, step) for step in ("evaluate", "grpo")}
    pages = {"report.png": (top.info.run_id, "report.html"), "answers.png": (runs["evaluate"][0].info.run_id, "answers.html")}
    for file, (run_id, path) in pages.items():
        page = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path)
        save(file, Path(page).resolve().as_uri(), size=(1400, 900), part=(0, 0, 1400, 900))
    model, version = runs["evaluate"][0].data.tags["lever.registered"].split(" version ")
    addresses = {
        "ui_run.png": f"experiments/{number}/runs/{top.info.run_id}?{MODEL_TRAINING}",
        "ui_compare.png": f"compare-runs?{listed(runs['evaluate'], number)}&{MODEL_TRAINING}",
        "ui_curves.png": f"metric?{listed(runs['grpo'], number)}&{KL_BY_STEP}&{MODEL_TRAINING}",
        "ui_version.png": f"models/{model}/versions/{version}?{MODEL_TRAINING}",
    }
    with served(store) as server:
        for file, address in addresses.items():
            save(file, f"{server}/#/{address}")


def newest(client: mlflow.MlflowClient, number: str, step: str) -> list[mlflow.entities.Run]:
    """Returns the finished runs of a step, newest first."""
    return list(client.search_runs([number], f"tags.`lever.step` = '{step}' and attributes.status = 'FINISHED'"))


def newest_of_each_beta(client: mlflow.MlflowClient, number: str, step: str) -> list[mlflow.entities.Run]:
    """Returns the newest finished run of a step for each beta, in the order of the betas."""
    runs = {run.data.params["kl_beta"]: run for run in reversed(newest(client, number, step))}
    return [runs[kl_beta] for kl_beta in sorted(runs, key=float)]


def listed(runs: list[mlflow.entities.Run], number: str) -> str:
    """Returns runs and their experiment as the UI takes them."""
    return f"runs={quote(json.dumps([run.info.run_id for run in runs]))}&experiments={quote(json.dumps([number]))}"


@contextmanager
def served(store: str) -> Iterator[str]:
    """Serves a store with the MLflow UI, and yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    port = address.rpartition(":")[2]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", port, "--workers", "1"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(f"{address}/health")
        yield address
    finally:
        server.terminate()
        server.wait()


def wait(address: str, seconds: float = 60.0) -> None:
    """Waits until the server answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=1):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def save(file: str, address: str, size: tuple[int, int] = SIZE, part: tuple[int, int, int, int] = CONTENT) -> None:
    """Writes a part of a page's screenshot beside this file."""
    image = Image.open(io.BytesIO(screenshot(address, size))).crop(part).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(FOLDER / file, optimize=True)
    print(FOLDER / file)


def screenshot(address: str, size: tuple[int, int]) -> bytes:
    """Returns a PNG of a page, after its scripts had a minute of virtual time."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("error: chromium is not installed; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        options += [f"--user-data-dir={folder}/profile", f"--window-size={size[0]},{size[1]}", "--virtual-time-budget=60000"]
        subprocess.run([browser, *options, f"--screenshot={file}", address], capture_output=True, check=True, timeout=180)
        return file.read_bytes()


if __name__ == "__main__":
    main(*sys.argv[1:])
