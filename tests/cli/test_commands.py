"""The command ``lever-mlflow``: all steps in one group, quick help, completion, and errors as one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from lever_mlflow import __version__
from lever_mlflow.cli.commands import cli
from lever_mlflow.cli.launching import launch
from lever_mlflow.cli.step_commands import COMMANDS
from lever_mlflow.exceptions import CheckpointError, DataError, ParameterError
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rl_data import Group, Trial, save_rl_data
from lever_mlflow.vlm.answer_cache import AnswerCache

STEPS = ["main", "rollout", "merge", "validate", "rce", "grpo", "evaluate", "compare", "promote", "rollback", "status"]
STEPS += ["convert", "merge-answers"]
HEAVY = {"torch", "mlflow", "pandas", "numpy", "transformers", "great_expectations", "accelerate", "pydantic"}


def lever_mlflow(*arguments, **environment):
    """The installed command in a process of its own, which also prints the modules that it imported."""
    code = "import sys, atexit; atexit.register(lambda: print('imported', *sys.modules)); sys.argv[0] = 'lever-mlflow'; "
    code += "from lever_mlflow.cli.commands import run; run()"
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False)
    output, _, imported = result.stdout.rpartition("imported ")
    return result, output, {name.split(".")[0] for name in imported.split()}


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_the_steps_in_order_and_imports_nothing_heavy(arguments):
    result, output, imported = lever_mlflow(*arguments)
    assert result.returncode == 0, result.stderr
    commands = [line.split()[0] for line in output.split("Commands:\n")[1].splitlines()]
    assert commands == STEPS == list(cli.commands)
    assert 'eval "$(_LEVER_MLFLOW_COMPLETE=bash_source lever-mlflow)"' in output
    assert "click" in imported
    assert not imported & HEAVY


def test_the_package_of_commands_imports_nothing_heavy():
    code = "import sys, lever_mlflow.cli.commands, lever_mlflow.cli.launching; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in result.stdout.split()} & HEAVY


@pytest.mark.parametrize("name", STEPS)
def test_each_command_says_what_it_does_in_a_line_that_is_shown_whole(name):
    line = cli.commands[name].get_short_help_str(limit=70)
    assert len(line.split()) >= 4
    assert line.endswith(".")
    assert not line.endswith("...")


def test_a_shell_can_complete_commands_options_and_choices():
    _, script, imported = lever_mlflow(_LEVER_MLFLOW_COMPLETE="bash_source")
    assert "_LEVER_MLFLOW_COMPLETE=bash_complete" in script
    assert "complete -o nosort -F _lever_mlflow_completion lever-mlflow" in script
    assert not imported & HEAVY

    def completed(words):
        place = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        return lever_mlflow(_LEVER_MLFLOW_COMPLETE="bash_complete", **place)[1].split()

    assert completed("lever-mlflow ro") == ["plain,rollout", "plain,rollback"]
    assert completed("lever-mlflow grpo --kl_b") == ["plain,--kl_beta"]
    assert completed("lever-mlflow grpo --preset p") == ["plain,predecessor"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grpo", "--kl_beta", "abc"], "error: Invalid value for '--kl_beta': 'abc' is not a number"),
        (["grpo", "--kl_bta", "1"], "error: No such option '--kl_bta'. (Did you mean one of: '--kl_beta', '--rl_data'?)"),
        (["grp"], "error: No such command 'grp'. Did you mean 'grpo'?"),
        (["compare", "--kl_betas", "0.1"], "error: Invalid value for '--kl_betas': '0.1': at least 2 numbers are needed"),
        (["merge-answers", "a"], "error: Missing argument 'SOURCES...'."),
    ],
)
def test_errors_are_one_line_and_an_exit_code(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        launch(cli, arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"{message}\n"


def test_a_wrong_option_is_said_on_the_run_that_mlflow_has_made(mlflow_store, monkeypatch):
    client = mlflow.MlflowClient()
    run = client.create_run(client.get_experiment_by_name("test").experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    with pytest.raises(SystemExit):
        launch(COMMANDS["grpo"], ["--kl_beta", "much"])
    tags = client.get_run(run.info.run_id).data.tags
    assert tags["mlflow.runName"] == "grpo"
    assert tags["mlflow.note.content"] == "failed: Invalid value for '--kl_beta': 'much' is not a number"


def test_the_version():
    assert CliRunner().invoke(cli, ["--version"]).output == f"{__version__}\n"


def test_a_step_of_the_group_is_a_run(mlflow_store, cache_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("LEVER_MLFLOW_CACHE", str(cache_dir))
    trials = tuple(Trial((i, i + 1), float(i < 4), float(i < 4), "random") for i in range(9))
    save_rl_data(tmp_path / "few.json", [Group(query, tuple(range(400, 464)), trials) for query in range(4)], {})
    result = CliRunner().invoke(cli, ["validate", f"--rl_data={tmp_path / 'few.json'}", "--on_bad_data=warn", "--max_shots=3"])
    assert result.exit_code == 0, result.output
    (run,) = mlflow.search_runs(output_format="list")
    assert run.data.tags["lever.step"] == "validate"
    assert run.info.status == "FINISHED"
    assert (run.data.params["reward_mode"], run.data.params["max_shots"]) == ("hard_plus_soft", "3")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["grpo", "--init=nothere"], CheckpointError),
        (["validate", "--reference=nothere.json"], DataError),
        (["evaluate", "--checkpoints=nothere"], CheckpointError),
        (["rce", "--thresholds=reward_men=1"], ParameterError),
    ],
)
def test_what_is_wrong_is_said_before_a_rollout_begins(arguments, error, mlflow_store, cache_dir, monkeypatch):
    monkeypatch.setenv("LEVER_MLFLOW_CACHE", str(cache_dir))
    result = CliRunner().invoke(cli, arguments)
    assert isinstance(result.exception, error), result.output
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FAILED"
    assert run.data.tags["mlflow.note.content"] == f"failed: {result.exception}"


def test_rl_data_are_converted(good_rl_data, tmp_path):
    data = load_rl_data(good_rl_data)
    for source, target in ((good_rl_data, "rl.parquet"), (str(tmp_path / "rl.parquet"), "again.json")):
        result = CliRunner().invoke(cli, ["convert", source, str(tmp_path / target)])
        assert result.output == f"{tmp_path / target}: 60 queries with 540 usable trials, digest {data.digest}\n"
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(Path(good_rl_data).read_text())


def test_answers_of_other_machines_are_merged(tmp_path):
    for name, answers in (("into", [("a", "1")]), ("from", [("a", "2"), ("b", "3")])):
        with AnswerCache(tmp_path / name) as cache:
            cache.put(answers)
    result = CliRunner().invoke(cli, ["merge-answers", str(tmp_path / "into"), str(tmp_path / "from")])
    assert result.output == f"{tmp_path / 'into'}: 1 answers added\n"
    with AnswerCache(tmp_path / "into") as cache:
        assert cache.get(["a", "b"]) == {"a": "1", "b": "3"}
