"""The command that runs all benchmarks: its parts, and the page that its table goes into."""

import pytest
from click.testing import CliRunner

from benchmarks import figures, ratios


def one_figure():
    yield figures.at_least("training", "times as fast", 3.96, 4.0, ".1f")


def a_fault():
    yield figures.at_most("gate", "memory", 0.5, 1.0, ".1f")
    raise ValueError("no such file\nand a second line")


@pytest.fixture
def here(monkeypatch):
    """Measures two made-up parts in this process."""
    monkeypatch.setattr(ratios, "PARTS", {"training": one_figure, "gate": a_fault})
    monkeypatch.setattr(ratios, "figures_of", lambda parts: (figure for part in parts for figure in ratios.measure(part)))


def ending(exit_code, *arguments):
    """Runs the command, and returns the last three lines that it prints."""
    result = CliRunner().invoke(ratios.main, arguments)
    assert result.exit_code == exit_code
    return result.stdout.splitlines()[-3:]


def test_the_table_has_each_figure_and_a_missed_target_is_no_failure(here):
    assert ending(0, "--parts", "training") == [
        "| part | what | value | target | reached |",
        "|---|---|---|---|---|",
        "| training | times as fast | 4.0 | at least 4.0 | no |",
    ]


def test_a_part_that_fails_does_not_cost_the_others(here):
    assert ending(1, "--parts", "gate,training") == [
        "| gate | memory | 0.5 | at most 1.0 | yes |",
        "| gate | failed | ValueError: no such file |  | no |",
        "| training | times as fast | 4.0 | at least 4.0 | no |",
    ]


def test_the_table_replaces_the_one_that_is_on_the_page(here, tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(f"# Performance\n\n{ratios.START}\nold\n{ratios.END}\n\n## Serving\n")
    assert CliRunner().invoke(ratios.main, ["--parts", "training", "--page", str(page)]).exit_code == 0
    before, table, after = page.read_text().partition("| training | times as fast | 4.0 | at least 4.0 | no |")
    assert before.startswith(f"# Performance\n\n{ratios.START}\n\n")
    assert table
    assert after == f"\n\n{ratios.END}\n\n## Serving\n"
    assert "old" not in before
    page.write_text("# Performance\n")
    result = CliRunner().invoke(ratios.main, ["--parts", "training", "--page", str(page)])
    assert result.exit_code == 1
    assert f"performance.md: the table belongs between the lines {ratios.START} and {ratios.END}; add them" in result.output
    assert page.read_text() == "# Performance\n"


def test_each_part_is_measured_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(ratios, "measure", figures.at_most)
    with pytest.raises(TypeError, match="missing 4 required"):  # the function arrives in the other process
        list(ratios.figures_of(["training"]))
