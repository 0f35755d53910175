"""Writes a comparison as a report: what is seen first, and the sections in their order, as Markdown or as HTML."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from lever_mlflow.comparison.blocks import (
    Block,
    Figure,
    Line,
    Page,
    Section,
    SideBySide,
    block_to_markdown,
    to_html,
    to_markdown,
)
from lever_mlflow.comparison.facts import Comparison
from lever_mlflow.comparison.sections import accuracy, baselines, conclusion, findings, overview, picks, setup, training
from lever_mlflow.comparison.wording import Wording
from lever_mlflow.settings import Language

__all__ = ["choice", "html", "markdown", "opening", "verdict"]

_SECTIONS: Mapping[str, Callable[[Comparison, Wording], list[Block]]] = {  # key of a section's title -> its blocks
    "findings": findings.findings,
    "differences_best": accuracy.best_differences,
    "baselines": baselines.baselines,
    "curve": baselines.ranking,
    "examples": picks.examples,
    "accuracy": accuracy.accuracies,
    "statistics": accuracy.statistics,
    "fairness": setup.fairness,
    "setup": setup.setup,
    "training": setup.training_configuration,
    "curves": training.curves,
    "trends": training.trends,
    "epochs": picks.epochs_compared,
    "overlap": picks.overlap,
    "best_model": conclusion.best_models,
    "missing_parts": conclusion.missing,
    "reproduce": conclusion.reproduce,
}


def markdown(facts: Comparison, language: Language, figures: Collection[str] = ()) -> str:
    """Writes the report as Markdown; ``figures`` are the names of the files beside it."""
    return to_markdown(_page(facts, Wording.of(facts, language), figures))


def html(facts: Comparison, language: Language, images: Mapping[str, bytes]) -> str:
    """Writes the report as a self-contained HTML page; ``images`` are its figures and the pictures of examples by name."""
    return to_html(_page(facts, Wording.of(facts, language), images), images, language)


def opening(facts: Comparison, language: Language) -> list[str]:
    """Writes what the report opens with as parts of Markdown: verdict, choice, and the table at the largest size."""
    blocks = [block for block in overview.overview(facts, Wording.of(facts, language)) if not isinstance(block, Line)]
    return [part for block in _drawn(blocks, ()) if (part := block_to_markdown(block))]


def verdict(facts: Comparison, language: Language) -> str:
    """Says what the comparison comes to, in a sentence or two."""
    return conclusion.verdict(facts, Wording.of(facts, language))


def choice(facts: Comparison, language: Language) -> str:
    """Names the run to be taken, and says why."""
    return conclusion.choice(facts, Wording.of(facts, language))


def _page(facts: Comparison, words: Wording, figures: Collection[str]) -> Page:
    """Returns the whole page; figures that were not drawn are left out, and sections without anything to say too."""
    blocks = {key: _drawn(section(facts, words), figures) for key, section in _SECTIONS.items()}
    return Page(
        title=words.say(
            "title" if facts.sizes else "title_curves", runs=words.run(" vs ".join(run.label for run in facts.runs))
        ),
        top=_drawn(overview.overview(facts, words), figures),
        contents=words["contents"],
        sections=[Section(key, words[key], shown) for key, shown in blocks.items() if shown],
    )


def _drawn(blocks: Sequence[Block], figures: Collection[str]) -> list[Block]:
    """Leaves out the figures that are not among those that were drawn."""
    shown: list[Block] = []
    for block in blocks:
        if isinstance(block, SideBySide):
            shown.append(
                SideBySide([inner for inner in block.blocks if not isinstance(inner, Figure) or inner.file in figures])
            )
        elif not isinstance(block, Figure) or block.file in figures:
            shown.append(block)
    return shown
