"""Plain-text tables."""

from lever_mlflow.files.tables import aligned


def test_columns_are_aligned_and_lines_end_without_spaces():
    rows = [["", "0 shots", "8 shots"], ["beta 0.1", "0.10", "9.5"], ["beta 10", "-", ""]]
    assert aligned(rows, align=("left", "right", "right")).split("\n") == [
        "          0 shots  8 shots",
        "beta 0.1     0.10      9.5",
        "beta 10         -",
    ]


def test_the_names_of_a_head_are_underlined():
    assert aligned([["a", "1"], ["bbbb", "10000"]], head=("x", "count")).split("\n") == [
        "x     count",
        "-     -----",
        "a     1",
        "bbbb  10000",
    ]


def test_cells_are_printed_as_they_are():
    assert aligned([["0.10", "1e5", "007", "True", "None"]]) == "0.10  1e5  007  True  None"


def test_without_rows_the_head_is_left():
    assert aligned([], head=("a", "bb")) == "a  bb\n-  --"
    assert aligned([]) == ""


def test_an_alignment_holds_for_the_head_too():
    rows = [["first", "1"], ["second", "12345678"]]
    assert aligned(rows, head=("name", "count"), align=("left", "right")).split("\n") == [
        "name       count",
        "----       -----",
        "first          1",
        "second  12345678",
    ]
