"""What a command prints: a line when a step starts and one when it ends, more when asked, and nothing of other packages."""

import os
import re
import subprocess
import sys

import pytest
from helpers.projects import ROOT

from lever_mlflow.trials.rl_data import Group, Trial, save_rl_data

SIZE = (
    "(format pools): {verdict}; 60 queries, 540 usable trials, 0 dropped trials; indices are positions in the questions file "
    "(not checked); {failed} of 67 expectations failed, 2 not checked"
)


@pytest.fixture
def perfect_rl_data(tmp_path):
    """60 queries, half of them with 4 of 9 trials right, of which every expectation passes."""
    groups = []
    for query in range(60):
        scores = [float(query % 2 and i < 4) for i in range(9)]
        methods = ("beam", "sample", "retrieval")
        trials = tuple(Trial((i, i + 1), score, score, methods[i % 3]) for i, score in enumerate(scores))
        groups.append(Group(query, tuple(range(400, 464)), trials))
    save_rl_data(tmp_path / "perfect.json", groups, {})
    return str(tmp_path / "perfect.json")


@pytest.fixture
def validate(tmp_path, make_store, cache_dir):
    """validate(file, *options) is the process of the command on a fresh store."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": make_store(tmp_path), "LEVER_MLFLOW_CACHE": str(cache_dir)}
    environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}

    def run(file, *options):
        command = [sys.executable, "-m", "entrypoints.validate", "--rl_data", file, *options]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    return run


def without_time(line):
    """A line without the time that it ends with."""
    return re.sub(r" \(\d+(\.\d)? s\)$", "", line)


def test_the_gate_says_one_line_when_all_is_well(validate, perfect_rl_data):
    result = validate(perfect_rl_data)
    assert result.returncode == 0, result.stderr
    assert [without_time(line) for line in result.stderr.splitlines()] == [
        "validate: running",
        f"validate: {perfect_rl_data} {SIZE.format(verdict='pass', failed=0)}",
    ]
    assert result.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("-v",),
        pytest.param(("--verbose", "true"), marks=pytest.mark.slow),
        pytest.param(("-v", "--max_shots=4"), marks=pytest.mark.slow),
    ],
)
def test_verbose_lists_what_passed(validate, perfect_rl_data, options):
    lines = validate(perfect_rl_data, *options).stderr.splitlines()
    assert lines[:3] == ["validate: running", f"{perfect_rl_data} {SIZE.format(verdict='pass', failed=0)}", ""]
    assert lines[3].split() == ["expectation", "observed", "required", "verdict", "what", "to", "do"]
    unchecked, passed = lines[5:7], lines[7:-2]
    assert [line.split()[0] for line in unchecked] == ["items_as_recorded", "items_as_recorded_warning"]
    assert [line.split()[-2:] for line in unchecked] == [["not", "checked"]] * 2
    assert [line.split()[-1] for line in passed] == ["pass"] * 44
    assert lines[-2] == "21 further expectations on columns, types and missing values passed."
    assert without_time(lines[-1]) == f"validate: {perfect_rl_data} {SIZE.format(verdict='pass', failed=0)}"


@pytest.mark.slow
def test_the_gate_lists_what_failed_and_counts_what_passed(validate, bad_rl_data):
    result = validate(bad_rl_data)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[:3] == ["validate: running", f"{bad_rl_data} {SIZE.format(verdict='critical', failed=13)}", ""]
    table = lines[5 : lines.index("52 further expectations passed; verbose=true lists them.")]
    assert [line.split()[0] for line in table] == [
        "reward_mean",
        "reward_stdev",
        "positive_trial_rate",
        "positive_query_rate",
        "zero_spread_share",
        "reward_quantiles_warning",
        "gen_method_variety",
        "gen_method_beam_share",
        "items_as_recorded",
        "items_as_recorded_warning",
    ]
    assert lines[-1].startswith(f"error: {bad_rl_data}: RL data failed 5 critical expectations: reward_mean: 0.0000 (")
    assert [line.split(":")[0] for line in lines[-9:-1]] == [line.split()[0] for line in table[:-2]]
