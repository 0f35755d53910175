"""Settings: each is declared with a help text that is understood alone, and with a default within its own bounds."""

import dataclasses
import re
import subprocess
import sys
from typing import get_type_hints

import pytest

from lever_mlflow import settings
from lever_mlflow.settings import (
    EvalSettings,
    GrpoSettings,
    RceSettings,
    RolloutSettings,
    RoundSettings,
    declaration,
    format_beta,
    like,
    option,
    preset_names,
    preset_of,
)

CLASSES = [getattr(settings, name) for name in settings.__all__ if name.endswith(("Settings", "Inputs"))]
FIELDS = [
    pytest.param(setting, id=f"{owner.__name__}.{setting.name}") for owner in CLASSES for setting in dataclasses.fields(owner)
]


def test_every_class_of_settings_is_looked_at():
    declared = [item for item in vars(settings).values() if dataclasses.is_dataclass(item) and item is not settings.Option]
    assert sorted(CLASSES, key=str) == sorted(declared, key=str)
    assert len(FIELDS) > 80


@pytest.mark.parametrize("setting", FIELDS)
def test_help_is_whole_sentences(setting):
    text = declaration(setting).help
    assert text[0].isupper()
    assert text.endswith(".")
    assert len(text.split(". ")[0].split()) >= 3
    assert "  " not in text


@pytest.mark.parametrize("setting", FIELDS)
def test_defaults_are_within_their_bounds(setting):
    described = declaration(setting)
    values = setting.default if isinstance(setting.default, tuple) else (setting.default, described.predecessor)
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert described.at_least is None or value >= described.at_least
            assert described.above is None or value > described.above
            assert described.below is None or value < described.below


def test_every_number_has_a_lower_bound():
    for owner in CLASSES:
        kinds = get_type_hints(owner)
        for setting in dataclasses.fields(owner):
            if kinds[setting.name] in (int, float, tuple[int, ...], tuple[float, ...]):
                described = declaration(setting)
                assert (described.at_least is None) != (described.above is None), (owner, setting.name)


def test_no_setting_is_a_mutable_default():
    first, second = settings.GateSettings(), settings.GateSettings()
    assert first.thresholds == {}
    assert first.thresholds is not second.thresholds


def test_like_declares_the_same_setting_with_changes():
    @dataclasses.dataclass(frozen=True)
    class First:
        size: int = option(3, at_least=2, help="Size of the thing.")
        names: dict = option({}, help="Names of the things.")  # noqa: RUF009

    @dataclasses.dataclass(frozen=True)
    class Second:
        size: int = like(First, "size", 7, below=9)
        names: dict = like(First, "names")  # noqa: RUF009

    size, names = dataclasses.fields(Second)
    assert Second() == Second(size=7, names={})
    assert declaration(size) == settings.Option(help="Size of the thing.", at_least=2, below=9)
    assert declaration(names).help == "Names of the things."


def test_presets_differ_in_the_settings_that_declare_it():
    assert preset_names(GrpoSettings) == ("lr", "batch_size", "epsilon", "epsilon_high", "freeze_backbone")
    assert preset_of(GrpoSettings, "default") == GrpoSettings(
        lr=2e-4, batch_size=8, epsilon=0.9, epsilon_high=5.0, freeze_backbone=False
    )
    assert preset_of(GrpoSettings, "predecessor") == GrpoSettings(
        lr=5e-6, batch_size=1, epsilon=0.2, epsilon_high=0.0, freeze_backbone=True
    )


def test_the_predecessors_set_up_has_random_pools_two_shots_and_one_round():
    assert preset_of(RolloutSettings, "default") == RolloutSettings(pool_sampler="fused-similarity", shots=1)
    assert preset_of(RolloutSettings, "predecessor") == RolloutSettings(pool_sampler="random", shots=2)
    assert preset_of(EvalSettings, "predecessor") == EvalSettings(pool_sampler="random")
    assert preset_of(RoundSettings, "predecessor") == RoundSettings(rounds=1)
    assert preset_of(RceSettings, "predecessor") == RceSettings()


def test_changes_win_over_a_preset():
    assert preset_of(RolloutSettings, "predecessor", shots=3) == RolloutSettings(pool_sampler="random", shots=3)


@pytest.mark.parametrize(
    ("kl_beta", "text"), [(0.12, "0.12"), (0.15, "0.15"), (0.0, "0"), (1.0, "1"), (1e-7, "1e-07"), (0.1 + 0.2, "0.3")]
)
def test_a_beta_is_written_in_one_way(kl_beta, text):
    assert format_beta(kl_beta) == text


def test_settings_import_the_standard_library_only():
    code = "import sys; before = set(sys.modules); import lever_mlflow.settings; print(*set(sys.modules) - before)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = {name.split(".")[0] for name in result.stdout.split()}
    assert imported <= {*sys.stdlib_module_names, "lever_mlflow"}
    assert not re.search(r"lever_mlflow\.(?!settings)", result.stdout)
