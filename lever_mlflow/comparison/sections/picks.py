"""Shows what the policies picked: epochs compared with each other, how far picks are the same, and examples."""

from __future__ import annotations

from lever_mlflow.comparison.blocks import Block, Heading, Table
from lever_mlflow.comparison.facts import Comparison, EpochPair
from lever_mlflow.comparison.wording import Wording
from lever_mlflow.evaluation.overlap import PickOverlap
from lever_mlflow.settings import format_beta

__all__ = ["epochs_compared", "examples", "overlap"]


def epochs_compared(facts: Comparison, words: Wording) -> list[Block]:
    """Compares the epochs of each run with each other."""
    if not facts.epochs_compared:
        return []
    head = ["KL_BETA", *(words[name] for name in ("epochs_pair", "equal_cells", "same_picks", "why"))]
    return [Heading(2, words["epochs"]), Table(head, [_epochs_row(pair, words) for pair in facts.epochs_compared])]


def _epochs_row(pair: EpochPair, words: Wording) -> list[str]:
    shares = words.join(f"Shot {k} {words.share(share)}" for k, share in pair.overlap.items())
    return [
        format_beta(pair.kl_beta),
        " / ".join(map(str, pair.epochs)),
        f"{pair.equal}/{pair.cells}",
        shares or words["unknown"],
        _epochs_explained(pair, words),
    ]


def _epochs_explained(pair: EpochPair, words: Wording) -> str:
    if not pair.cells:
        return words["epochs_none"]
    if pair.equal < pair.cells:
        return words.say("epochs_some", largest=words.percent(pair.largest))
    if pair.reason:
        why = words.say("why_records", reason=words.explain(pair.reason))
    elif pair.overlap:
        why = words.say("why_answers", share=words.share(min(pair.overlap.values())))
    else:
        why = words["why_unknown"]
    return words.say("epochs_equal", cells=pair.cells, why=why)


def overlap(facts: Comparison, words: Wording) -> list[Block]:
    """Shows how far the best epochs of two betas, and any two checkpoints of one, pick the same."""
    tables = [(words["overlap_best"], "KL_BETA", facts.overlap_of_best)]
    tables += [(words.say("overlap_of", beta=format_beta(run.kl_beta)), words["policy"], run.overlap) for run in facts.runs]
    blocks: list[Block] = []
    for title, first, rows in tables:
        if rows:
            head = [first, *(words[name] for name in ("shots", "same_picks", "same_any_order", "why"))]
            blocks += [Heading(3, title), Table(head, [_overlap_row(row, words) for row in rows])]
    return [Heading(2, words["overlap"]), *blocks] if blocks else []


def _overlap_row(row: PickOverlap, words: Wording) -> list[str]:
    return [
        f"{row.first} / {row.second}",
        str(row.shots),
        words.share(row.ordered),
        words.share(row.unordered),
        words.explain(row.reason) if row.reason else "",
    ]


def examples(facts: Comparison, words: Wording) -> list[Block]:
    """Shows the questions that the best epochs of two betas answer most differently."""
    if not facts.examples:
        return []
    (pair,) = facts.statistics
    betas = [format_beta(pair.beta), format_beta(pair.reference)]
    head = [words["question"], words["shots"], words["difference"]]
    head += [words.say(name, beta=beta) for name in ("answer_of", "picks_of") for beta in betas]
    rows = [
        [
            f"{example.question_id}: {example.question}",
            str(example.shots),
            words.percent(example.points, signed=True),
            *example.answers,
            *(", ".join(map(str, picks)) for picks in example.picks),
        ]
        for example in facts.examples
    ]
    return [Heading(2, words["examples"]), Table(head, rows)]
