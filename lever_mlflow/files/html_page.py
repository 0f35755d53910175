"""Renders self-contained HTML pages: one style, every text escaped, figures inside the page, nothing loaded from elsewhere.

A page is a Jinja template in the ``templates`` folder of the package that it belongs to. It extends
``files/templates/page.html`` and may use the macros of ``files/templates/macros.html``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["ENVIRONMENT", "figure", "page", "render", "table", "text"]


def render(template: str, /, **values: object) -> str:
    """Fills a template with values and returns the page.

    Every value is escaped, unless it is ``markupsafe.Markup``. Lone surrogates become ``?``, since no file can hold them.

    Args:
        template: path of the template below the package ``lever_mlflow``, such as ``gate/templates/gate.html``.
        values: what the template names; the template fails where it uses a name that is not among them.
    """
    page = ENVIRONMENT.get_template(template).render(**values)
    return page.encode("utf-8", "replace").decode("utf-8")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


ENVIRONMENT = Environment(
    loader=PackageLoader("lever_mlflow", package_path=""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters["base64"] = _base64


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin-bottom: 1rem } th, td { text-align: left; vertical-align: top;
padding: .3rem .6rem; border-bottom: 1px solid #d1d9e0; max-width: 36rem;
overflow-wrap: break-word; font-variant-numeric: tabular-nums }
.scroll { overflow-x: auto } small { color: #59636e } img { max-width: 100%; height: auto } summary { cursor: pointer }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto } code { overflow-wrap: anywhere }
"""


def page(title: str, body: str, *, language: str = "en", style: str = "") -> str:
    """A whole page around ``body``, which is HTML; the title is text."""
    return f"""<!DOCTYPE html>
<html lang="{language}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title><style>{_STYLE}{style}</style></head><body>
{body}
</body></html>
"""


def text(value: object) -> str:
    """Escaped, and without lone surrogates, which no file could be written with."""
    return escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def table(head: Iterable[object], rows: Iterable[Iterable[str]]) -> str:
    """A table that scrolls sideways where it is wide; the head is text, cells are HTML."""
    heads = "".join(f"<th>{text(cell)}</th>" for cell in head)
    first = f"<tr>{heads}</tr>\n" if heads else ""
    lines = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>{first}{lines}</table></div>'


def figure(png: bytes, description: str) -> str:
    """A PNG inside the page, and what it shows in words."""
    return f'<img alt="{text(description)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
