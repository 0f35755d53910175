"""Plans: what would run and what would be reused, and what a command that only looks at results refuses to run."""

import mlflow
import pytest
from click.testing import CliRunner
from helpers.projects import run_step

from lever_mlflow.cli.commands import cli
from lever_mlflow.exceptions import MissingRunError
from lever_mlflow.pipeline.context import ANSWERS_PER_SECOND
from lever_mlflow.pipeline.rollout import rollout_step
from lever_mlflow.settings import RolloutSettings

SMALL = ["--n_queries=60", "--sizes=20,40", "--n_selection=20", "--shots=1,2", "--rounds=2"]
# 60 queries with 5 pointers by beam search, 2 at each of 2 temperatures, 1 by each of 3 features and 2 at random
ROLLOUT = 60 * (5 + 2 * 2 + 3 + 2)
# 40 questions: 1 prompt without demonstrations, 3 random draws and 6 similarities with 1 and 2; 50 questions of 64 candidates
BASELINES = 40 * (1 + (3 + 6) * 2) + 50 * 64
# start and last epochs of two rounds on 40 questions, these epochs on 20 selection questions, with 1 and 2 demonstrations
EVALUATE = 2 * (3 * 40 + 2 * 20)


@pytest.fixture
def command(local, cache_dir, monkeypatch):
    """command(*arguments) is what a command prints."""
    monkeypatch.setenv("LEVER_MLFLOW_CACHE", str(cache_dir))

    def run(*arguments):
        result = CliRunner().invoke(cli, arguments)
        if result.exception:
            raise result.exception
        return result.output

    return run


def rows(output):
    """What a plan says of each step."""
    table = output.split("\n\n")[0] if "\n\n" in output else output
    lines = [line for line in table.splitlines() if "  " in line]
    return {line[: line.index("  ")]: line[line.index("  ") :].strip() for line in lines}


def would(prompts):
    return f"would run, at most {prompts:,} prompts"


def test_the_plan_of_a_whole_experiment(command, local):
    output = command("main", *SMALL, "--plan=true")
    assert rows(output) == {
        "rollout": would(ROLLOUT),
        "validate": "would run",
        "rce": "would run",
        "grpo beta 0.12": would(ROLLOUT),
        "baselines": would(BASELINES),
        "evaluate beta 0.12": would(EVALUATE),
        "grpo beta 0.15": would(ROLLOUT),
        "evaluate beta 0.15": would(EVALUATE),
        "compare": "would run",
    }
    total = 3 * ROLLOUT + BASELINES + 2 * EVALUATE
    assert f"The VLM would answer at most {total:,} prompts: how long that takes is not known" in output
    assert not mlflow.search_runs(output_format="list")  # a plan is no training

    run = run_step(lambda: rollout_step(local(), RolloutSettings(n_queries=60)))
    output = command("main", *SMALL, "--plan=true")
    assert rows(output)["rollout"] == f"reused from run {run.info.run_id}"
    assert rows(output)["validate"] == "would run"
    assert rows(command("main", *SMALL, "--plan=true", "--rerun=true"))["rollout"] == would(ROLLOUT)
    if ANSWERS_PER_SECOND in run.data.metrics:  # unless another test had the same answers cached
        assert f"at {run.data.metrics[ANSWERS_PER_SECOND]:.3g} answers a second, as seen last in this experiment" in output


@pytest.mark.slow
def test_the_plan_of_one_step(command):
    assert list(rows(command("grpo", "--kl_beta=0.3", "--plan=true"))) == ["rollout", "validate", "rce", "grpo beta 0.3"]
    assert list(rows(command("evaluate", "--kl_beta=0.3", "--plan=true")))[-2:] == ["baselines", "evaluate beta 0.3"]
    assert rows(command("rollout", "--n_queries=60", "--plan=true")) == {"rollout": would(ROLLOUT)}
    assert rows(command("compare", "--kl_betas=0.1,0.2", "--plan=true")).keys() == {
        *("rollout", "validate", "rce", "baselines", "compare"),
        *(f"{step} beta {beta}" for step in ("grpo", "evaluate") for beta in ("0.1", "0.2")),
    }


def test_compare_and_validate_run_nothing_that_is_missing(command):
    with pytest.raises(MissingRunError, match=r"would have to run first: rollout, .*, evaluate beta 0\.77\. The VLM") as error:
        command("compare", "--kl_betas=0.12,0.77")
    assert "With run_missing=true the same command runs them" in str(error.value)
    with pytest.raises(MissingRunError, match=r"would have to run first: rollout\. The VLM would answer at most 8,400 prompts"):
        command("validate")
    runs = mlflow.search_runs(output_format="list")
    assert {(run.info.run_name, run.info.status) for run in runs} == {("compare", "FAILED"), ("validate", "FAILED")}


@pytest.mark.slow
def test_a_finished_step_is_reused_wherever_it_was_started_from(command, local):
    run = run_step(lambda: rollout_step(local(), RolloutSettings(n_queries=6)))
    command("rollout", "--n_queries=6")
    again = mlflow.search_runs(output_format="list")[0]
    assert (again.info.run_name, again.data.tags["lever.reused"]) == ("rollout (reused)", run.info.run_id)
    assert run.info.run_id in again.data.tags["mlflow.note.content"]
    assert "lever.step" not in again.data.tags  # it is found as no rollout
    command("rollout", "--n_queries=6", "--rerun=true")
    anew = mlflow.search_runs(output_format="list")[0]
    assert anew.data.tags["lever.key"] == run.data.tags["lever.key"]
    assert anew.data.params == run.data.params  # of a command and of a step in Python
