"""Configuration files: what they set, what takes precedence, and what is wrong with them."""

import mlflow
import pytest
import yaml
from click.testing import CliRunner

from lever_mlflow.cli.commands import cli, main
from lever_mlflow.cli.config_files import read_config
from lever_mlflow.cli.step_commands import COMMANDS
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.runs.artifacts import artifact


@pytest.fixture
def config(tmp_path):
    """config(text) is the path of a configuration file."""

    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def prepared(monkeypatch):
    """prepared(*arguments) is the experiment that ``main`` would run."""
    experiments = []
    monkeypatch.setattr(
        "lever_mlflow.cli.commands.perform", lambda values, prepare, look: experiments.append(prepare.keywords["experiment"])
    )

    def prepare(*arguments):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        return experiments[-1]

    return prepare


def test_values_are_read_by_step(config):
    path = config(
        "seed: 3\ngrpo:\n  kl_beta: 0.12\n  freeze_backbone: true\nmain:\n  kl_betas: [0.05, 0.12]\n  thresholds: {a: 1}\n"
    )
    assert read_config(path, COMMANDS) == {
        "": {"seed": "3"},
        "grpo": {"kl_beta": "0.12", "freeze_backbone": "true"},
        "main": {"kl_betas": "0.05,0.12", "thresholds": "a=1"},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grpo:\n  kl_bta: 0.1\n", r"grpo.kl_bta is unknown, or belongs under the name of a step; did you mean kl_beta\?"),
        ("gropo:\n  kl_beta: 0.1\n", r"gropo is unknown.*did you mean grpo\?"),
        ("lr: 0.1\n", "lr is unknown, or belongs under the name of a step"),  # RCE and GRPO mean different ones
        ("grpo:\n  epochs: many\n", "grpo.epochs: 'many' is not a whole number"),
        ("evaluate:\n  shots: [0]\n", "evaluate.shots: '0' is not a whole number of at least 1"),
        ("grpo:\n  epochs:\n", "grpo.epochs has no value"),
        ("grpo:\n  epochs: ~\n", "grpo.epochs has no value"),
        ("grpo: 3\n", "grpo should hold the options of that step"),
        ("dataset: [a, b]\n", "dataset should hold one value, and no list"),
        ("grpo:\n  lr: {a: 1}\n", "grpo.lr should hold one value, and no mapping"),
        ("grpo:\n  lr: .nan\n", "grpo.lr: '.nan' is not a number"),
        ("grpo:\n  lr: nan\n", "grpo.lr: 'nan' is not a number above 0"),
        ("", "should hold options as name: value"),
        ('grpo:\n  lr: "0.1\n', "not valid YAML"),  # truncated
        ("seed: 1\nseed: 2\n", "seed stands there twice"),
        ("- seed\n", "should hold options as name: value"),
        ("seed: [1\n", "not valid YAML"),
        ("config: other.yaml\n", "config is unknown"),
    ],
)
def test_what_is_wrong_is_named(config, text, message):
    path = config(text)
    with pytest.raises(ParameterError, match=message) as error:
        read_config(path, COMMANDS)
    assert str(error.value).startswith(f"config={path}: ")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(ParameterError, match=r"config=nothere.yaml: cannot be read"):
        read_config("nothere.yaml", COMMANDS)


def test_main_takes_the_settings_of_its_steps(config, prepared):
    path = config("rce:\n  epochs: 8\n  n_layers: 2\ngrpo:\n  rounds: 4\n  epsilon: 0.5\nevaluate:\n  n_oracle: 7\n")
    experiment = prepared("--config", path)
    assert (experiment.rce.epochs, experiment.rce.n_layers, experiment.rounds.rounds) == (8, 2, 4)
    assert (experiment.grpo.epsilon, experiment.grpo.epsilon_high) == (0.5, 0.0)  # alone it bounds the ratio on both sides
    assert (experiment.evaluation.n_oracle, experiment.evaluation.sizes) == (7, (100, 200, 400, 800))


def test_what_is_typed_takes_precedence(config, prepared):
    path = config("seed: 3\nmain:\n  n_queries: 50\n  rce_lr: 0.3\nrce:\n  epochs: 8\n  lr: 0.2\nrollout:\n  n_queries: 40\n")
    experiment = prepared("--config", path, "--rce_epochs", "5", "--seed", "1")  # 5 is the default
    assert (experiment.rce.epochs, experiment.options["seed"]) == (5, 1)
    assert (experiment.rce.lr, experiment.rollout.n_queries) == (0.3, 50)  # the section of main stands above those of steps


def test_a_preset_holds_for_what_the_file_leaves_out(config, prepared):
    experiment = prepared("--config", config("preset: predecessor\ngrpo:\n  batch_size: 4\n"))
    assert (experiment.grpo.batch_size, experiment.grpo.lr, experiment.rounds.rounds) == (4, 5e-6, 1)
    assert (experiment.rollout.shots, experiment.rollout.pool_sampler) == (2, "random")


def test_values_are_what_was_typed(config):
    """YAML's own types would make ``off`` a boolean and 010 the number 8."""
    assert read_config(config("cache: off\nseed: 010\ngrpo:\n  lr: 1e-4\n"), COMMANDS) == {
        "": {"cache": "off", "seed": "010"},
        "grpo": {"lr": "1e-4"},
    }


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("grpo:\n  init: old.pt\n", "grpo.init"),
        ("grpo:\n  kl_beta: 0.3\n", "grpo.kl_beta"),
        ("validate:\n  max_shots: 2\n", "validate.max_shots"),
        ("compare:\n  kl_betas: [0.1, 0.2]\n", "compare.kl_betas"),
    ],
)
def test_main_refuses_what_it_would_not_use(config, text, place):
    result = CliRunner().invoke(main, ["--config", config(text)])
    assert isinstance(result.exception, ParameterError)
    step = place.partition(".")[0]
    assert f"{place}: main does not take this for its step {step}; remove the line" in str(result.exception)


def test_a_run_holds_the_file_that_repeats_it(mlflow_store, cache_dir, good_rl_data, monkeypatch):
    monkeypatch.setenv("LEVER_MLFLOW_CACHE", str(cache_dir))
    typed = ["--rl_data", good_rl_data, "--thresholds", "query_count_warning=60", "--max_shots", "3"]
    assert CliRunner().invoke(cli, ["validate", *typed]).exit_code == 0
    (first,) = mlflow.search_runs(output_format="list")
    path = artifact(first.info.run_id, "config.yaml")
    content = yaml.safe_load(path.read_text())
    assert (content["dataset"], content["seed"]) == ("mini", 0)
    section = {name: content["validate"][name] for name in ("rl_data", "thresholds", "max_shots", "reference")}
    assert section == {
        "rl_data": good_rl_data,
        "thresholds": {"query_count_warning": "60"},
        "max_shots": 3,
        "reference": "none",
    }
    assert CliRunner().invoke(cli, ["validate", "--config", str(path)]).exit_code == 0
    again = mlflow.search_runs(output_format="list")[0]
    assert again.data.tags["lever.reused"] == first.info.run_id
    assert again.info.run_name == "validate (reused)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: " + "[" * 5000, "nested too deeply|not valid YAML"),
        ("main:\n  kl_betas: &a [[0.1], [0.2]]\n", "main.kl_betas should hold numbers or names alone"),
        (f"note: &a {'x' * 60_000}\nevaluate:\n  checkpoints: [*a, *a]\n", "note is unknown"),
        (f"main:\n  kl_betas: [&a {'1' * 60_000}, *a]\n", "of at most 100,000 characters"),
        ('dataset: "a\\0b"\n', "dataset: 'a.x00b' holds a control character"),
        ('dataset: "a\\nb"\n', "holds a control character"),
    ],
)
def test_nothing_in_a_file_grows_or_hides(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ParameterError, match=message):
        read_config(str(path), COMMANDS)
