"""A training whose cache folder is on a small disk that fills up."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from helpers.projects import run_step

from lever_mlflow.exceptions import LeverError
from lever_mlflow.pipeline.rollout import read_rl_data
from lever_mlflow.pipeline.training import rce_step
from lever_mlflow.selector.checkpoint import load_selector
from lever_mlflow.settings import RceSettings
from lever_mlflow.training.state import load_state

pytestmark = pytest.mark.slow


@pytest.fixture
def cache_dir(tmp_path):
    """A cache of this test alone, as a disk is mounted in it."""
    return tmp_path / "cache"


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted, which takes root")
def test_a_full_disk_is_said_and_leaves_earlier_epochs_whole(local, good_rl_data, tmp_path):
    line = local()
    data = read_rl_data(line, good_rl_data)
    unsent = line.resources.cache_dir / "unsent"
    unsent.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", unsent], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(LeverError, match=r"No space left on device.*; the epochs until then are safe in (\S+):") as error:
            run_step(lambda: rce_step(line, data, RceSettings(epochs=9, batch_size=16)))
        folder = Path(re.search(r"safe in (\S+):", str(error.value)).group(1))
        state, _ = load_state(max(folder.glob("state-*")))
        for epoch in range(1, len(state.history) + 1):
            load_selector(folder / f"checkpoint-{epoch:04d}")
        assert state.history
    finally:
        subprocess.run(["umount", "--lazy", unsent], check=True)
