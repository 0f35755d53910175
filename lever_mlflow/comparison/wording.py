"""Writes the figures of a comparison in the words of one language."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from lever_mlflow.comparison.blocks import Figure
from lever_mlflow.comparison.curves import DIGITS
from lever_mlflow.comparison.facts import BEST, TestedDifference
from lever_mlflow.comparison.findings import Interval
from lever_mlflow.comparison.results import RegisteredModel, RunResult, Scalar
from lever_mlflow.comparison.words import WORDS
from lever_mlflow.evaluation.overlap import IdenticalPicks
from lever_mlflow.evaluation.policies import START
from lever_mlflow.settings import Language, format_beta

__all__ = ["NOTHING", "Wording", "decimals", "policy_label"]

NOTHING = "–"  # in a cell that has nothing to say
_ARROWS = {"up": "⬆️", "down": "⬇️", "tie": "➡️"}


@dataclass(frozen=True)
class Wording:
    """Writes texts and figures in a language."""

    language: Language

    def __getitem__(self, key: str) -> str:
        """Returns the text of that key, which has no fields to be filled."""
        return WORDS[self.language][key]

    def say(self, key: str, **values: Any) -> str:
        """Fills the fields of a text."""
        return self[key].format(**values)

    def join(self, parts: Iterable[str]) -> str:
        """Lists parts as the language does."""
        return self["and"].join(parts)

    def beta(self, kl_beta: float) -> str:
        """Writes a beta with its name."""
        return self.say("beta", beta=format_beta(kl_beta))

    def label(self, label: str) -> str:
        """Writes the label of a difference: an epoch, or the best ones."""
        return self["best"] if label == BEST else self.say("epoch", epoch=label)

    def figure(self, file: str, name: str) -> Figure:
        """Places a figure, and says what it shows."""
        return Figure(file, self[f"figure_{name}"])

    def percent(self, value: float | None, *, signed: bool = False, digits: int | None = None) -> str:
        """Writes a percentage; ``digits`` as for ``decimals``."""
        if value is None:
            return self["missing"]
        return self.say("percent", value=decimals(value, digits, signed=signed))

    def share(self, value: float) -> str:
        """Writes a share of 1 in percent."""
        return self.percent(100.0 * value, digits=1)

    def accuracy_if_stated(self, value: float | None) -> str:
        """Writes an accuracy that there need not be."""
        return self["unknown"] if value is None else self.percent(value)

    def percent_change(self, value: float) -> str:
        """Writes a change with one decimal, or with as many as a small change needs not to look like none."""
        small = 0.0 < abs(value) < 0.05
        return self.say("percent", value=f"{value:+.1g}") if small else self.percent(value, signed=True, digits=1)

    def interval(self, ends: Interval | None) -> str:
        """Writes an interval in points."""
        return self["unknown"] if ends is None else f"[{ends[0]:+.2f}, {ends[1]:+.2f}]"

    def number(self, value: float | None) -> str:
        """Writes a metric."""
        return self["missing"] if value is None else f"{value:.{DIGITS}g}"

    def value(self, value: Scalar | None) -> str:
        """Writes the value of a field."""
        if value is None:
            return self["unknown"]
        if isinstance(value, bool):
            return self["yes" if value else "no"]
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    def registered(self, model: RegisteredModel | None) -> str:
        """Names a registered version."""
        return self["not_registered"] if model is None else self.say("registered_as", **dict(model))

    def reading(self, difference: TestedDifference) -> str:
        """Shows which way a difference goes, and whether it is significant."""
        arrow = _ARROWS[difference.direction]
        return self.say("significant", direction=arrow) if difference.significant else arrow

    def explain(self, reason: IdenticalPicks) -> str:
        """Says why two policies pick the same."""
        figures = {name: f"{value:.2g}" if isinstance(value, float) else value for name, value in dict(reason).items()}
        return self.say(f"why_{reason.rule}", **figures)


def policy_label(run: RunResult, policy: str) -> str:
    """Names a policy; the name of the start checkpoint says which one it is."""
    return f"start ({run.config['start']})" if policy == START and "start" in run.config else policy


def decimals(value: float, digits: int | None = None, *, signed: bool = False) -> str:
    """Rounds half up to so many decimals, or to one or two as the value needs; never writes a negative zero."""
    step = Decimal(1).scaleb(-2 if digits is None else -digits)
    rounded = Decimal(f"{value:.9f}").quantize(step, ROUND_HALF_UP)
    text = f"{rounded if rounded else abs(rounded):{'+' if signed and rounded else ''}f}"
    return text[:-1] if digits is None and text.endswith("0") else text
