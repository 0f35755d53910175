"""Says what was compared, and whether the runs differ in nothing but what is meant to differ."""

from __future__ import annotations

import re

from lever_mlflow.comparison.blocks import Block, Bullets, Paragraph, Table
from lever_mlflow.comparison.facts import Comparison
from lever_mlflow.comparison.results import RunResult
from lever_mlflow.comparison.wording import Wording

__all__ = ["fairness", "setup", "training_configuration"]

_DATA_COLUMNS = {  # field of rl_data -> key of its column's title
    "source": "data_file",
    "digest": "digest",
    "n_queries": "queries",
    "n_positive_queries": "positive",
    "mean_reward": "mean_reward",
}
_DIGEST = 12  # characters of a digest that are shown
_START_FIELDS = ("start_checkpoint", "start", "start_digest")  # of config, in results of any origin


def setup(facts: Comparison, words: Wording) -> list[Block]:
    """Lists data set, models, prompt and grid, and the compared epochs."""
    named = {"dataset": facts.dataset, "vlm": facts.vlm, "sampler": facts.sampler, "source": facts.source}
    rows = [[words[name], value] for name, value in named.items() if value]
    rows += [[words["profile"], profile] for profile in dict.fromkeys(run.profile for run in facts.runs) if profile]
    axes = {"sizes": facts.sizes, "shot_counts": facts.shots}
    rows += [[words[name], words.numbers(axis)] for name, axis in axes.items() if axis]
    rows += [[run.name, run.run_id] for run in facts.mlflow_runs]
    return [
        Table([words["parameter"], words["value"]], rows),
        Paragraph(words["compared"]),
        Bullets([_compared_model(run, words) for run in facts.runs]),
    ]


def _compared_model(run: RunResult, words: Wording) -> str:
    best = "" if run.best_epoch is None else words.say("compared_best", epoch=run.best_epoch)
    evaluated = [epoch.epoch for epoch in run.evaluated]
    others = [epoch.epoch for epoch in run.epochs if not epoch.accuracy]
    return words.say(
        "compared_model",
        run=words.run(run.label),
        epochs=words.epochs(evaluated) if evaluated else words["no_epochs"],
        best=best,
        others=words.say("compared_others", epochs=words.epochs(others)) if others else "",
    )


def fairness(facts: Comparison, words: Wording) -> list[Block]:
    """Shows RL data and start checkpoint of each run, and every field that is not the same in all runs."""
    head = [words["parameter"], *(words[title] for title in _DATA_COLUMNS.values()), words["start"]]
    blocks: list[Block] = [Table(head, [_data_row(run, words) for run in facts.runs])]
    if facts.confounders:
        blocks.append(Paragraph(words["not_comparable_note" if facts.varied else "undecided_note"], strong=True))
    elif len(facts.runs) > 1:
        blocks.append(Paragraph(words["comparable" if facts.varied else "comparable_nothing"]))
    marked = sorted((field for field in facts.fields if field.mark != "same"), key=lambda field: field.mark)
    head = [words["field"], *(words.run(run.label) for run in facts.runs), words["mark"]]
    blocks.append(Table(head, [[row.field, *map(words.value, row.values), words[f"mark_{row.mark}"]] for row in marked]))
    unknown = [field.field for field in marked if field.mark == "unknown"]
    return [*blocks, *([Paragraph(words.say("not_stated", fields=words.join(unknown)))] if unknown else [])]


def _data_row(run: RunResult, words: Wording) -> list[str]:
    start = ", ".join(_shortened(name, str(run.config[name])) for name in _START_FIELDS if name in run.config)
    return [words.run(run.label), *(_data_cell(run, name, words) for name in _DATA_COLUMNS), start or words["unknown"]]


def _data_cell(run: RunResult, name: str, words: Wording) -> str:
    value = run.rl_data.get(name, run.config.get("rl_data") if name == "source" else None)
    queries = run.rl_data.get("n_queries")
    if name == "n_positive_queries" and isinstance(value, int) and isinstance(queries, int) and queries:
        return f"{value}/{queries} ({words.share(value / queries)})"
    if name == "mean_reward" and isinstance(value, float):
        return f"{value:.4f}"
    return _shortened(name, words.value(value))


def _shortened(name: str, text: str) -> str:
    return text[:_DIGEST] if name.endswith("digest") and re.fullmatch("[0-9a-f]+", text) else text


def training_configuration(facts: Comparison, words: Wording) -> list[Block]:
    """Lists every field of ``config``."""
    names = dict.fromkeys(name for run in facts.runs for name in run.config)
    rows = [[name, *(words.value(run.config.get(name)) for run in facts.runs)] for name in names]
    head = [words["parameter"], *(words.run(run.label) for run in facts.runs)]
    return [Table(head, rows)] if rows else []
