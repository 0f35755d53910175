"""Reads configuration files: YAML that holds options of commands by name, nested by step.

Options that mean the same in every step may stand at the top of the file. The others stand under the name of their step::

    dataset: /data/okvqa
    seed: 1
    grpo:
      kl_beta: 0.12
      epochs: 5
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.files.text import EncodingError, looked_for, read_text
from lever_mlflow.settings import as_text

__all__ = ["Config", "read_config"]

Config = Mapping[str, Mapping[str, str]]  # the options of each step as a user types them; under "" those at the top

# what an option takes beside text, by the name of its type
_TAKEN = {"numbers": list, "names": list, "splits": list, "pairs": dict}


class _TypedLoader(yaml.BaseLoader):
    """Loads every value as the text that was typed, and refuses a key that stands twice in a mapping.

    YAML's own types would make ``off`` a boolean and 010 the number 8, which the options would never see.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_config(path: str, commands: Mapping[str, click.Command]) -> Config:
    """Reads a configuration file.

    Args:
        path: the file.
        commands: those whose options it may hold, by name.

    Raises:
        ParameterError: the file cannot be read, is no YAML mapping, or holds an unknown name or a value that its option does
            not take. The message names the place.
    """
    content = _load(path)
    options = {name: {option.name or "": option for option in command.params} for name, command in commands.items()}
    shared = _shared(options)
    config: dict[str, dict[str, str]] = {"": {}}
    for name, value in content.items():
        if name in commands:
            if not isinstance(value, Mapping):
                raise ParameterError(f"config={path}: {name} should hold the options of that step, one a line, as name: value")
            of_step = options[name], commands[name]
            config[name] = {str(key): _checked(path, f"{name}.{key}", key, item, *of_step) for key, item in value.items()}
        else:
            command = commands[next((step for step, names in options.items() if name in names), next(iter(commands)))]
            config[""][str(name)] = _checked(path, str(name), name, value, shared, command, others=commands)
    return config


def _load(path: str) -> Mapping[str, Any]:
    try:
        content = yaml.load(read_text(Path(path).expanduser()), _TypedLoader)
    except FileNotFoundError:
        raise ParameterError(
            f"config={path}: cannot be read, as there is no such file{looked_for(path)}; give the path of a YAML file"
        ) from None
    except EncodingError as error:
        raise ParameterError(f"config={path}: cannot be read, as it {error}") from None
    except OSError as error:
        raise ParameterError(f"config={path}: cannot be read ({error}); give the path of a YAML file") from None
    except yaml.YAMLError as error:
        raise ParameterError(f"config={path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, Mapping):
        raise ParameterError(f"config={path}: should hold options as name: value, nested by step")
    return content


def _shared(options: Mapping[str, Mapping[str, click.Parameter]]) -> dict[str, click.Parameter]:
    """Returns the options that mean the same in every step that has them."""
    meanings: dict[str, set[str]] = {}
    for step in options.values():
        for name, option in step.items():
            meanings.setdefault(name, set()).add(getattr(option, "help", "") or "")
    return {name: option for step in options.values() for name, option in step.items() if len(meanings[name]) == 1}


def _checked(
    path: str,
    place: str,
    name: object,
    value: Any,
    options: Mapping[str, click.Parameter],
    command: click.Command,
    others: Iterable[str] = (),
) -> str:
    """Returns a value as a user types it, once its option has taken it."""
    if name not in options or name == "config":
        close = difflib.get_close_matches(str(name), [*options, *others], n=1)
        hint = f"did you mean {close[0]}?" if close else "`lever-mlflow STEP --help` lists the options of a step"
        raise ParameterError(f"config={path}: {place} is unknown, or belongs under the name of a step; {hint}")
    if value in ("", "null", "~"):
        raise ParameterError(f"config={path}: {place} has no value; give one, or remove the line")
    option = options[str(name)]
    if not isinstance(value, str | _TAKEN.get(option.type.name, str)):
        kind = "list" if isinstance(value, list) else "mapping"
        raise ParameterError(f"config={path}: {place} should hold one value, and no {kind}")
    text = as_text(value)
    try:
        option.type_cast_value(click.Context(command), text)
    except click.BadParameter as error:
        raise ParameterError(f"config={path}: {place}: {error.message}") from None
    return text
