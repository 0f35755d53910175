"""Says what a command would do, without doing it: which steps are reused, which would run, and how many prompts they ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Plan", "PlannedStep", "Unfinished", "active_plan", "planning"]


class Unfinished(Exception):
    """Says that a step would have to run before the plan can look at those that depend on its result."""


class PlannedStep(NamedTuple):
    """Holds what a plan knows of a step.

    Attributes:
        name: of the step.
        prompts: how many prompts it would ask at most.
        run_id: of the finished run that would be reused; None where the step would run.
    """

    name: str
    prompts: int
    run_id: str | None


@dataclass
class Plan:
    """Collects the steps that a command came across while it was planned, in order."""

    steps: dict[str, PlannedStep] = field(default_factory=dict)

    def look(self, name: str, prompts: int, run_id: str | None) -> None:
        """Adds a step, with the finished run that would be reused."""
        self.steps[name] = PlannedStep(name, prompts, run_id)

    @property
    def missing(self) -> list[PlannedStep]:
        """Lists the steps that would run."""
        return [step for step in self.steps.values() if step.run_id is None]


_active: ContextVar[Plan | None] = ContextVar("plan", default=None)


def active_plan() -> Plan | None:
    """Returns the plan that is being made; None where steps are to run."""
    return _active.get()


@contextmanager
def planning() -> Iterator[Plan]:
    """Lets nothing run within the block: steps are added to the plan, and the first one that would run ends the block."""
    plan = Plan()
    token = _active.set(plan)
    try:
        yield plan
    except Unfinished:
        pass
    finally:
        _active.reset(token)
