"""Describes the parts of a page, and writes them as Markdown and as HTML. Every text is taken literally in both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lever_mlflow.files.rendering import render

__all__ = ["Block", "Bullets", "Code", "Figure", "Heading", "Paragraph", "Table", "to_html", "to_markdown"]


@dataclass(frozen=True)
class Heading:
    """Holds a title; levels begin at 1."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Holds running text; ``strong`` marks what is to be read first."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Bullets:
    """Holds the items of a list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Holds rows of cells under a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Code:
    """Holds commands, a line each."""

    lines: Sequence[str]

    @property
    def text(self) -> str:
        """Joins the lines, none of which contains a line break of its own."""
        return "\n".join(map(_one_line, self.lines))


@dataclass(frozen=True)
class Figure:
    """Names the file of a PNG, and says in words what it shows."""

    file: str
    description: str


Block = Heading | Paragraph | Bullets | Table | Code | Figure


def to_markdown(blocks: Sequence[Block]) -> str:
    """Writes a Markdown page; figures are files beside it."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def to_html(blocks: Sequence[Block], figures: Mapping[str, bytes], language: str) -> str:
    """Writes a self-contained HTML page with the figures inside; its title is that of the first heading."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    named = [(type(block).__name__, block) for block in blocks]
    return render("comparison/templates/report.html", title=title, blocks=named, figures=figures, language=language)


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_plain(block.text)}"
        case Paragraph():
            return f"**{_plain(block.text)}**" if block.strong else _plain(block.text)
        case Bullets():
            return "\n".join(f"- {_plain(item)}" for item in block.items)
        case Table():
            lines = [block.head, ["---"] * len(block.head), *block.rows]
            return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)
        case Code():
            return f"```\n{block.text}\n```"
        case Figure():
            return f"![{_plain(block.description)}]({block.file})"


def _plain(text: str) -> str:
    """Escapes a text so that Markdown shows it as it is: nothing in it is a tag, a link, the border of a table or emphasis."""
    escaped = re.sub(r"([\\`*|]|(?<=\])[(:\[])", r"\\\1", _one_line(text)).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", escaped)  # within a word it is no emphasis


def _one_line(text: str) -> str:
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").replace("```", "'''").split())
