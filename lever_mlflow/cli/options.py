"""Generates the options of commands from the settings, and hands a command's values back by settings class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, fields
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import click

from lever_mlflow.cli.option_types import Names, Number, NumberList, OrAuto, Pairs, Splits, Text, YesNo
from lever_mlflow.settings import (
    AUTO,
    GrpoSettings,
    Option,
    PresetInputs,
    as_text,
    declaration,
    default_of,
    preset_names,
    preset_of,
)

__all__ = ["Part", "chosen", "options", "settings_of"]

Command = TypeVar("Command", bound=Callable[..., Any])


class Part(NamedTuple):
    """Names settings that a command takes as options.

    Attributes:
        settings: the settings class.
        names: fields of it; all where none is named.
        prefix: put before each name, such as ``rce_``, where two stages would have options of the same name.
    """

    settings: type
    names: tuple[str, ...] = ()
    prefix: str = ""

    def fields(self) -> Iterator[tuple[str, Field[Any]]]:
        """Yields the name of each option and its field."""
        for setting in fields(self.settings):
            if not self.names or setting.name in self.names:
                yield self.prefix + setting.name, setting


def options(*parts: type | Part) -> Callable[[Command], Command]:
    """Returns a decorator that adds an option for each setting to a command, in this order, each name once."""
    named: dict[str, Callable[[Command], Command]] = {}
    for part in map(_part, parts):
        kinds = get_type_hints(part.settings)
        for name, setting in part.fields():
            named.setdefault(name, _option(name, setting, kinds[setting.name], part.prefix))

    def decorate(command: Command) -> Command:
        for add in reversed(named.values()):
            command = add(command)
        return command

    return decorate


def chosen(part: type | Part, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of a command's values that are settings of this part, by field name."""
    return {setting.name: values[name] for name, setting in _part(part).fields() if name in values}


def settings_of(part: type | Part, values: Mapping[str, Any]) -> Any:
    """Returns the settings of a part: as the command's preset has them, except for the command's values that are not ``auto``.

    An ``epsilon`` of GRPO without an ``epsilon_high`` bounds the ratio on both sides.
    """
    settings = _part(part).settings
    varying = preset_names(settings)
    changes = {name: value for name, value in chosen(part, values).items() if name not in varying or value != AUTO}
    if settings is GrpoSettings and "epsilon" in changes:
        changes = {"epsilon_high": 0.0, **changes}
    return preset_of(settings, values.get("preset", PresetInputs.preset), **changes)


def _part(part: type | Part) -> Part:
    return part if isinstance(part, Part) else Part(part)


def _option(name: str, setting: Field[Any], kind: Any, prefix: str) -> Callable[[Command], Command]:
    described = declaration(setting)
    text = f"{prefix.removesuffix('_').upper()}: {described.help[0].lower()}{described.help[1:]}" if prefix else described.help
    typed, shown = _type(kind, described), as_text(default_of(setting))
    if described.predecessor is not None:
        text += f" The value auto means {shown}, and {as_text(described.predecessor)} with preset=predecessor."
        typed, shown = OrAuto(typed), AUTO
    short: dict[str, Any] = {"is_flag": False, "flag_value": as_text(True)} if described.short else {}
    names = [f"-{described.short}"] if described.short else []
    return click.option(*names, f"--{name}", name, type=typed, default=shown, show_default=True, help=text, **short)


def _type(kind: Any, described: Option) -> click.ParamType:
    """Returns the option type for a field's annotation."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return click.Choice(arguments)
    if origin is tuple:
        if arguments[0] is str:
            return Splits() if arguments == (str, str) else Names()
        return NumberList(arguments[0], described)
    if origin is not None and issubclass(origin, Mapping):
        return Pairs(described.example, Number(float, described) if arguments == (str, float) else None)
    if kind is bool:
        return YesNo()
    return Text() if kind is str else Number(kind, described)
