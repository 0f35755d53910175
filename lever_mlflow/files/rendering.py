"""Renders text from Jinja templates: self-contained HTML pages, and Markdown.

A template lies in the ``templates`` folder of the package that it belongs to. An HTML page extends
``files/templates/page.html`` and may use the macros of ``files/templates/macros.html``: all pages have one style, hold their
figures inside, and load nothing from elsewhere. Every text in them is escaped.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from lever_mlflow.files.control_characters import without_controls

__all__ = ["ENVIRONMENT", "MARKDOWN", "markdown_text", "render"]


def render(template: str, /, **values: object) -> str:
    """Fills a template with values and returns the text.

    Every value is shown literally: it is escaped for HTML, or for Markdown by ``markdown_text`` where the template's name ends
    in ``.md``, unless it is ``markupsafe.Markup``. Control characters are shown as their escapes, and lone
    surrogates become ``?``.

    Args:
        template: path of the template below the package ``lever_mlflow``, such as ``gate/templates/gate.html``.
        values: what the template names; the template fails where it uses a name that is not among them.
    """
    environment = MARKDOWN if template.endswith(".md") else ENVIRONMENT
    text = environment.get_template(template).render(**values)
    return without_controls(text.encode("utf-8", "replace").decode("utf-8"))


def markdown_text(text: str) -> str:
    """Escapes a text so that Markdown shows it as it is: nothing in it is a tag, a link, the border of a table or emphasis."""
    one_line = re.sub(r"\s+", " ", text.replace("```", "'''"))
    escaped = re.sub(r"([\\`*|]|(?<=\])[(:\[])", r"\\\1", one_line).replace("&", "&amp;")
    escaped = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", escaped)  # before anything else it begins no tag
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", escaped)  # within a word it is no emphasis


def _finalized(value: object) -> object:
    """Returns a value of a Markdown template as it is written there."""
    return value if isinstance(value, Markup) else markdown_text(str(value))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _environment(autoescape: bool | Callable[[str | None], bool], finalize: Callable[[object], object] | None) -> Environment:
    return Environment(
        loader=PackageLoader("lever_mlflow", package_path=""),
        autoescape=autoescape,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


ENVIRONMENT, MARKDOWN = _environment(select_autoescape(), None), _environment(False, _finalized)
ENVIRONMENT.filters["base64"] = _base64
