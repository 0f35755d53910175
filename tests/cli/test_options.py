"""Options that are generated from settings: their types, bounds, defaults and help."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import click
import pytest
from click.testing import CliRunner

from lever_mlflow.cli.options import Part, chosen, options
from lever_mlflow.settings import as_text, option


@dataclass(frozen=True)
class Cake:
    layers: int = option(2, at_least=1, help="Number of layers of the cake.")
    sugar: float = option(0.25, above=0, below=1, predecessor=0.5, help="Share of sugar in dough.")
    icing: Literal["lemon", "none"] = option("lemon", help="Kind of icing on the cake.")
    candles: bool = option(False, help="Whether candles stand on the cake.")
    sizes: tuple[int, ...] = option((20, 26), at_least=5, ascending=True, help="Sizes of the tins in centimetres.")
    weights: tuple[float, ...] = option((1.0, 1.3), at_least=0, least_items=2, help="Weights of the two halves.")
    guests: tuple[str, ...] = option((), help="Names of the guests who get a piece.")
    halves: tuple[str, str] = option(("left", "right"), help="Names of the two halves.")
    shares: Mapping[str, float] = option({}, at_least=0, example="egg=0.5", help="Shares of the cake's parts by name.")
    extras: Mapping[str, str] = option({}, example="nuts=few", help="Extras of the cake by name.")
    baker: str = option("auto", help="Name of the baker of the cake.")
    warm: bool = option(False, short="w", help="Whether the cake is still warm.")


def parsed(*arguments, parts=(Cake,)):
    """The values that a command with these options gets."""
    values = {}
    command = click.command()(options(*parts)(lambda **options_by_name: values.update(options_by_name)))
    command.main(list(arguments), standalone_mode=False)
    return values


def test_defaults():
    values = parsed()
    assert list(values) == list(Cake.__dataclass_fields__)
    assert values == {**vars(Cake()), "sugar": "auto"}  # which differs between presets
    assert Cake(**chosen(Cake, {**values, "sugar": 0.25, "oven": 1})) == Cake()


def test_values_have_the_types_of_the_fields():
    typed = ["--layers=3", "--sugar=0.5", "--icing=none", "--candles=true", "--sizes=26, 20", "--weights=2,1"]
    typed += ["--guests=bo, cy"]
    values = parsed(*typed, "--halves=a , b", "--shares=egg=0.5", "--extras=nuts=few,rum = no", "--baker=ann")
    named = ("a", "b"), {"egg": 0.5}, {"nuts": "few", "rum": "no"}, "ann"
    assert Cake(**values) == Cake(3, 0.5, "none", True, (20, 26), (2.0, 1.0), ("bo", "cy"), *named)
    assert parsed("--extras=none", "--sugar=auto", "--guests=none") == parsed()


@pytest.mark.parametrize(
    ("arguments", "warm"),
    [
        (("-w",), True),
        (("-w", "--layers=2"), True),
        (("--warm",), True),
        (("--warm", "true"), True),
        (("--warm", "false"), False),
        ((), False),
    ],
)
def test_a_short_flag_needs_no_value(arguments, warm):
    assert parsed(*arguments) == {**parsed(), "warm": warm}


@pytest.mark.parametrize("written", ["100", "100.0", "1e2", "1E+2", " 100 ", "+100"])
def test_a_whole_number_may_be_written_with_a_point_or_an_exponent(written):
    value = parsed(f"--layers={written}")["layers"]
    assert (value, type(value)) == (100, int)
    assert parsed(f"--sizes=20,{written}")["sizes"] == (20, 100)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--layers=1e-2", "'1e-2' is not a whole number"),
        ("--layers=inf", "'inf' is not a whole number"),
        ("--layers=nan", "'nan' is not a whole number"),
        ("--layers=1e300", "'1e300' is not a whole number"),
        ("--layers=0", "'0' is not a whole number of at least 1"),
        ("--layers=1.5", "'1.5' is not a whole number"),
        ("--sugar=1", "'1' is not a number above 0 and below 1"),
        ("--sugar=0", "'0' is not a number above 0 and below 1"),
        ("--sugar=nan", "'nan' is not a number above 0 and below 1"),
        ("--sugar=much", "'much' is not a number"),
        ("--icing=mint", "'mint' is not one of 'lemon', 'none'."),
        ("--candles=", "'' is neither true nor false"),
        ("--sizes=20,4", "'4' is not a whole number of at least 5"),
        ("--sizes=20,20", "'20,20' names a number twice"),
        ("--sizes=", "'' is not a whole number"),
        ("--weights=1", "'1': at least 2 numbers are needed"),
        ("--weights=1,1e6", "'1e6' is not a number of at least 0 and below 1e+06"),
        ("--weights=1,-1", "'-1' is not a number of at least 0 and below 1e+06"),
        ("--guests=bo,", "'bo,' holds an empty name; give names separated by commas, or none"),
        ("--guests=bo,bo", "'bo,bo' names the same twice"),
        ("--halves=left", "'left' is not two names, such as train,validation"),
        ("--shares=egg=-1", "'-1' is not a number of at least 0 and below 1e+06"),
        ("--extras=nuts", "'nuts' is not name=value; give for example nuts=few"),
        ("--extras=nuts=1,nuts=2", "'nuts=1,nuts=2' names nuts twice"),
        ("--baker= ", "nothing is given; leave the option out for its default"),
    ],
)
def test_a_value_outside_of_what_the_field_declares_is_named(argument, message):
    with pytest.raises(click.UsageError) as error:
        parsed(argument)
    name = argument.partition("=")[0]
    assert error.value.format_message() == f"Invalid value for '{name}': {message}"


def test_help_shows_text_default_and_presets():
    command = click.command()(options(Cake)(lambda **values: None))
    text = " ".join(CliRunner().invoke(command, ["--help"], terminal_width=200).output.split())
    for shown in (
        "--layers NUMBER Number of layers of the cake. [default: 2]",
        "--sugar NUMBER Share of sugar in dough. The value auto means 0.25, and 0.5 with preset=predecessor. [default: auto]",
        "--icing [lemon|none] Kind of icing on the cake. [default: lemon]",
        "--candles BOOLEAN Whether candles stand on the cake. [default: false]",
        "--sizes NUMBERS Sizes of the tins in centimetres. [default: 20,26]",
        "-w, --warm BOOLEAN Whether the cake is still warm. [default: false]",
        "--extras PAIRS Extras of the cake by name. [default: none]",
    ):
        assert shown in text


def test_parts_take_some_settings_under_a_prefix():
    part = Part(Cake, ("layers", "baker"), prefix="big_")
    values = parsed("--big_layers=9", "--layers=3", parts=(part, Part(Cake, ("layers",)), Part(Cake, ("layers", "candles"))))
    assert values == {"big_layers": 9, "big_baker": "auto", "layers": 3, "candles": False}
    assert Cake(**chosen(part, values)) == Cake(layers=9)
    assert Cake(**chosen(Cake, values)) == Cake(layers=3)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (600, "600"),
        (2.0, "2"),
        (5e-6, "5e-06"),
        ((1.0, 1.3), "1,1.3"),
        (("train", "validation"), "train,validation"),
        ({}, "none"),
        ((), "none"),
        ("auto", "auto"),
    ],
)
def test_values_as_a_user_types_them(value, text):
    assert as_text(value) == text
