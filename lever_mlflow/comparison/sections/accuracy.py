"""Shows how accurate the epochs are, and in what the runs differ."""

from __future__ import annotations

from collections.abc import Sequence

from lever_mlflow.comparison.blocks import Block, Heading, Paragraph, Table
from lever_mlflow.comparison.differences import TIE
from lever_mlflow.comparison.facts import (
    BEST,
    CellStatistics,
    Comparison,
    Difference,
    ExtremeCell,
    MissingCell,
    PairStatistics,
    known,
)
from lever_mlflow.comparison.results import EpochResult
from lever_mlflow.comparison.sections.overview import unevaluated
from lever_mlflow.comparison.wording import NOTHING, Wording

__all__ = ["accuracies", "best_differences", "statistics"]

_TEST_COLUMNS = ("difference", "direction", "interval", "interval_holm", "p_holm", "needed")
_COUNTS = {"up": "up", "tie": "tie", "down": "down", "missing": "missing_cells"}  # field of the statistics -> key of its title


def accuracies(facts: Comparison, words: Wording) -> list[Block]:
    """Shows accuracies and differences of every epoch that was evaluated."""
    blocks: list[Block] = unevaluated(facts, words)
    for epoch in sorted({epoch.epoch for run in facts.runs for epoch in run.evaluated}):
        blocks += [Heading(3, words.say("accuracy_at", epoch=epoch)), *_accuracies_of(epoch, facts, words)]
        cells = [cell for cell in facts.differences if cell.label == epoch]
        if cells:
            blocks += [Heading(4, words.say("differences_of", epoch=epoch)), *_differences(cells, facts, words)]
    return _without_repeated_notes(blocks)


def best_differences(facts: Comparison, words: Wording) -> list[Block]:
    """Shows the differences between the best epochs, where they are known."""
    cells = [cell for cell in facts.differences if cell.label == BEST]
    return _without_repeated_notes(_differences(cells, facts, words))


def _accuracies_of(number: int, facts: Comparison, words: Wording) -> list[Block]:
    """Returns a table for each run of which this epoch was evaluated."""
    head = [words["size"], *map(words.shots, facts.shots)]
    blocks: list[Block] = []
    for run in facts.runs:
        epoch = run.epoch(number)
        if epoch is not None and epoch.accuracy:
            title = words.say("accuracy_of", run=words.run(run.label))
            blocks += [Heading(4, title), Table(head, _accuracy_rows(epoch, facts, words))]
    return blocks


def _accuracy_rows(epoch: EpochResult, facts: Comparison, words: Wording) -> list[list[str]]:
    return [[str(n), *(words.accuracy(epoch.accuracy_at(n, k)) for k in facts.shots)] for n in facts.sizes]


def _differences(cells: Sequence[Difference | MissingCell], facts: Comparison, words: Wording) -> list[Block]:
    """Returns a table for each run that is compared with the reference, and a note on its tests if there are any."""
    blocks: list[Block] = []
    for label in dict.fromkeys(cell.run for cell in cells):
        rows = [cell for cell in cells if cell.run == label]
        run, reference = words.run(label), words.run(rows[0].reference)
        head = [words["size"], words["shots"], reference, run, *(words[name] for name in _TEST_COLUMNS)]
        title = words.say("minus", run=run, reference=reference)
        blocks += [Heading(5, title), Table(head, [_difference_row(cell, words) for cell in rows])]
        if known(rows):
            blocks.append(Paragraph(_note(rows, facts, words)))
    return blocks


def _difference_row(cell: Difference | MissingCell, words: Wording) -> list[str]:
    place = [str(cell.size), str(cell.shots), *map(words.accuracy, reversed(cell.accuracies))]
    if isinstance(cell, MissingCell):
        return [*place, *([words["missing"]] * len(_TEST_COLUMNS))]
    return [
        *place,
        words.difference(cell.points),
        words.reading(cell),
        words.interval(cell.interval),
        words.interval(cell.interval_holm),
        words.p_value(cell.p_holm),
        NOTHING if cell.questions_needed is None else str(cell.questions_needed),
    ]


def _note(cells: Sequence[Difference | MissingCell], facts: Comparison, words: Wording) -> str:
    """Says what the differences are, and for how many tests they are corrected: primary ones, other ones, or both."""
    counts = [
        sum(row.primary is family for row in facts.known_differences)
        for family in (True, False)
        if any(cell.primary is family for cell in cells)
    ]
    tests = words.tests(" + ".join(map(str, counts)))
    if any(row.kind == "bound" for row in known(cells)):
        return words.say("bound_note", tests=tests)
    return words.say("differences_note", tie=TIE, tests=tests)


def _without_repeated_notes(blocks: Sequence[Block]) -> list[Block]:
    """Leaves out each note that says the same as the note before it."""
    last: Block | None = None
    shown: list[Block] = []
    for block in blocks:
        if isinstance(block, Paragraph):
            if block == last:
                continue
            last = block
        shown.append(block)
    return shown


def statistics(facts: Comparison, words: Wording) -> list[Block]:
    """Summarizes the differences of each pair of runs; figures of all sizes stand above."""
    blocks: list[Block] = [
        words.figure("accuracy.png", "heatmap"),
        words.figure("differences.png", "differences"),
    ]
    for pair in facts.statistics:
        if pair.by_label:
            blocks += _statistics_of(pair, words)
    return blocks


def _statistics_of(pair: PairStatistics, words: Wording) -> list[Block]:
    columns = list(pair.by_label.values())
    labels = [words.label(label) for label in pair.by_label]
    title = words.say("statistics_of", run=words.run(pair.run), reference=words.run(pair.reference, second=True))
    by_shots = {words.shots(k): [column.by_shots[k] for column in columns] for k in (columns[0].by_shots if columns else ())}
    by_size = {str(n): [column.by_size[n] for column in columns] for n in (columns[0].by_size if columns else ())}
    blocks: list[Block] = [Heading(3, title), Table([words["statistic"], *labels], _statistics_rows(columns, words))]
    for name, first, means in (("by_shots", "shots", by_shots), ("by_size", "size", by_size)):
        head = [words[first], *(_mean_title(label, words) for label in pair.by_label)]
        rows = [[key, *(words.difference(mean) for mean in row)] for key, row in means.items()]
        blocks += [Heading(4, words[name]), Table(head, rows)]
    return blocks


def _mean_title(label: str, words: Wording) -> str:
    return words["mean_best"] if label == BEST else words.say("mean_epoch", epoch=label)


def _statistics_rows(columns: Sequence[CellStatistics], words: Wording) -> list[list[str]]:
    rows = [
        [words["mean"], *(words.difference(column.mean) for column in columns)],
        [words["largest_gain"], *(_extreme(column.largest_gain, words) for column in columns)],
        [words["largest_drop"], *(_extreme(column.largest_drop, words) for column in columns)],
    ]
    for field, key in _COUNTS.items():
        rows.append([words.say(key, tie=TIE), *(f"{getattr(column, field)}/{column.cells}" for column in columns)])
    return rows


def _extreme(cell: ExtremeCell | None, words: Wording) -> str:
    if cell is None:
        return words["none"]
    points, shots = words.difference(cell.points), words.shots(cell.shots)
    return words.say("at_cell", points=points, size=cell.size, shots=shots)
