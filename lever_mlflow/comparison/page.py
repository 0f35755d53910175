"""Writes a comparison as a report: the sections in their order, as Markdown or as HTML."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lever_mlflow.comparison.blocks import Block, Figure, Heading, Paragraph, to_html, to_markdown
from lever_mlflow.comparison.facts import Comparison
from lever_mlflow.comparison.sections import accuracy, baselines, conclusion, findings, picks, setup, training
from lever_mlflow.comparison.wording import Wording
from lever_mlflow.settings import Language, format_beta

__all__ = ["html", "markdown", "verdict"]

_SECTIONS = (
    setup.setup,
    setup.fairness,
    setup.training_configuration,
    training.curves,
    training.trends,
    accuracy.accuracies,
    accuracy.statistics,
    picks.epochs_compared,
    picks.overlap,
    baselines.baselines,
    baselines.ranking,
    picks.examples,
    findings.findings,
    conclusion.conclusion,
    conclusion.missing,
    conclusion.reproduce,
)


def markdown(facts: Comparison, language: Language, figures: Collection[str] = ()) -> str:
    """Writes the report as Markdown; ``figures`` are the names of the files beside it."""
    return to_markdown(_blocks(facts, Wording(language), figures))


def html(facts: Comparison, language: Language, figures: Mapping[str, bytes]) -> str:
    """Writes the report as a self-contained HTML page; ``figures`` are the PNGs in it by name."""
    return to_html(_blocks(facts, Wording(language), figures), figures, language)


def verdict(facts: Comparison, language: Language) -> str:
    """Says what the comparison comes to, in one sentence."""
    return conclusion.verdict(facts, Wording(language))


def _blocks(facts: Comparison, words: Wording, figures: Collection[str]) -> list[Block]:
    """Returns all sections in order; figures that were not drawn are left out."""
    title = words.say("title", betas=" vs ".join(format_beta(run.kl_beta) for run in facts.runs))
    blocks = [block for section in _SECTIONS for block in section(facts, words)]
    shown = [block for block in blocks if not isinstance(block, Figure) or block.file in figures]
    return [Heading(1, title), Paragraph(conclusion.verdict(facts, words), strong=True), *shown]
