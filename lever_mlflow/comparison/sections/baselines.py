"""Shows how the best epochs compare with baselines, and the runs with each other."""

from __future__ import annotations

from collections.abc import Sequence

from lever_mlflow.comparison.blocks import Block, Paragraph, Table
from lever_mlflow.comparison.facts import AgainstBaseline, AgainstStrongest, Comparison, RankedRun
from lever_mlflow.comparison.results import Accuracies
from lever_mlflow.comparison.wording import NOTHING, Wording, policy_label

__all__ = ["baselines", "ranking"]


def baselines(facts: Comparison, words: Wording) -> list[Block]:
    """Shows the accuracies of baselines beside those of the best epochs, and the differences between them."""
    if not any(run.baselines for run in facts.runs):
        if not facts.sizes:
            return []
        return [Paragraph(words["baselines_none"])]
    blocks: list[Block] = [words.figure("baselines.png", "baselines"), _accuracies(facts, words)]
    against = facts.against_baselines
    if against:
        columns = ("policy", "difference", "direction", "interval_holm", "p_holm")
        head = [words.column(), *(words[name] for name in columns)]
        note = words.say("against_note", size=against[0].size, tests=words.tests(len(against)))
        blocks += [Paragraph(note), Table(head, [_against_row(row, words) for row in against])]
    return [*blocks, *_strongest(facts.against_strongest, words)]


def _accuracies(facts: Comparison, words: Wording) -> Table:
    """Returns a row per policy and size; a baseline that several runs share is shown once."""
    tables = [cells for run in facts.runs for cells in run.baselines.values()]
    shots = sorted({k for cells in tables for row in cells.values() for k in row})
    rows: list[list[str]] = []
    shown: dict[str, Accuracies] = {}
    for run in facts.runs:
        policies = {name: cells for name, cells in run.baselines.items() if shown.get(name) != cells}
        shown |= policies
        if run.best and run.best.accuracy:
            mark = "registered_mark" if run.registered else "best_mark" if run.run_id else "run_epoch"
            policies[words.say(mark, run=words.run(run.label), epoch=run.best.epoch)] = run.best.accuracy
        rows += [
            [policy_label(run, name), str(size), *(words.accuracy(row[k]) if k in row else NOTHING for k in shots)]
            for name, cells in policies.items()
            for size, row in cells.items()
        ]
    return Table([words["policy"], words["size"], *map(words.shots, shots)], rows)


def _against_row(row: AgainstBaseline, words: Wording) -> list[str]:
    return [
        row.run,
        row.baseline,
        words.difference(row.points),
        words.reading(row),
        words.interval(row.interval_holm),
        words.p_value(row.p_holm),
    ]


def _strongest(rows: Sequence[AgainstStrongest], words: Wording) -> list[Block]:
    """Shows how the best epochs compare with the strongest baseline of each shot count; nothing where no baseline is known."""
    if not rows:
        return []
    columns = ("shots", "strongest", "best_epoch", "difference", "direction", "interval_holm", "p_holm")
    head = [words.column(), *(words[name] for name in columns)]
    note = words.say("strongest_note", size=rows[0].size, tests=words.tests(len(rows)))
    return [Paragraph(note), Table(head, [_strongest_row(row, words) for row in rows])]


def _strongest_row(row: AgainstStrongest, words: Wording) -> list[str]:
    best, baseline = row.accuracies
    label, name, *difference = _against_row(row, words)
    return [label, str(row.shots), f"{name}: {words.accuracy(baseline)}", words.accuracy(best), *difference]


def ranking(facts: Comparison, words: Wording) -> list[Block]:
    """Shows the accuracies in order and the ranking, of three runs or more that have accuracies."""
    if len(facts.ranking) < 3 or not facts.sizes:
        return []
    columns = ("selection", "report_accuracy", "interval", "kl", "model")
    head = [words["rank"], words.column(), "Epoch", *(words[name] for name in columns)]
    rows = [_ranking_row(rank, row, words) for rank, row in enumerate(facts.ranking, start=1)]
    selected = all(row.selection is not None for row in facts.ranking)
    note = Paragraph(words["selected_by" if selected else "ranked_by_mean"])
    return [words.figure("beta_curve.png" if facts.by_beta else "ranking.png", "beta"), Table(head, rows), note]


def _ranking_row(rank: int, row: RankedRun, words: Wording) -> list[str]:
    return [
        str(rank),
        row.run,
        str(row.epoch),
        words.accuracy_if_stated(row.selection),
        words.accuracy(row.accuracy),
        words.accuracy_interval(row.interval),
        words.number(row.kl),
        words.registered(row.registered),
    ]
