"""Text rendered from templates: the layout of pages, the macros and the escaping."""

import base64

import jinja2
import pytest
from markupsafe import Markup

from lever_mlflow.files import rendering

HOSTILE = "<script>alert('x')</script> & \"quotes\" é 日本"
ESCAPED = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quotes&#34; é 日本"

PAGE = """{% extends "files/templates/page.html" %}
{% from "files/templates/macros.html" import figure, table %}
{% block title %}{{ title }}{% endblock %}
{% block style %}
h1 { color: red }
{% endblock %}
{% block body %}
<h1>{{ title }}</h1>
{{ table(head, rows) }}
{{ figure(png, title) }}
{% endblock %}
"""


@pytest.fixture(autouse=True)
def template(monkeypatch):
    """Adds the templates test.html and test.md to those of the package."""
    extra = jinja2.DictLoader({"test.html": PAGE, "test.md": "# {{ title }}\n"})
    for environment in (rendering.ENVIRONMENT, rendering.MARKDOWN):
        monkeypatch.setattr(environment, "loader", jinja2.ChoiceLoader([extra, environment.loader]))


def render(**values):
    return rendering.render("test.html", **{"title": "t", "head": (), "rows": [], "png": b"", **values})


def test_a_page_has_the_layout_and_its_own_style():
    page = render(title="Results")
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert page.endswith("</body></html>\n")
    assert "<title>Results</title>" in page
    assert page.index("max-width: 84rem") < page.index("h1 { color: red }") < page.index("</style>")
    assert render(language="zh").startswith('<!DOCTYPE html>\n<html lang="zh">')


def test_every_text_is_escaped():
    page = render(title=HOSTILE, head=[HOSTILE], rows=[[HOSTILE]])
    assert "<script>" not in page
    assert page.count(ESCAPED) == 5  # the title, the heading, a column's name, a cell, a figure's description


def test_markdown_shows_texts_as_they_are():
    """No tag, link, code, emphasis or border of a table comes from a value, and none breaks its line."""
    hostile = "<b>&[x](http://e) | a_b _c_ *d* `f`\n# g é 日本"
    escaped = "&lt;b>&amp;[x]\\(http://e) \\| a_b \\_c\\_ \\*d\\* \\`f\\` # g é 日本"
    assert rendering.render("test.md", title=hostile) == f"# {escaped}\n"
    assert rendering.render("test.md", title=Markup("**b**")) == "# **b**\n"


def test_control_characters_are_shown_as_their_escapes():
    page = render(title="a\x1b[31m\u202eb\0")
    assert r"<h1>a\x1b[31m\u202eb\x00</h1>" in page
    assert rendering.render("test.md", title="a\x1b[31m\u202eb\0") == "# a\\x1b[31m\\u202eb\\x00\n"


def test_a_table_has_one_row_per_row_and_a_head_where_there_is_one():
    page = render(head=["a", "b"], rows=[["1", "2"], ["3", "4"]])
    assert "<tr><th>a</th><th>b</th></tr>\n<tr><td>1</td><td>2</td></tr>\n<tr><td>3</td><td>4</td></tr>\n</table>" in page
    assert "<th>" not in render(rows=[["1"]])


def test_a_figure_lies_inside_the_page():
    png = bytes(range(256))
    assert f'<img alt="t" src="data:image/png;base64,{base64.b64encode(png).decode()}">' in render(png=png)


def test_lone_surrogates_are_replaced():
    page = render(title="a\ud800b", rows=[["\udfff"]])
    assert "<h1>a?b</h1>" in page
    assert "<td>?</td>" in page
    page.encode("utf-8")


def test_a_value_that_the_template_lacks_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="'title' is undefined"):
        rendering.render("test.html", head=(), rows=[], png=b"")
