import base64

from lever_mlflow.comparison.blocks import (
    Bullets,
    Card,
    Code,
    Figure,
    Heading,
    Item,
    Line,
    Link,
    Page,
    Paragraph,
    Section,
    SideBySide,
    Table,
    to_html,
    to_markdown,
)


def page(*blocks, title="title"):
    """A page of one section."""
    return Page(title, [], "contents", [Section("key", "name", blocks)])


def text_of(markdown):
    """What a Markdown page says in its section."""
    return markdown.split("## name\n\n", 1)[1]


def test_markup_is_text_in_both_formats():
    text = '<script>alert("x")</script> | a_b *c* [d](http://e) `f`\n# g & h'
    items = [Item("", [text])]
    blocks = [
        Heading(3, text), Paragraph(text, label=text), Bullets([text]), Table([text], [[text]]), Code([text]),
        Line([text, Link(text, "#key")]), Card(items[0], [(text, items)]),
    ]  # fmt: skip
    whole = Page(text, [Paragraph(text)], text, [Section("key", text, blocks)])
    html = to_html(whole, {}, "en")
    assert "<script>" not in html
    escaped = "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; | a_b *c* [d](http://e) `f` # g &amp; h"
    # title, heading, top, contents and its link, section; heading, paragraph and label, bullet, head and cell of the table, and
    # code; two parts of the line; question, side and demonstration of the card
    assert " ".join(html.split()).count(escaped) == 6 + 7 + 2 + 3
    plain = '&lt;script>alert("x")&lt;/script> \\| a_b \\*c\\* [d]\\(http://e) \\`f\\` # g &amp; h'
    assert to_markdown(whole) == (
        f'# {plain}\n\n{plain}\n\n**{plain}**\n\n- [{plain}](#key)\n\n<a id="key"></a>\n\n## {plain}\n\n'
        f"### {plain}\n\n**{plain}** {plain}\n\n- {plain}\n\n| {plain} |\n| --- |\n| {plain} |\n\n"
        '```\n<script>alert("x")</script> | a_b *c* [d](http://e) `f` # g & h\n```\n\n'
        f"{plain} · [{plain}](#key)\n\n**{plain}**\n\n- {plain}\n  - {plain}\n"
    )


def test_a_figure_is_a_file_beside_markdown_and_inside_a_page():
    figure = Figure("a.png", 'shows "a"')
    for block in (figure, SideBySide([figure])):
        assert text_of(to_markdown(page(block))) == '![shows "a"](a.png)\n'
        image = '<img alt="shows &#34;a&#34;" src="data:image/png;base64,UE5H">'
        assert image in to_html(page(block), {"a.png": b"PNG"}, "en")


def test_pictures_of_a_card_are_inside_a_page_and_left_out_where_there_are_none():
    card = Card(Item("q.jpg", ["question"]), [("side", [Item("d.jpg", ["demonstration", "answer"]), Item("", ["more"])])])
    html = to_html(page(card), {"q.jpg": b"Q", "d.jpg": b"D"}, "en")
    sources = [f'src="data:image/jpeg;base64,{base64.b64encode(content).decode()}"' for content in (b"Q", b"D")]
    assert [html.count(source) for source in sources] == [1, 1]
    assert html.count("<img") == 2
    assert "demonstration<br>answer" in html
    assert "<img" not in to_html(page(card), {}, "en")
    assert text_of(to_markdown(page(card))) == "**question**\n\n- side\n  - demonstration answer\n  - more\n"


def test_sections_are_folded_and_the_target_of_a_link_is_inside_so_that_browsers_open_it():
    html = " ".join(to_html(page(Paragraph("text")), {}, "en").split())
    assert '<a href="#key">name</a>' in html
    assert '<details><summary><h2>name</h2></summary> <div class="content" id="key"> <p>text</p> </div></details>' in html
    assert "<script" not in html
