"""Describes a page and its parts, and writes them as Markdown and as HTML. Every text is taken literally in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lever_mlflow.files.control_characters import without_controls
from lever_mlflow.files.rendering import markdown_text, render

__all__ = [
    "Block",
    "Bullets",
    "Card",
    "Code",
    "Figure",
    "Heading",
    "Item",
    "Line",
    "Link",
    "Page",
    "Paragraph",
    "Section",
    "SideBySide",
    "Table",
    "block_to_markdown",
    "to_html",
    "to_markdown",
]


@dataclass(frozen=True)
class Heading:
    """Holds a title within a section; levels begin at 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Holds running text; ``strong`` marks what is to be read first, and ``label`` says what the text is."""

    text: str
    strong: bool = False
    label: str = ""


@dataclass(frozen=True)
class Link:
    """Holds a link to a section of the page (``#`` and its key) or to another page (``http://`` or ``https://``)."""

    text: str
    target: str


@dataclass(frozen=True)
class Line:
    """Holds short parts that stand in one line."""

    parts: Sequence[str | Link]


@dataclass(frozen=True)
class Bullets:
    """Holds the items of a list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Holds rows of cells under a head. A line break within a cell is kept in HTML."""

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


@dataclass(frozen=True)
class Item:
    """Holds a small picture, named by its file, and the lines of text beside it. Markdown leaves the picture out."""

    picture: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Card:
    """Holds a question, and the demonstrations that several policies put before it, each policy under a title."""

    question: Item
    sides: Sequence[tuple[str, Sequence[Item]]]


@dataclass(frozen=True)
class SideBySide:
    """Holds blocks that stand side by side where the page is wide enough."""

    blocks: Sequence[Table | Figure]


Block = Heading | Paragraph | Line | Bullets | Table | Code | Figure | Card | SideBySide


@dataclass(frozen=True)
class Section:
    """Holds a part of a page that HTML folds under its title; links name it by its key."""

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """Holds a page: its title, what is seen first, the title of the table of contents, and the sections."""

    title: str
    top: Sequence[Block]
    contents: str
    sections: Sequence[Section]


def to_markdown(page: Page) -> str:
    """Writes a Markdown page; figures are files beside it."""
    links = "\n".join(f"- [{_plain(section.title)}](#{section.key})" for section in page.sections)
    parts = [f"# {_plain(page.title)}", *map(block_to_markdown, page.top), f"**{_plain(page.contents)}**", links]
    for section in page.sections:
        parts += [f'<a id="{section.key}"></a>', f"## {_plain(section.title)}", *map(block_to_markdown, section.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_html(page: Page, images: Mapping[str, bytes], language: str) -> str:
    """Writes a self-contained HTML page with its images inside; a picture that is not among them is left out."""
    return render(
        "comparison/templates/report.html",
        page=page,
        top=_named(page.top),
        sections=[(section, _named(section.blocks)) for section in page.sections],
        images=images,
        named=_named,
        language=language,
    )


def _named(blocks: Sequence[Block]) -> list[tuple[str, Block]]:
    """Returns blocks behind the names of their types."""
    return [(type(block).__name__, block) for block in blocks]


def block_to_markdown(block: Block) -> str:
    """Writes a block as Markdown."""
    match block:
        case Heading():
            return f"{'#' * block.level} {_plain(block.text)}"
        case Paragraph():
            text = f"**{_plain(block.text)}**" if block.strong else _plain(block.text)
            return f"**{_plain(block.label)}** {text}" if block.label else text
        case Line():
            return " · ".join(_markdown_part(part) for part in block.parts)
        case Bullets():
            return "\n".join(f"- {_plain(item)}" for item in block.items)
        case Table():
            lines = [block.head, ["---"] * len(block.head), *block.rows]
            return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)
        case Code():
            return f"```\n{block.text}\n```"
        case Figure():
            return f"![{_plain(block.description)}]({block.file})"
        case Card():
            sides = [f"- {_plain(title)}\n{_markdown_items(items)}".rstrip() for title, items in block.sides]
            return "\n".join([f"**{_plain(' '.join(block.question.lines))}**\n", *sides])
        case SideBySide():
            return "\n\n".join(map(block_to_markdown, block.blocks))


def _markdown_part(part: str | Link) -> str:
    return f"[{_plain(part.text)}]({part.target})" if isinstance(part, Link) else _plain(part)


def _markdown_items(items: Sequence[Item]) -> str:
    return "\n".join(f"  - {_plain(' '.join(item.lines))}" for item in items)


def _plain(text: str) -> str:
    return markdown_text(_one_line(text))


def _one_line(text: str) -> str:
    return " ".join(without_controls(text.encode("utf-8", "replace").decode("utf-8")).replace("```", "'''").split())
