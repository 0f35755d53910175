"""Writes the figures of a comparison in the words of one language."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lever_mlflow.comparison.blocks import Figure
from lever_mlflow.comparison.curves import DIGITS, IN_PERCENT
from lever_mlflow.comparison.facts import BEST, Comparison, TestedDifference
from lever_mlflow.comparison.fields import KL_BETA
from lever_mlflow.comparison.findings import Interval
from lever_mlflow.comparison.results import RegisteredModel, RunResult, Scalar
from lever_mlflow.comparison.words import WORDS
from lever_mlflow.evaluation.overlap import IdenticalPicks
from lever_mlflow.evaluation.policies import START
from lever_mlflow.evaluation.rounding import decimals, interval_text
from lever_mlflow.settings import Language

__all__ = ["NOTHING", "Wording", "policy_label"]

NOTHING = "–"  # in a cell that has nothing to say
_SMALLEST_P = 0.001  # p-values below it are not told apart
_ARROWS = {"up": "⬆️", "down": "⬇️"}


@dataclass(frozen=True)
class Wording:
    """Writes texts and figures in a language.

    Attributes:
        by_beta: whether runs are named by their betas, else by their labels alone.
        varied: the aspects or fields that are meant to differ.
    """

    language: Language
    by_beta: bool = True
    varied: tuple[str, ...] = (KL_BETA,)

    @classmethod
    def of(cls, facts: Comparison, language: Language) -> Wording:
        """Returns the wording for a comparison, whose runs it names as the comparison does."""
        return cls(language, facts.by_beta, facts.varied)

    def __getitem__(self, key: str) -> str:
        """Returns the text of that key, which has no fields but those that every text may have."""
        return self.say(key)

    def say(self, key: str, **values: Any) -> str:
        """Fills the fields of a text."""
        return self._text(key).format(**self._terms, **values)

    def _text(self, key: str) -> str:
        words = WORDS[self.language]
        return words[key] if self.by_beta else words.get(f"{key}/runs", words[key])

    @cached_property
    def _terms(self) -> dict[str, str]:
        """Returns the fields that every text may have."""
        noun = self._text("noun")
        varied = KL_BETA.upper() if self.by_beta else self.join(self.varied) or noun
        return {"noun": noun, "nouns": self._text("nouns"), "varied": varied}

    def join(self, parts: Iterable[str]) -> str:
        """Lists parts as the language does."""
        *others, last = [*parts] or [""]
        return self._text("and").join([self._text("comma").join(others), last]) if others else last

    def numbers(self, values: Iterable[int]) -> str:
        """Lists whole numbers as the language does."""
        return self.join(map(str, values))

    def run(self, label: str, *, short: bool = False, second: bool = False) -> str:
        """Names a run: by its label, and where that is a beta, with the name of beta before it.

        Args:
            short: whether the name of beta is the one of running text, ``beta 0.12`` instead of ``KL_BETA=0.12``.
            second: whether the run is the second of two, which some languages name by the label alone.
        """
        if not self.by_beta:
            return label
        return self.say(f"beta{'_short' * short}{'_second' * second}", beta=label)

    def runs(self, labels: Iterable[str]) -> str:
        """Lists runs, with the name of beta before all of them."""
        return self.run(self.join(labels))

    def column(self) -> str:
        """Returns the title of a column of labels."""
        return KL_BETA.upper() if self.by_beta else self["run"]

    def run_epoch(self, label: str, epoch: int) -> str:
        """Names an epoch of a run."""
        return self.say("run_epoch", run=self.run(label), epoch=epoch)

    def label(self, label: str) -> str:
        """Writes the label of a difference: an epoch, or the best ones."""
        return self["best"] if label == BEST else self.say("epoch", epoch=label)

    def shots(self, *counts: int) -> str:
        """Writes numbers of shots: ``1 shot``, ``1 and 2 shots``."""
        return self.say("shot" if counts == (1,) else "shots_counted", shots=self.numbers(counts))

    def epochs(self, numbers: Sequence[int]) -> str:
        """Names epochs: ``epoch 3``, ``epochs 1 and 2``."""
        return self.say("epoch_named" if len(numbers) == 1 else "epochs_named", epochs=self.numbers(numbers))

    def tests(self, count: int | str) -> str:
        """Writes a number of comparisons."""
        return self.say("test_counted" if str(count) == "1" else "tests_counted", tests=count)

    def figure(self, file: str, name: str) -> Figure:
        """Places a figure, and says what it shows."""
        return Figure(file, self[f"figure_{name}"])

    def accuracy(self, value: float | None) -> str:
        """Writes an accuracy, which is given in percent."""
        return self["missing"] if value is None else self.say("percent", value=decimals(value))

    def accuracy_if_stated(self, value: float | None) -> str:
        """Writes an accuracy that there need not be."""
        return self["unknown"] if value is None else self.accuracy(value)

    def share(self, value: float) -> str:
        """Writes a share of 1 in percent."""
        return self.say("percent", value=decimals(100.0 * value, 1))

    def difference(self, points: float | None) -> str:
        """Writes a difference of accuracies in a column whose title says that it is in points."""
        return self["missing"] if points is None else decimals(points, signed=True)

    def points(self, points: float, *, signed: bool = True) -> str:
        """Writes a difference of accuracies with its unit."""
        return self.say("points", value=decimals(points, signed=signed))

    def interval(self, ends: Interval) -> str:
        """Writes an interval of a difference, in points."""
        return interval_text(ends)

    def accuracy_interval(self, ends: Interval | None) -> str:
        """Writes an interval of an accuracy, in percent, that there need not be."""
        return self["unknown"] if ends is None else interval_text(ends, signed=False)

    def p_value(self, value: float) -> str:
        """Writes a p-value; tiny ones, whose digits mean nothing, as being below a bound."""
        return f"< {_SMALLEST_P:g}" if value < _SMALLEST_P else f"{value:.3g}"

    def p_equals(self, value: float) -> str:
        """Writes a p-value with its name, as in running text."""
        text = self.p_value(value)
        return f"p {text}" if text.startswith("<") else f"p = {text}"

    def change(self, metric: str, value: float | None) -> str:
        """Writes the change of a metric: in percent, with as many decimals as it needs, or in the metric's own unit."""
        if value is None:
            return NOTHING
        if metric not in IN_PERCENT:
            return f"{value:+.3g}" if value else "0"
        small = 0.0 < abs(value) < 0.05
        return self.say("percent", value=f"{value:+.1g}" if small else decimals(value, 1, signed=True))

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

    def arrow(self, difference: TestedDifference) -> str:
        """Shows the way of a significant difference; nothing beside any other."""
        return _ARROWS.get(difference.direction, "") if difference.significant else ""

    def reading(self, difference: TestedDifference) -> str:
        """Says whether a difference is significant, and shows its way where it is."""
        if difference.significant:
            return f"{self.arrow(difference)} {self['significant']}"
        return self["tied" if difference.direction == "tie" else "not_significant"]

    def explain(self, reason: IdenticalPicks) -> str:
        """Says why two policies pick the same."""
        figures = {name: f"{value:.2g}" if isinstance(value, float) else value for name, value in dict(reason).items()}
        return self.say(f"why_{reason.rule}", **figures)


def policy_label(run: RunResult, policy: str) -> str:
    """Names a policy; the name of the start checkpoint says which one it is."""
    return f"start ({run.config['start']})" if policy == START and "start" in run.config else policy
