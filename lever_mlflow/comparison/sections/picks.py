"""Shows what the policies picked: epochs compared with each other, how far picks are the same, and examples."""

from __future__ import annotations

from collections.abc import Sequence

from lever_mlflow.comparison.blocks import Block, Card, Heading, Item, Paragraph, Table
from lever_mlflow.comparison.facts import Comparison, EpochPair, Example, ExampleSide, ShownItem
from lever_mlflow.comparison.pictures import MOST_DEMONSTRATIONS, demonstration_picture, query_picture
from lever_mlflow.comparison.wording import Wording
from lever_mlflow.evaluation.overlap import PickOverlap

__all__ = ["epochs_compared", "examples", "overlap"]

_NEARLY_THE_SAME = 0.9  # of the questions with the same picks: from there on, a pair of policies is worth a row


def epochs_compared(facts: Comparison, words: Wording) -> list[Block]:
    """Compares the epochs of each run with each other; pairs that have little in common are only counted."""
    pairs = [pair for pair in facts.epochs_compared if pair.cells]
    shown = [pair for pair in pairs if _alike(pair)]
    head = [words.column(), *(words[name] for name in ("epochs_pair", "equal_cells", "same_picks", "why"))]
    blocks: list[Block] = [Table(head, [_epochs_row(pair, words) for pair in shown])] if shown else []
    others = len(pairs) - len(shown)
    if others:
        blocks.append(Paragraph(words.say("epochs_others", count=others, share=words.share(_NEARLY_THE_SAME))))
    return blocks


def _alike(pair: EpochPair) -> bool:
    return 2 * pair.equal >= pair.cells or max(pair.overlap.values(), default=0.0) >= _NEARLY_THE_SAME


def _epochs_row(pair: EpochPair, words: Wording) -> list[str]:
    shares = words.join(f"{words.shots(k)} {words.share(share)}" for k, share in pair.overlap.items())
    return [
        pair.run,
        " / ".join(map(str, pair.epochs)),
        f"{pair.equal}/{pair.cells}",
        shares or words["unknown"],
        _epochs_explained(pair, words),
    ]


def _epochs_explained(pair: EpochPair, words: Wording) -> str:
    if pair.equal < pair.cells and pair.largest is not None:
        return words.say("epochs_some", largest=words.points(pair.largest, signed=False))
    if pair.reason:
        why = words.say("why_records", reason=words.explain(pair.reason))
    elif pair.overlap:
        why = words.say("why_answers", share=words.share(min(pair.overlap.values())))
    else:
        why = words["why_unknown"]
    return words.say("epochs_equal", cells=pair.cells, why=why)


def overlap(facts: Comparison, words: Wording) -> list[Block]:
    """Shows how far the best epochs of two runs pick the same, and which checkpoints of one run pick nearly the same."""
    best = list(facts.overlap_of_best)
    blocks = _overlap_table(words["overlap_best"], words.column(), best, words)
    for run in facts.runs:
        shown = [row for row in run.overlap if row.ordered >= _NEARLY_THE_SAME]
        others = [row.ordered for row in run.overlap if row.ordered < _NEARLY_THE_SAME]
        title = words.say("overlap_of", run=words.run(run.label))
        blocks += _overlap_table(title, words["policy"], shown, words)
        if others:
            low, high = words.share(min(others)), words.share(max(others))
            note = Paragraph(words.say("overlap_others", count=len(others), low=low, high=high))
            blocks += [note] if shown else [Heading(3, title), note]
    return blocks


def _overlap_table(title: str, first: str, rows: Sequence[PickOverlap], words: Wording) -> list[Block]:
    head = [first, *(words[name] for name in ("shots", "same_picks", "same_any_order", "why"))]
    return [Heading(3, title), Table(head, [_overlap_row(row, words) for row in rows])] if rows else []


def _overlap_row(row: PickOverlap, words: Wording) -> list[str]:
    return [
        f"{row.first} / {row.second}",
        str(row.shots),
        words.share(row.ordered),
        words.share(row.unordered),
        words.explain(row.reason) if row.reason else "",
    ]


def examples(facts: Comparison, words: Wording) -> list[Block]:
    """Shows the questions on which two best epochs differ most, with the images that each of them put before the question."""
    if not facts.examples:
        return []
    first = facts.examples[0]
    run, reference = (words.run(side.run) for side in first.sides)
    note = words.say("examples_note", run=run, reference=reference, shots=words.shots(first.shots))
    return [Paragraph(note), *(_card(example, words) for example in facts.examples)]


def _card(example: Example, words: Wording) -> Card:
    query = example.query
    answers = words.join(f"{answer} ({count})" for answer, count in query.answers.items())
    lines = [f"{query.question_id}: {query.question}", words.say("right_answers", answers=answers or words["no_answers"])]
    return Card(Item(query_picture(query.question_id), lines), [_side(side, words) for side in example.sides])


def _side(side: ExampleSide, words: Wording) -> tuple[str, list[Item]]:
    """Returns the answer of one run, and the demonstrations that stood before the question."""
    run, accuracy = words.run(side.run), words.accuracy(side.accuracy)
    items = [_demonstration(item, words) for item in side.demonstrations[:MOST_DEMONSTRATIONS]]
    more = len(side.demonstrations) - len(items)
    items += [Item("", [words.say("more_demonstrations", count=more)])] if more > 0 else []
    return words.say("answered", run=run, answer=side.answer, accuracy=accuracy), items


def _demonstration(item: ShownItem, words: Wording) -> Item:
    """Returns a demonstration as the VLM saw it: question and most frequent answer; its id where it is not known."""
    answer = next(iter(item.answers), words["unknown"])
    known = [item.question, words.say("demonstration_answer", answer=answer)]
    return Item(demonstration_picture(item.question_id), known if item.question else [str(item.question_id)])
