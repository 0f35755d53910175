"""The parts of a page, and how each is written as Markdown and as HTML. Every text is taken literally in both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lever_mlflow.files import html_page

__all__ = ["Block", "Bullets", "Code", "Figure", "Heading", "Paragraph", "Table", "to_html", "to_markdown"]


@dataclass(frozen=True)
class Heading:
    """A title of a level from 1."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Text; ``strong`` for what is to be read first."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows under a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Code:
    """Commands, a line each."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Figure:
    """A PNG by its file's name, and what it shows in words."""

    file: str
    description: str


Block = Heading | Paragraph | Bullets | Table | Code | Figure


def to_markdown(blocks: Sequence[Block]) -> str:
    """A Markdown page; figures are files beside it."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def to_html(blocks: Sequence[Block], figures: Mapping[str, bytes], language: str) -> str:
    """A self-contained HTML page with the figures inside; its title is that of the first block."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    return html_page.page(title, "\n".join(_html(block, figures) for block in blocks), language=language)


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
            return "\n".join(["```", *(_one_line(line) for line in block.lines), "```"])
        case Figure():
            return f"![{_plain(block.description)}]({block.file})"


def _html(block: Block, figures: Mapping[str, bytes]) -> str:
    text = html_page.text
    match block:
        case Heading():
            return f"<h{block.level}>{text(block.text)}</h{block.level}>"
        case Paragraph():
            return f"<p><strong>{text(block.text)}</strong></p>" if block.strong else f"<p>{text(block.text)}</p>"
        case Bullets():
            return "<ul>" + "".join(f"<li>{text(item)}</li>" for item in block.items) + "</ul>"
        case Table():
            return html_page.table(block.head, [[text(cell) for cell in row] for row in block.rows])
        case Code():
            return f"<pre>{text(chr(10).join(map(_one_line, block.lines)))}</pre>"
        case Figure():
            return html_page.figure(figures[block.file], block.description)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: on one line, nothing in it a tag, a link, a table's border or emphasis."""
    escaped = re.sub(r"([\\`*|]|(?<=\])[(:\[])", r"\\\1", _one_line(text)).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", escaped)  # within a word it is no emphasis


def _one_line(text: str) -> str:
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").replace("```", "'''").split())
