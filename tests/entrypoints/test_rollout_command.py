"""Options of the rollout, in this process on a fresh store: each is a setting, is checked, and changes what is tried."""

from dataclasses import asdict, fields

import mlflow
import pytest
from click.testing import CliRunner

from entrypoints.rollout import main
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.runs import artifacts
from lever_mlflow.settings import RolloutSettings, preset_names
from lever_mlflow.trials.reading import load_rl_data

SMALL = {
    "n_queries": 6,
    "shots": 2,
    "pool_size": 8,
    "pool_sampler": "random",
    "beam_width": 1,
    "temperatures": "1",
    "samples_per_temperature": 1,
    "retrieval_per_feature": 1,
    "random_pointers": 1,
    "mine_positives": 0,
    "seed": 0,
}


@pytest.fixture
def rollout(mlflow_store, cache_dir, monkeypatch):
    """rollout(**options) runs the command; its result."""
    monkeypatch.setenv("LEVER_MLFLOW_CACHE", str(cache_dir))

    def run(**options):
        return CliRunner().invoke(main, [f"--{name}={value}" for name, value in {**SMALL, **options}.items()])

    return run


@pytest.fixture
def recorded(rollout):
    """recorded(**options) is what was tried: query, pool, pointers."""

    def run(**options):
        result = rollout(**options, rerun=True)
        assert result.exit_code == 0, result.output
        run_id = mlflow.search_runs(output_format="list", max_results=1)[0].info.run_id
        data = load_rl_data(artifacts.artifact(run_id, "rl_data.json"))
        return [(group.query_id, group.pool, [trial.pointer for trial in group.trials]) for group in data.groups]

    return run


def test_every_setting_is_an_option_with_its_default():
    options = {option.name: option for option in main.params}
    assert {field.name for field in fields(RolloutSettings)} <= options.keys()
    for name, value in asdict(RolloutSettings()).items():
        default = options[name].type.convert(options[name].default, options[name], None)
        assert default == ("auto" if name in preset_names(RolloutSettings) else value)


@pytest.mark.slow
def test_every_option_changes_what_is_tried(recorded):
    changes = {
        "n_queries": 7,
        "shots": 3,
        "pool_size": 9,
        "pool_sampler": "mixed",
        "beam_width": 2,
        "temperatures": "9",
        "samples_per_temperature": 3,
        "retrieval_per_feature": 2,
        "random_pointers": 3,
        "mine_positives": 3,
        "seed": 1,
    }
    assert changes.keys() == SMALL.keys()
    before = recorded()
    assert recorded() == before
    for name, value in changes.items():
        assert recorded(**{name: value}) != before, name


def test_a_generator_may_be_off_but_not_all(recorded, rollout):
    off = dict.fromkeys(("beam_width", "samples_per_temperature", "retrieval_per_feature", "random_pointers"), 0)
    assert all(len(pointers) == 5 for *_, pointers in recorded(**{**off, "beam_width": 5}))
    error = rollout(**off).exception
    assert isinstance(error, ParameterError)
    assert str(error).endswith("all 0, which leaves nothing to try; turn one on")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "pool_sampler",
            "best",
            "'best' is not one of 'random', 'image-similarity', 'text-similarity', 'fused-similarity', 'mixed'",
        ),
        ("beam_width", -1, "'-1' is not a whole number of at least 0"),
        ("temperatures", "1,0", "'0' is not a number of at least 0.05"),
        ("samples_per_temperature", "x", "'x' is not a whole number"),
        ("retrieval_per_feature", 1.5, "'1.5' is not a whole number"),
        ("random_pointers", "nan", "'nan' is not a whole number"),
        ("mine_positives", -3, "'-3' is not a whole number of at least 0"),
        ("pool_size", 1, "'1' is not a whole number of at least 2"),
        ("n_queries", 1, "'1' is not a whole number of at least 2"),
        ("shots", 0, "'0' is not a whole number of at least 1"),
        ("seed", -1, "'-1' is not a whole number of at least 0 and below"),
    ],
)
def test_a_wrong_value_is_named_before_any_work(rollout, name, value, message):
    result = rollout(**{name: value})
    assert result.exit_code == 2
    assert f"'--{name}'" in result.output
    assert message in " ".join(result.output.split())
    assert not mlflow.search_runs(output_format="list")
