"""Options of GRPO: presets, and what is given beside them."""

from dataclasses import replace

import click
import pytest

import entrypoints.grpo
import entrypoints.main
from lever_mlflow.cli.options import Part, settings_of
from lever_mlflow.settings import EvalSettings, GrpoSettings, RolloutSettings, RoundSettings, preset_of

VARYING = ("lr", "batch_size", "epsilon", "epsilon_high", "freeze_backbone")


@pytest.fixture
def parsed(monkeypatch):
    """parsed(*arguments) is the settings that the command trains with."""

    def parse(*arguments):
        values = {}
        command = click.Command("grpo", params=entrypoints.grpo.main.params, callback=lambda **options: values.update(options))
        command.main(list(arguments), standalone_mode=False)
        return settings_of(GrpoSettings, values)

    return parse


def test_nothing_given_is_the_default(parsed):
    assert parsed() == GrpoSettings()
    assert parsed("--preset=default") == GrpoSettings()


def test_the_predecessors_settings(parsed):
    settings = parsed("--preset=predecessor")
    assert {name: getattr(settings, name) for name in VARYING} == {
        "lr": 5e-6,
        "batch_size": 1,
        "epsilon": 0.2,
        "epsilon_high": 0.0,
        "freeze_backbone": True,
    }
    assert replace(settings, **{name: getattr(GrpoSettings(), name) for name in VARYING}) == GrpoSettings()


def test_what_is_given_wins_over_the_preset(parsed):
    settings = parsed("--preset=predecessor", "--lr=0.001", "--freeze_backbone=false", "--batch_size=4", "--kl_beta=0.3")
    expected = {"lr": 0.001, "freeze_backbone": False, "batch_size": 4, "kl_beta": 0.3}
    assert settings == replace(preset_of(GrpoSettings, "predecessor"), **expected)


def test_an_epsilon_alone_clips_on_both_sides(parsed):
    assert (parsed("--epsilon=0.3").epsilon, parsed("--epsilon=0.3").epsilon_high) == (0.3, 0.0)
    assert parsed("--epsilon=0.3", "--epsilon_high=2").epsilon_high == 2.0
    assert (parsed("--epsilon_high=2").epsilon, parsed("--epsilon_high=2").epsilon_high) == (GrpoSettings.epsilon, 2.0)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--lr=fast", "'fast' is not a number"),
        ("--lr=0", "'0' is not a number above 0"),
        ("--batch_size=1.5", "'1.5' is not a whole number"),
        ("--epsilon=1", "'1' is not a number above 0 and below 1"),
        ("--freeze_backbone=perhaps", "'perhaps' is not a valid boolean"),
        ("--preset=old", "'old' is not one of 'default', 'predecessor'"),
    ],
)
def test_bad_values(parsed, argument, message):
    with pytest.raises(click.UsageError, match=message):
        parsed(argument)


@pytest.mark.parametrize(
    ("command", "name", "start"),
    [(entrypoints.grpo.main, "lr", "Learning"), (entrypoints.main.main, "grpo_lr", "GRPO: learning")],
)
def test_help_says_what_auto_is(command, name, start):
    (option,) = (option for option in command.params if option.name == name)
    rest = "rate of the AdamW optimizer. The value auto means 0.0002, and 5e-06 with preset=predecessor."
    assert option.help == f"{start} {rest}"


def test_a_preset_is_the_set_up_of_the_whole_experiment():
    values = {}
    command = click.Command("main", params=entrypoints.main.main.params, callback=lambda **options: values.update(options))
    command.main(["--preset=predecessor", "--shots=1,2"], standalone_mode=False)
    assert settings_of(RoundSettings, values) == RoundSettings(rounds=1)
    rollout = settings_of(Part(RolloutSettings, ("n_queries", "pool_sampler")), values)
    assert rollout == RolloutSettings(pool_sampler="random", shots=2)
    evaluation = settings_of(Part(EvalSettings, ("shots", "pool_sampler")), values)
    assert evaluation == EvalSettings(pool_sampler="random", shots=(1, 2))
    assert settings_of(Part(GrpoSettings, ("epochs", "lr"), prefix="grpo_"), values) == preset_of(GrpoSettings, "predecessor")
