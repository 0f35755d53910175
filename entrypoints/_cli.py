"""What the entry points share: option types and groups, and errors as one line with an exit code.

Nothing heavy is imported here, so that ``--help`` answers at once. Option names are MLproject's parameter names.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, get_args

import click

from lever_mlflow.exceptions import LeverError
from lever_mlflow.settings import (
    GRPO_PRESETS,
    PRESET_SETTINGS,
    DataSettings,
    GateSettings,
    GrpoSettings,
    Language,
    PoolSampler,
    RceSettings,
    RolloutSettings,
)

if TYPE_CHECKING:
    from lever_mlflow.pipeline.experiment import Pipeline

__all__ = [
    "AUTO",
    "NONE",
    "NumberList",
    "Positive",
    "dataset_option",
    "gate_options",
    "grpo_option",
    "grpo_settings",
    "in_order",
    "in_processes",
    "language_option",
    "launch",
    "make_pipeline",
    "model_name_option",
    "on_bad_data_option",
    "option",
    "pool_sampler_option",
    "preset_option",
    "resource_options",
    "reward_mode_option",
    "rl_data_options",
    "thresholds_option",
    "training_options",
    "vlm_option",
]

AUTO, NONE = "auto", "none"


_LARGEST = 1e6  # of numbers with a fraction: what float32 can still be multiplied by without becoming infinite


class Positive(click.ParamType):
    """A number, at least ``minimum`` (above it with ``strict``) and below ``below``; without it, fractions below a million."""

    name = "number"

    def __init__(
        self, kind: type[int] | type[float] = float, minimum: float = 0.0, *, strict: bool = False, below: float | None = None
    ) -> None:
        self.kind, self.minimum, self.strict = kind, minimum, strict
        self.below = below or (math.inf if kind is int else _LARGEST)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """``value`` as a number; fails with what it must be."""
        wanted = "a whole number" if self.kind is int else "a number"
        bound = f"{'above' if self.strict else 'of at least'} {self.minimum:g}"
        bound += f" and below {self.below:g}" if self.below < math.inf else ""
        try:
            number = self.kind(value)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not {wanted}", param, ctx)
        if not self.minimum <= number < self.below or (self.strict and number == self.minimum):
            self.fail(f"{value!r} is not {wanted} {bound}", param, ctx)
        return number


class NumberList(click.ParamType):
    """Different numbers separated by commas, at least ``least`` of them, as a tuple."""

    name = "numbers"

    def __init__(self, item: Positive, least: int = 1) -> None:
        self.item, self.least = item, least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """``value`` as a tuple of numbers; fails with the item that is wrong."""
        if isinstance(value, tuple):
            return value
        numbers = tuple(self.item.convert(part.strip(), param, ctx) for part in str(value).split(","))
        if len(set(numbers)) < len(numbers):
            self.fail(f"{value!r} names a number twice", param, ctx)
        if len(numbers) < self.least:
            self.fail(f"{value!r}: at least {self.least} numbers are needed", param, ctx)
        return numbers


class Pairs(click.ParamType):
    """``none``, or ``name=value`` pairs separated by commas, as a mapping; who is given them says whether it knows them."""

    name = "pairs"

    def __init__(self, example: str) -> None:
        self.example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        """``value`` as a mapping; fails with the pair that is wrong."""
        if isinstance(value, dict):
            return value
        if value == NONE:
            return {}
        pairs: dict[str, str] = {}
        for part in value.split(","):
            name, found, item = (text.strip() for text in part.partition("="))
            if not (name and found and item):
                self.fail(f"{part!r} is not name=value; give for example {self.example}", param, ctx)
            if name in pairs:
                self.fail(f"{value!r} names {name} twice", param, ctx)
            pairs[name] = item
        return pairs


class Splits(click.ParamType):
    """Names of two splits separated by a comma, as a tuple."""

    name = "splits"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """``value`` as a tuple of two names; fails where it is not."""
        names = tuple(part.strip() for part in str(value).split(","))
        if len(names) != 2 or not all(names):
            self.fail(f"{value!r} is not two names, such as train,validation", param, ctx)
        return names


class YesNo(click.types.BoolParamType):
    """A boolean; an empty one is an error."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        """``value`` as a boolean; fails where there is none."""
        if value == "":
            self.fail("'' is neither true nor false", param, ctx)
        return super().convert(value, param, ctx)


class Text(click.types.StringParamType):
    """Text that is not empty."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """``value`` as it is; fails where there is none."""
        if not str(value).strip():
            self.fail("nothing is given; leave the option out for its default", param, ctx)
        return super().convert(value, param, ctx)


def _strict(kind: Any) -> Any:
    return YesNo() if kind is bool else Text() if kind is str else kind


class OrAuto(click.ParamType):
    """``auto``, or what another type takes."""

    def __init__(self, kind: Any) -> None:
        self.kind = click.types.convert_type(_strict(kind))
        self.name = self.kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """``value`` as it is if it is ``auto``, else as the other type has it."""
        return AUTO if value == AUTO else self.kind.convert(value, param, ctx)


def option(name: str, kind: Any, default: Any, text: str) -> Callable[..., Any]:
    """A click option under MLproject's parameter name; a tuple as default is shown as the user would type it."""
    shown = ",".join(f"{item:g}" for item in default) if isinstance(default, tuple) else default
    return click.option(
        f"--{name}", name, type=_strict(kind), default=shown, show_default=True, required=default is None, help=text
    )


def _grouped(*options: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """One decorator that adds the options in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for add in reversed(options):
            command = add(command)
        return command

    return decorate


dataset_option = option("dataset", str, "mini", "mini, the folder of the official OK-VQA files, or hf:NAME of a hub data set")
vlm_option = _grouped(
    option("vlm", str, "mini", "mini, folder or hub name of a Qwen2.5-VL, or URL of an OpenAI-compatible server"),
    option("vlm_model", str, AUTO, "the model on that server; auto: the only one it has"),
)
language_option = option("lang", click.Choice(get_args(Language)), "en", "language of the report")
model_name_option = option("model_name", str, AUTO, "registered model; auto names it after data set and VLM")
pool_sampler_option = option(
    "pool_sampler", click.Choice(get_args(PoolSampler)), RolloutSettings.pool_sampler, "how candidates are drawn"
)
reward_mode_option = option(
    "reward_mode",
    click.Choice(["hard_plus_soft", "hard_only", "soft_only", "separated", "hard_plus_gtprob"]),
    "hard_plus_soft",
    "how a trial's scores become its reward",
)


rl_data_options = _grouped(
    option("rl_data", str, AUTO, "RL data: a file, a run id, runs:/<run id>, or auto (the newest rollout)"),
    option("use_fallback", bool, False, "use trials too that only the fallback could score"),
)
thresholds_option = option(
    "thresholds",
    Pairs("positive_query_rate=0.05"),
    NONE,
    "of the data gate, such as positive_query_rate=0.05,reward_mean.max_value=1.9",
)
on_bad_data_option = option(
    "on_bad_data", click.Choice(["stop", "warn"]), GateSettings.on_bad_data, "warn: go on in spite of critical data, tagged"
)


preset_option = option("preset", click.Choice(list(GRPO_PRESETS)), "default", "of GRPO: what auto is, in options that say so")


def grpo_option(name: str, kind: Any, text: str, setting: str | None = None) -> Callable[..., Any]:
    """An option of GRPO; where presets differ in it, ``auto`` is the preset's. ``setting``: its field, if named otherwise."""
    field = setting or name
    if field not in PRESET_SETTINGS:
        return option(name, kind, getattr(GRPO_PRESETS["default"], field), text)
    values = {preset: getattr(settings, field) for preset, settings in GRPO_PRESETS.items()}
    told = {preset: str(value).lower() if isinstance(value, bool) else f"{value:g}" for preset, value in values.items()}
    return option(name, OrAuto(kind), AUTO, f"{text}; auto: {told['default']}, with preset=predecessor {told['predecessor']}")


def grpo_settings(preset: str, **values: Any) -> GrpoSettings:
    """The settings of a preset, with those values that are not ``auto``; who gives an ``epsilon`` means both sides of 1."""
    given = {name: value for name, value in values.items() if value != AUTO}
    return replace(GRPO_PRESETS[preset], **({"epsilon_high": 0.0, **given} if "epsilon" in given else given))


def training_options(settings: type[RceSettings] | type[GrpoSettings]) -> Callable[..., Any]:
    """The options that both trainings take, with the defaults of their settings."""

    def varying(name: str, kind: Any, text: str) -> Callable[..., Any]:
        return grpo_option(name, kind, text) if settings is GrpoSettings else option(name, kind, getattr(settings, name), text)

    return _grouped(
        varying("epochs", Positive(int, 1), "passes over the training queries"),
        varying("lr", Positive(strict=True), "learning rate of AdamW"),
        option("lr_scheduler", click.Choice(["constant", "linear", "cosine"]), settings.lr_scheduler, "lr over all steps"),
        varying("batch_size", Positive(int, 1), "queries per step"),
        option("top_k", Positive(int, 0), settings.top_k, "best trials kept of a group; 0: all, as bad ones are the contrast"),
        option("grad_clip", Positive(strict=True), settings.grad_clip, "largest norm of a gradient"),
        option("val_share", Positive(strict=True, below=1.0), settings.val_share, "share of queries held out"),
        option("early_stopping", Positive(int, 0), settings.early_stopping, "epochs without gain that end training; 0: never"),
        option("resume", str, AUTO, "interrupted run to go on from: id, folder, none, or auto (the newest of this step)"),
    )


gate_options = _grouped(
    thresholds_option,
    option("max_shots", Positive(int, 1), GateSettings.max_shots, "most shots that evaluation will use; pools must be larger"),
    on_bad_data_option,
)


resource_options = _grouped(
    dataset_option,
    vlm_option,
    option("encoder", str, "mini", "mini, or folder or hub name of a CLIP model"),
    option("seed", Positive(int, below=2**32), 0, "of every random choice"),
    option("device", click.Choice(["auto", "cpu", "cuda"]), AUTO, "auto takes a GPU when there is one"),
    option("batch_tokens", Positive(int, 0), 0, "tokens of a VLM batch; 0: 8192 on a CPU, 32768 on a GPU"),
    option("cache", click.Choice(["on", "read", "off"]), "on", "of VLM answers; read: none is added, off: none is used"),
    option("on_bad_item", click.Choice(["stop", "skip"]), DataSettings.on_bad_item, "skip: leave out what cannot be used"),
    option("hf_columns", Pairs("image_id=coco_id"), NONE, "of a hub data set, where they have other names, as answers=labels"),
    option("hf_splits", Splits(), ",".join(DataSettings.hf_splits), "of a hub data set, for training and evaluation"),
)


def make_pipeline(values: dict[str, Any], *, check: bool = True) -> Pipeline:
    """The pipeline for these options, which are taken out of ``values``; ``check`` looks at data set and models at once."""
    from lever_mlflow.pipeline.experiment import Pipeline
    from lever_mlflow.pipeline.resources import Resources, default_cache_dir

    places = ("dataset", "vlm", "vlm_model", "encoder", "device", "batch_tokens", "cache")
    names = {name: values.pop(name) for name in places}
    choices = {name: values.pop(name) for name in ("seed", "reward_mode", "use_fallback", "model_name") if name in values}
    gate = GateSettings(**{name: values.pop(name) for name in ("thresholds", "max_shots", "on_bad_data") if name in values})
    data = DataSettings(**{name: values.pop(name) for name in ("on_bad_item", "hf_columns", "hf_splits")})
    resources = Resources(**names, cache_dir=default_cache_dir(), data=data)
    if check:
        resources.check()
    return Pipeline(resources, gate=gate, **choices)


def in_processes(command: Callable[..., None]) -> Callable[..., None]:
    """A command that runs in as many processes as ``accelerate launch`` started: here if this one leads, else it follows."""

    @wraps(command)
    def run(**values: Any) -> None:
        from lever_mlflow import distributed
        from lever_mlflow.pipeline.resources import Resources

        processes = distributed.join(Resources(device=values["device"]).torch_device)
        if not processes.is_main_process:
            distributed.follow(processes)
            return
        command(**values)
        distributed.release(processes)

    return run


def in_order(values: tuple[float, ...]) -> tuple[int, ...]:
    """Whole numbers, ascending."""
    return tuple(sorted(int(value) for value in values))


def launch(command: click.Command) -> None:
    """Runs a click command; every error that a user can mend ends as one line on stderr and a non-zero exit code."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each small file hides the log
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing here reports to third parties
    warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\.")  # hints on schemas that we state ourselves
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("lever_mlflow").setLevel(logging.INFO)
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # a line for each checkpoint's input example
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command.main(standalone_mode=False)
    except click.UsageError as error:
        _fail(error.format_message(), error.exit_code)
    except (LeverError, OSError) as error:
        _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)


def _terminate(number: int, frame: Any) -> None:
    """Ends as on an error, so that what is open is closed and the run marked FAILED."""
    _fail("terminated", 128 + number)


def _fail(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
