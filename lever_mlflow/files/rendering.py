"""Renders text from Jinja templates: self-contained HTML pages, and Markdown.

A template lies in the ``templates`` folder of the package that it belongs to. An HTML page extends
``files/templates/page.html`` and may use the macros of ``files/templates/macros.html``: all pages have one style, hold their
figures inside, and load nothing from elsewhere. Every text in them is escaped.
"""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

__all__ = ["ENVIRONMENT", "render"]


def render(template: str, /, **values: object) -> str:
    """Fills a template with values and returns the text.

    In HTML every value is escaped, unless it is ``markupsafe.Markup``. Markdown takes values as they are. Lone surrogates
    become ``?``, since no file can hold them.

    Args:
        template: path of the template below the package ``lever_mlflow``, such as ``gate/templates/gate.html``.
        values: what the template names; the template fails where it uses a name that is not among them.
    """
    text = ENVIRONMENT.get_template(template).render(**values)
    return text.encode("utf-8", "replace").decode("utf-8")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


ENVIRONMENT = Environment(
    loader=PackageLoader("lever_mlflow", package_path=""),
    autoescape=select_autoescape(),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.filters["base64"] = _base64
