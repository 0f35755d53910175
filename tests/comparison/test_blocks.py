from lever_mlflow.comparison.blocks import Bullets, Code, Figure, Heading, Paragraph, Table, to_html, to_markdown


def test_markup_is_text_in_both_formats():
    text = '<script>alert("x")</script> | a_b *c* [d](http://e) `f`\n# g & h'
    blocks = [Heading(1, text), Paragraph(text), Bullets([text]), Table([text], [[text]]), Code([text])]
    page = to_html(blocks, {}, "en")
    assert "<script>" not in page
    escaped = "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; | a_b *c* [d](http://e) `f` # g &amp; h"
    assert " ".join(page.split()).count(escaped) == 7  # title, heading, paragraph, bullet, head and cell of the table, code
    plain = '&lt;script>alert("x")&lt;/script> \\| a_b \\*c\\* [d]\\(http://e) \\`f\\` # g &amp; h'
    assert to_markdown(blocks) == (
        f"# {plain}\n\n{plain}\n\n- {plain}\n\n| {plain} |\n| --- |\n| {plain} |\n\n"
        '```\n<script>alert("x")</script> | a_b *c* [d](http://e) `f` # g & h\n```\n'
    )


def test_a_figure_is_a_file_beside_markdown_and_inside_a_page():
    blocks = [Heading(1, "title"), Figure("a.png", 'shows "a"')]
    assert to_markdown(blocks) == '# title\n\n![shows "a"](a.png)\n'
    assert '<img alt="shows &#34;a&#34;" src="data:image/png;base64,UE5H">' in to_html(blocks, {"a.png": b"PNG"}, "en")
