"""Renders self-contained HTML pages: one style, every text escaped, figures inside the page, nothing loaded from elsewhere.

A page is a Jinja template in the ``templates`` folder of the package that it belongs to. It extends
``files/templates/page.html`` and may use the macros of ``files/templates/macros.html``.
"""

from __future__ import annotations

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["ENVIRONMENT", "render"]


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
