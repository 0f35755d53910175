"""A comparison as a page: one template, filled from its figures and a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from lever_mlflow.comparison.blocks import Block, Bullets, Code, Figure, Heading, Paragraph, Table, to_html, to_markdown
from lever_mlflow.comparison.facts import BEST, CURVES, DIGITS, TIE
from lever_mlflow.comparison.findings import FEW_POSITIVE, LITTLE_CONTRAST, primary
from lever_mlflow.comparison.words import WORDS
from lever_mlflow.evaluation.policies import START
from lever_mlflow.settings import Language

__all__ = ["explain", "html", "markdown", "policy_label", "verdict"]

Facts = Mapping[str, Any]
_FURTHER = ("kl_exact", "expected_reward", "frac_reward_zero_std", "picks_changed")  # of the curves, where there are any
_ARROWS = {"up": "⬆️", "down": "⬇️", "tie": "➡️"}
_NOTHING = "–"
_DATA = {  # fields of rl_data with a column of their own
    "source": "data_file",
    "digest": "digest",
    "n_queries": "queries",
    "n_positive_queries": "positive",
    "mean_reward": "mean_reward",
}


def markdown(facts: Facts, language: Language, figures: Iterable[str] = ()) -> str:
    """The report as Markdown; ``figures`` are the names of the files beside it."""
    return to_markdown(_Page(facts, language, frozenset(figures)).blocks())


def html(facts: Facts, language: Language, figures: Mapping[str, bytes]) -> str:
    """The report as a self-contained HTML page with the figures inside."""
    return to_html(_Page(facts, language, frozenset(figures)).blocks(), figures, language)


def verdict(facts: Facts, language: Language) -> str:
    """What the comparison comes to, in one sentence."""
    return _Page(facts, language, frozenset()).verdict()


def policy_label(run: Facts, policy: str) -> str:
    """A policy's name; the start checkpoint's says which one it is."""
    return f"start ({run['config']['start']})" if policy == START and "start" in run["config"] else policy


def explain(reason: Facts, language: Language) -> str:
    """Why two policies pick the same, in words."""
    figures = {name: f"{value:.2g}" if isinstance(value, float) else value for name, value in reason.items()}
    return WORDS[language][f"why_{reason['rule']}"].format(**figures)


class _Page:
    """Writes the sections of a report in one language."""

    def __init__(self, facts: Facts, language: Language, figures: frozenset[str]) -> None:
        self.facts, self.words, self.figures, self.language = facts, WORDS[language], figures, language
        self.runs: Sequence[Facts] = facts["runs"]
        self.betas = [run["kl_beta"] for run in self.runs]
        self.told = ""  # the last note under a table of differences, which is not repeated
        self.epochs = sorted({epoch["epoch"] for run in self.runs for epoch in run["epochs"]})

    def blocks(self) -> list[Block]:
        """All sections in order."""
        sections = [
            self.setup(),
            self.fairness(),
            self.training(),
            self.curves(),
            self.trends(),
            *(self.epoch(epoch) for epoch in self.epochs),
            self.best_differences(),
            self.statistics(),
            self.epochs_compared(),
            self.overlap(),
            self.baselines(),
            self.curve(),
            self.examples(),
            self.findings(),
            self.conclusion(),
            self.missing(),
            self.reproduce(),
        ]
        title = self.say("title", betas=" vs ".join(f"{beta:g}" for beta in self.betas))
        return [Heading(1, title), Paragraph(self.verdict(), strong=True), *(block for part in sections for block in part)]

    # what it all comes to

    def verdict(self) -> str:
        betas = self.join(f"{beta:g}" for beta in self.betas)
        rows = primary(self.facts["differences"])
        if len(self.betas) == 1:
            return self.say("verdict_alone", betas=betas)
        if not self.facts["comparable"]:
            return self.say("verdict_not_comparable", betas=betas, fields=self.join(self.confounders()))
        if not rows:
            return self.say("verdict_unknown", betas=betas)
        shown = [row for row in rows if row["significant"]]
        if not shown:
            return self.say("verdict_none", betas=betas, questions=max(row["size"] for row in rows))
        parts = []
        for row in shown:
            better, other = (row["beta"], row["reference"]) if row["points"] > 0 else (row["reference"], row["beta"])
            points = self.say("points", value=_decimals(abs(row["points"])))
            parts.append(self.say("part_better", better=f"{better:g}", other=f"{other:g}", shots=row["shots"], points=points))
        return self.say(
            "verdict_shown", betas=betas, parts=self.join(parts), kind=self.words[f"kind_{_kind(rows)}"], tests=len(rows)
        )

    def confounders(self) -> list[str]:
        return [field["field"] for field in self.facts["fields"] if field["mark"] == "confounding"]

    # configuration and fairness

    def setup(self) -> list[Block]:
        named = [(name, self.facts.get(name)) for name in ("dataset", "vlm", "sampler", "source")]
        rows = [[self.words[name], str(value)] for name, value in named if value]
        rows += [
            [self.words["profile"], profile] for profile in dict.fromkeys(run.get("profile") for run in self.runs) if profile
        ]
        sizes, shots = (", ".join(map(str, self.facts[name])) for name in ("sizes", "shots"))
        rows.append([self.words["grid"], f"{sizes}; {shots}"])
        models = []
        for run in self.runs:
            best = self.say("compared_best", epoch=run["best_epoch"]) if "best_epoch" in run else ""
            epochs = ", ".join(str(epoch["epoch"]) for epoch in run["epochs"])
            models.append(self.say("compared_model", beta=f"{run['kl_beta']:g}", epochs=epochs, best=best))
        head = [self.words["parameter"], self.words["value"]]
        return [Heading(2, self.words["setup"]), Table(head, rows), Paragraph(self.words["compared"] + ":"), Bullets(models)]

    def fairness(self) -> list[Block]:
        starts = ("start_checkpoint", "start", "start_digest")
        head = [self.words["parameter"], *(self.words[name] for name in _DATA.values()), self.words["start"]]
        rows = []
        for run in self.runs:
            data, config = run["rl_data"], run["config"]
            start = self.join(str(config[name]) for name in starts if name in config)
            cells = [self.data_cell(name, data, config) for name in _DATA]
            rows.append([self.say("beta", beta=f"{run['kl_beta']:g}"), *cells, start or self.words["unknown"]])
        blocks: list[Block] = [Heading(2, self.words["fairness"]), Table(head, rows)]
        confounders = self.confounders()
        if confounders:
            blocks.append(Paragraph(self.words["not_comparable_note"], strong=True))
        elif len(self.runs) > 1:
            blocks.append(Paragraph(self.words["comparable"]))
        marked = [field for field in self.facts["fields"] if field["mark"] != "same"]
        blocks.append(
            Table(
                [self.words["field"], *(self.say("beta", beta=f"{beta:g}") for beta in self.betas), self.words["mark"]],
                [
                    [field["field"], *map(self.value, field["values"]), self.words[f"mark_{field['mark']}"]]
                    for field in sorted(marked, key=lambda field: field["mark"])
                ],
            )
        )
        unknown = [field["field"] for field in marked if field["mark"] == "unknown"]
        return [*blocks, *([Paragraph(self.say("not_stated", fields=self.join(unknown)))] if unknown else [])]

    def data_cell(self, name: str, data: Facts, config: Facts) -> str:
        value = data.get(name, config.get("rl_data") if name == "source" else None)
        queries = data.get("n_queries")
        if name == "n_positive_queries" and isinstance(value, int) and isinstance(queries, int) and queries:
            return f"{value}/{queries} ({self.percent(100.0 * value / queries, digits=1)})"
        if name == "mean_reward" and isinstance(value, float):
            return f"{value:.4f}"
        return self.value(value)

    def training(self) -> list[Block]:
        names = dict.fromkeys(name for run in self.runs for name in run["config"])
        rows = [[name, *(self.value(run["config"].get(name)) for run in self.runs)] for name in names]
        head = [self.words["parameter"], *(self.say("beta", beta=f"{beta:g}") for beta in self.betas)]
        return [Heading(2, self.words["training"]), Table(head, rows)]

    # training

    def curves(self) -> list[Block]:
        blocks: list[Block] = [Heading(2, self.words["curves"]), *self.figure("training_curves.png", "curves")]
        for curves in self.facts["curves"]:
            names = [*CURVES, *(name for name in _FURTHER if name in curves["values"])]
            head = ["Epoch", *(name.replace("_", " ").title() if name in CURVES else name for name in names)]
            head = ["KL" if cell == "Kl" else cell.replace("Advantage", "Adv").replace("Ppo", "PPO") for cell in head]
            rows = [
                [str(epoch), *(self.number(curves["values"][name][i]) for name in names)]
                for i, epoch in enumerate(curves["epochs"])
            ]
            blocks += [Heading(3, self.say("curves_of", beta=f"{curves['kl_beta']:g}")), Table(head, rows)]
        return blocks

    def trends(self) -> list[Block]:
        blocks: list[Block] = [Heading(2, self.words["trends"])]
        for curves in self.facts["curves"]:
            head = [self.words["metric"], *(self.say("epoch", epoch=epoch) for epoch in curves["epochs"]), self.words["trend"]]
            rows = []
            for name in CURVES:
                changes = ["", *(self.change(change) for change in curves["changes"][name])]
                cells = [f"{self.number(v)}{c}" for v, c in zip(curves["values"][name], changes, strict=True)]
                rows.append([name, *cells, self.trend(name, curves)])
            blocks += [Heading(3, self.say("trends_of", beta=f"{curves['kl_beta']:g}")), Table(head, rows)]
        return blocks

    def trend(self, name: str, curves: Facts) -> str:
        found = [value for value in curves["values"][name] if value is not None]
        first, last = (found[0], found[-1]) if found else (None, None)
        trend = curves["trends"][name]
        change = self.percent_change(100.0 * (last - first) / abs(first)) if first else _NOTHING
        text = self.say(f"trend_{trend}", first=self.number(first), last=self.number(last), change=change)
        return f"{text}; {self.words[f'kl_{trend}']}" if name == "kl" and trend in ("rising", "falling") else text

    # accuracy

    def epoch(self, epoch: int) -> list[Block]:
        blocks: list[Block] = [Heading(2, self.say("accuracy", epoch=epoch))]
        head = [self.words["size"], *(self.say("shot", shots=k) for k in self.facts["shots"])]
        for run in self.runs:
            found = next((item["accuracy"] for item in run["epochs"] if item["epoch"] == epoch), None)
            if found is not None:
                rows = [
                    [str(size), *(self.percent(found.get(str(size), {}).get(str(k))) for k in self.facts["shots"])]
                    for size in self.facts["sizes"]
                ]
                blocks += [Heading(3, self.say("accuracy_of", beta=f"{run['kl_beta']:g}")), Table(head, rows)]
        cells = [row for row in self.facts["differences"] if row["label"] == epoch]
        return [*blocks, *([Heading(3, self.say("differences_of", epoch=epoch)), *self.by_beta(cells)] if cells else [])]

    def best_differences(self) -> list[Block]:
        rows = [row for row in self.facts["differences"] if row["label"] == BEST]
        if not rows:
            return []
        blocks: list[Block] = [Heading(2, self.words["differences_best"])]
        return [*blocks, *self.by_beta(rows)]

    def by_beta(self, rows: Sequence[Facts]) -> list[Block]:
        """A table of differences for each beta that is compared with the reference."""
        betas = dict.fromkeys(row["beta"] for row in rows)
        return [block for beta in betas for block in self.differences([row for row in rows if row["beta"] == beta])]

    def differences(self, rows: Sequence[Facts]) -> list[Block]:
        beta, reference = rows[0]["beta"], rows[0]["reference"]
        names = ("difference", "direction", "interval", "interval_holm", "p_holm", "needed")
        betas = [self.say("beta", beta=f"{value:g}") for value in (reference, beta)]
        head = [self.words["size"], self.words["shots"], *betas, *(self.words[name] for name in names)]
        cells = []
        for row in rows:
            line = [str(row["size"]), str(row["shots"]), *map(self.percent, reversed(row["accuracies"]))]
            if row["points"] is None:
                cells.append([*line, *([self.words["missing"]] * len(names))])
                continue
            arrow = _ARROWS[row["direction"]]
            cells.append(
                [
                    *line,
                    self.percent(row["points"], signed=True),
                    self.say("significant", direction=arrow) if row["significant"] else arrow,
                    self.interval(row["interval"]),
                    self.interval(row["interval_holm"]),
                    f"{row['p_holm']:.3g}",
                    _NOTHING if row["questions_needed"] is None else str(row["questions_needed"]),
                ]
            )
        tests = [row for row in self.facts["differences"] if row["points"] is not None]
        counts = {flag: sum(row["primary"] is flag for row in tests) for flag in (True, False)}
        tested = " + ".join(str(counts[flag]) for flag in (True, False) if any(row["primary"] is flag for row in rows))
        known = [row for row in rows if row["points"] is not None]
        note = self.say("differences_note", beta=f"{beta:g}", reference=f"{reference:g}", tie=TIE, tests=tested)
        bound = self.say("bound_note", tests=tested)
        told = bound if _kind(known) == "bound" else note
        new = bool(known) and told != self.told
        self.told = told
        return [Table(head, cells), *([Paragraph(told)] if new else [])]

    def statistics(self) -> list[Block]:
        blocks: list[Block] = [Heading(2, self.words["statistics"]), *self.figure("accuracy.png", "heatmap")]
        blocks += self.figure("differences.png", "differences")
        for pair in self.facts["statistics"]:
            by_label = pair["by_label"]
            names = [self.label(label) for label in by_label]
            counts = {"up": "up", "tie": "tie", "down": "down", "missing": "missing_cells"}
            rows = [[self.words["mean"], *(self.percent(found["mean"], signed=True) for found in by_label.values())]]
            for name in ("largest_gain", "largest_drop"):
                rows.append([self.words[name], *(self.extreme(found) for found in (f[name] for f in by_label.values()))])
            for name, word in counts.items():
                rows.append([self.say(word, tie=TIE), *(f"{found[name]}/{found['cells']}" for found in by_label.values())])
            title = self.say("statistics_of", beta=f"{pair['beta']:g}", reference=f"{pair['reference']:g}")
            blocks += [Heading(3, title), Table([self.words["statistic"], *names], rows)]
            for name, word in (("by_shots", "shots"), ("by_size", "size")):
                keys = next(iter(by_label.values()))[name] if by_label else ()
                rows = [
                    [f"Shot {key}" if word == "shots" else key]
                    + [self.percent(found[name][key], signed=True) for found in by_label.values()]
                    for key in keys
                ]
                head = [self.words[word], *(self.say("mean_at", label=label) for label in names)]
                blocks += [Heading(4, self.words[name]), Table(head, rows)]
        return blocks

    def extreme(self, found: Facts | None) -> str:
        if found is None:
            return self.words["none"]
        return self.say("at_cell", points=self.percent(found["points"], signed=True), size=found["size"], shots=found["shots"])

    def epochs_compared(self) -> list[Block]:
        names = ("beta", "epochs_pair", "equal_cells", "same_picks", "why")
        rows = []
        for row in self.facts["epochs_compared"]:
            shares = self.join(f"Shot {k} {self.percent(100.0 * share, digits=1)}" for k, share in row["overlap"].items())
            rows.append(
                [
                    f"{row['kl_beta']:g}",
                    " / ".join(map(str, row["epochs"])),
                    f"{row['equal']}/{row['cells']}",
                    shares or self.words["unknown"],
                    self.epochs_explained(row),
                ]
            )
        if not rows:
            return []
        head = ["KL_BETA" if name == "beta" else self.words[name] for name in names]
        return [Heading(2, self.words["epochs"]), Table(head, rows)]

    def epochs_explained(self, row: Facts) -> str:
        if not row["cells"]:
            return self.words["epochs_none"]
        if row["equal"] < row["cells"]:
            return self.say("epochs_some", largest=self.percent(row["largest"]))
        if row["reason"]:
            why = self.say("why_records", reason=explain(row["reason"], self.language))
        elif row["overlap"]:
            why = self.say("why_answers", share=self.percent(100.0 * min(row["overlap"].values()), digits=1))
        else:
            why = self.words["why_unknown"]
        return self.say("epochs_equal", cells=row["cells"], why=why)

    def overlap(self) -> list[Block]:
        """How far the best epochs of two betas, and any two checkpoints of one, pick the same."""
        tables = [(self.words["overlap_best"], "KL_BETA", self.facts["overlap_of_best"])]
        tables += [
            (self.say("overlap_of", beta=f"{run['kl_beta']:g}"), self.words["policy"], run.get("overlap", ()))
            for run in self.runs
        ]
        blocks: list[Block] = []
        for title, first, rows in tables:
            if rows:
                head = [first, *(self.words[name] for name in ("shots", "same_picks", "same_any_order", "why"))]
                blocks += [Heading(3, title), Table(head, [self.overlap_row(row) for row in rows])]
        return [Heading(2, self.words["overlap"]), *blocks] if blocks else []

    def overlap_row(self, row: Facts) -> list[str]:
        return [
            f"{row['first']} / {row['second']}",
            str(row["shots"]),
            self.percent(100.0 * row["ordered"], digits=1),
            self.percent(100.0 * row["unordered"], digits=1),
            explain(row["reason"], self.language) if "reason" in row else "",
        ]

    # baselines, betas, examples

    def baselines(self) -> list[Block]:
        blocks: list[Block] = [Heading(2, self.words["baselines"])]
        if not any("baselines" in run for run in self.runs):
            return [*blocks, Paragraph(self.words["baselines_none"])]
        blocks += self.figure("baselines.png", "baselines")
        shots = sorted(
            {int(k) for run in self.runs for c in run.get("baselines", {}).values() for row in c.values() for k in row}
        )
        head = [self.words["policy"], self.words["size"], *(self.say("shot", shots=k) for k in shots)]
        seen: dict[str, Facts] = {}
        rows = []
        for run in self.runs:
            named = {name: cells for name, cells in run.get("baselines", {}).items() if seen.get(name) != cells}
            seen |= named
            best = next((item["accuracy"] for item in run["epochs"] if item["epoch"] == run.get("best_epoch")), None)
            if best:
                named[self.say("registered_mark", beta=f"{run['kl_beta']:g}", epoch=run["best_epoch"])] = best
            for name, cells in named.items():
                for size, row in cells.items():
                    rows.append(
                        [
                            policy_label(run, name),
                            size,
                            *(self.percent(row[str(k)]) if str(k) in row else _NOTHING for k in shots),
                        ]
                    )
        blocks.append(Table(head, rows))
        against = self.facts["against_baselines"]
        if against:
            head = ["KL_BETA", *(self.words[name] for name in ("policy", "difference", "direction", "interval_holm", "p_holm"))]
            rows = [
                [
                    f"{row['beta']:g}",
                    row["baseline"],
                    self.percent(row["points"], signed=True),
                    self.say("significant", direction=_ARROWS[row["direction"]])
                    if row["significant"]
                    else _ARROWS[row["direction"]],
                    self.interval(row["interval_holm"]),
                    f"{row['p_holm']:.3g}",
                ]
                for row in against
            ]
            blocks += [Paragraph(self.say("against_note", size=against[0]["size"], tests=len(against))), Table(head, rows)]
        return blocks

    def curve(self) -> list[Block]:
        ranking = self.facts["ranking"]
        if len(ranking) < 3:
            return []
        names = ("rank", "selection", "report_accuracy", "interval", "kl", "model")
        head = [self.words["rank"], "KL_BETA", "Epoch", *(self.words[name] for name in names[1:])]
        rows = [
            [
                str(rank),
                f"{row['beta']:g}",
                str(row["epoch"]),
                self.stated(row["selection"]),
                self.percent(row["accuracy"]),
                self.interval(row["interval"]),
                self.number(row["kl"]),
                self.registered(row["registered"]),
            ]
            for rank, row in enumerate(ranking, start=1)
        ]
        selected = all(row["selection"] is not None for row in ranking)
        note = Paragraph(self.words["selected_by" if selected else "ranked_by_mean"])
        return [Heading(2, self.words["curve"]), *self.figure("beta_curve.png", "beta"), Table(head, rows), note]

    def examples(self) -> list[Block]:
        examples = self.facts["examples"]
        if not examples:
            return []
        (pair,) = self.facts["statistics"]
        betas = [f"{pair[name]:g}" for name in ("beta", "reference")]
        head = [self.words["question"], self.words["shots"], self.words["difference"]]
        head += [self.say(name, beta=beta) for name in ("answer_of", "picks_of") for beta in betas]
        rows = [
            [
                f"{row['question_id']}: {row['question']}",
                str(row["shots"]),
                self.percent(row["points"], signed=True),
                *row["answers"],
                *(", ".join(map(str, picks)) for picks in row["picks"]),
            ]
            for row in examples
        ]
        return [Heading(2, self.words["examples"]), Table(head, rows)]

    # what it comes to

    def findings(self) -> list[Block]:
        found = [self.finding(finding) for finding in self.facts["findings"]]
        return [Heading(2, self.words["findings"]), Bullets(found or [self.words["no_findings"]])]

    def finding(self, finding: Facts) -> str:
        values = {name: self.shown(name, value) for name, value in finding.items()}
        rule = finding["rule"]
        if rule == "few_positive":
            values["rate"] = self.percent(100.0 * finding["positive"] / finding["queries"], digits=1)
        if rule == "difference":
            values["word"] = self.words["better" if finding["points"] > 0 else "worse"]
        if rule == "no_difference":
            name = "needed_nothing" if finding["questions_needed"] is None else "needed_sentence"
            values["needed"] = self.say(name, **values)
        if rule in ("baseline_up", "baseline_down"):
            values["points"] = self.percent(abs(finding["points"]))
        if rule.startswith("kl_"):
            values["values"] = " → ".join(map(self.number, finding["values"]))
        limits = {"few": self.percent(100.0 * FEW_POSITIVE, digits=1), "little": f"{LITTLE_CONTRAST:g}"}
        return self.say(f"find_{rule}", **limits, **values)

    def shown(self, name: str, value: Any) -> str:
        """A number of a finding as its name demands."""
        if name == "points":
            return self.percent(value, signed=True)
        if name == "change":
            return _NOTHING if value is None else self.percent_change(value)
        if name in ("share", "oracle", "random", "winnable"):
            return self.percent(100.0 * value, digits=1)
        if name == "interval_holm":
            return self.interval(value)
        if name == "accuracies":
            return " / ".join(map(self.percent, value))
        if name == "kind":
            return self.words[f"kind_{value}"]
        if name == "p_holm":
            return f"{value:.3g}"
        return self.join(map(str, value)) if isinstance(value, list) else self.value(value)

    def conclusion(self) -> list[Block]:
        choice = self.facts["choice"]
        reference = self.facts["reference"]
        name = "choice_better_reference" if choice["rule"] == "better" and choice["beta"] == reference else ""
        beta = "" if choice["beta"] is None else f"{choice['beta']:g}"
        text = self.say(name or f"choice_{choice['rule']}", beta=beta, reference=f"{reference:g}")
        rows = [
            [
                f"{run['kl_beta']:g}{' *' if run['kl_beta'] == choice['beta'] else ''}",
                self.value(run.get("best_epoch")),
                self.stated(run.get("selection_accuracy", {}).get(str(run.get("best_epoch")))),
                self.registered(run.get("registered")),
            ]
            for run in self.runs
        ]
        head = ["KL_BETA", "Epoch", self.words["selection"], self.words["model"]]
        return [
            Heading(2, self.words["conclusion"]),
            Heading(3, self.words["choice"]),
            Paragraph(text),
            Heading(3, self.words["best_model"]),
            Table(head, rows),
        ]

    def missing(self) -> list[Block]:
        rows = [
            [f"{row['beta']:g}", str(row["epoch"]), ", ".join(row["what"]), row["command"]] for row in self.facts["missing"]
        ]
        head = ["KL_BETA", "Epoch", self.words["what"], self.words["command"]]
        table = Table(head, rows) if rows else Paragraph(self.words["nothing_missing"])
        return [Heading(2, self.words["missing_title"]), table]

    def reproduce(self) -> list[Block]:
        commands = [line for run in self.runs for line in run.get("commands", ())]
        notes = [] if commands else [Paragraph(self.words["no_commands"])]
        return [Heading(2, self.words["reproduce"]), Code([*commands, self.facts["command"]]), *notes]

    # words and numbers

    def say(self, key: str, **values: Any) -> str:
        return self.words[key].format(**values)

    def join(self, parts: Iterable[str]) -> str:
        return self.words["and"].join(parts)

    def label(self, label: str) -> str:
        return self.words["best"] if label == BEST else self.say("epoch", epoch=label)

    def figure(self, file: str, name: str) -> list[Block]:
        return [Figure(file, self.words[f"figure_{name}"])] if file in self.figures else []

    def percent(self, value: float | None, *, signed: bool = False, digits: int | None = None) -> str:
        if value is None:
            return self.words["missing"]
        return self.say("percent", value=_decimals(value, digits, signed=signed))

    def stated(self, value: float | None) -> str:
        """An accuracy that there need not be."""
        return self.words["unknown"] if value is None else self.percent(value)

    def change(self, value: float | None) -> str:
        return "" if value is None else f" ({self.percent_change(value)})"

    def percent_change(self, value: float) -> str:
        """With one decimal, or as many as a small change needs not to look like none."""
        small = 0.0 < abs(value) < 0.05
        return self.say("percent", value=f"{value:+.1g}") if small else self.percent(value, signed=True, digits=1)

    def interval(self, ends: Sequence[float] | None) -> str:
        return self.words["unknown"] if ends is None else f"[{ends[0]:+.2f}, {ends[1]:+.2f}]"

    def number(self, value: float | None) -> str:
        return self.words["missing"] if value is None else f"{value:.{DIGITS}g}"

    def value(self, value: Any) -> str:
        if value is None:
            return self.words["unknown"]
        if isinstance(value, bool):
            return self.words["yes" if value else "no"]
        return f"{value:.6g}" if isinstance(value, float) else str(value)

    def registered(self, model: Facts | None) -> str:
        return self.words["not_registered"] if model is None else self.say("registered_as", **model)


def _kind(rows: Sequence[Facts]) -> str:
    """``paired`` where all of these differences are, else ``bound``."""
    return "paired" if all(row["kind"] == "paired" for row in rows) else "bound"


def _decimals(value: float, digits: int | None = None, *, signed: bool = False) -> str:
    """Rounded half up to so many decimals, or to one or two as the value needs; never a negative zero."""
    step = Decimal(1).scaleb(-2 if digits is None else -digits)
    rounded = Decimal(f"{value:.9f}").quantize(step, ROUND_HALF_UP)
    text = f"{rounded if rounded else abs(rounded):{'+' if signed and rounded else ''}f}"
    return text[:-1] if digits is None and text.endswith("0") else text
