"""Control characters become visible, and everything else stays."""

import logging

import click
import pytest

from lever_mlflow.cli import launching
from lever_mlflow.exceptions import DataError
from lever_mlflow.files.control_characters import without_controls
from lever_mlflow.files.tables import aligned


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\rb\x08\x00\x7f\x9b", r"a\rb\x08\x00\x7f\x9b"),
        ("abc\u202egpj.exe\u2069\u200f", r"abc\u202egpj.exe\u2069\u200f"),
        ("a\u2028b\ud800", r"a\u2028b\ud800"),
        ("tab\tline\nبيت 日本 é 👩\u200d🔬", "tab\tline\nبيت 日本 é 👩\u200d🔬"),
    ],
)
def test_what_changes_the_text_around_it_is_shown_as_its_escape(text, escaped):
    assert without_controls(text) == escaped


def test_errors_logs_and_tables_in_a_terminal_hold_none(capsys):
    @click.command()
    def command():
        raise DataError("evil\x1b[2J\u202e.json: bad\nerror: forged" + "x" * 5000)

    with pytest.raises(SystemExit):
        launching.launch(command, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(r"error: evil\x1b[2J\u202e.json: bad error: forgedxxx")
    assert len(line) == len("error: ") + 2_000
    record = logging.LogRecord("lever_mlflow", logging.INFO, "", 0, "run %s", ("\x1b]0;title\x07",), None)
    assert launching._Console().format(record) == r"run \x1b]0;title\x07"
    launching.say("version \x1b[1m7\n")
    assert capsys.readouterr().out == "version \\x1b[1m7\n"
    assert aligned([["a\nb\x1b", "c"]]) == r"a\nb\x1b  c"
