"""Shows what training logged: the curves, and how they read."""

from __future__ import annotations

from lever_mlflow.comparison.blocks import Block, Heading, Paragraph, Table
from lever_mlflow.comparison.curves import CURVES, change, present
from lever_mlflow.comparison.facts import Comparison, Curves
from lever_mlflow.comparison.sections.overview import unevaluated
from lever_mlflow.comparison.wording import Wording

__all__ = ["curves", "trends"]

_FURTHER = (  # shown where they were logged, here or by the predecessor
    *("kl_exact", "expected_reward", "frac_reward_zero_std", "picks_changed"),
    *("kl_loss", "grpo_loss", "mean_ratio", "mean_advantage"),
)


def curves(facts: Comparison, words: Wording) -> list[Block]:
    """Shows the metrics of each run by epoch."""
    if not _any_metrics(facts):
        return [Paragraph(words["curves_none"])]
    blocks: list[Block] = [*unevaluated(facts, words), words.figure("training_curves.png", "curves")]
    for run in facts.curves:
        names = [*CURVES, *(name for name in _FURTHER if name in run.values)]
        head = ["Epoch", *(_title(name) if name in CURVES else name for name in names)]
        rows = [[str(epoch), *(words.number(run.values[name][i]) for name in names)] for i, epoch in enumerate(run.epochs)]
        blocks += [Heading(3, words.say("curves_of", run=words.run(run.run))), Table(head, rows)]
    return blocks


def _any_metrics(facts: Comparison) -> bool:
    return any(epoch.metrics for run in facts.runs for epoch in run.epochs)


def _title(name: str) -> str:
    title = name.replace("_", " ").title()
    return "KL" if title == "Kl" else title.replace("Advantage", "Adv").replace("Ppo", "PPO")


def trends(facts: Comparison, words: Wording) -> list[Block]:
    """Reads the metrics of each run from epoch to epoch; nothing where no run has any."""
    if not _any_metrics(facts):
        return []
    blocks: list[Block] = []
    for run in facts.curves:
        head = [words["metric"], *(words.say("epoch", epoch=epoch) for epoch in run.epochs), words["trend"]]
        rows = [[name, *_values(run, name, words), _trend(run, name, words)] for name in CURVES]
        blocks += [Heading(3, words.say("trends_of", run=words.run(run.run))), Table(head, rows)]
    return blocks


def _values(run: Curves, name: str, words: Wording) -> list[str]:
    """Writes each value, with the change from the one before it."""
    changes = [None, *run.changes[name]]
    return [
        words.number(value) + ("" if moved is None else f" ({words.change(name, moved)})")
        for value, moved in zip(run.values[name], changes, strict=True)
    ]


def _trend(run: Curves, name: str, words: Wording) -> str:
    values = present(run.values[name])
    first, last = (values[0], values[-1]) if values else (None, None)
    text = words.say(
        f"trend_{run.trends[name]}",
        first=words.number(first),
        last=words.number(last),
        change=words.change(name, change(name, first, last)),
    )
    moves = name == "kl" and run.trends[name] in ("rising", "falling")
    return text + words[f"kl_{run.trends[name]}"] if moves else text
