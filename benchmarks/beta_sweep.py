"""Measures whether GRPO improves on its RCE start on the embedded default, and what clip range, learning rate and beta do.

The RL data are the demo's (600 queries, an untrained selector, seed 0). For each training seed RCE is trained at its defaults.
Its epoch with the highest expected reward is the start of that seed, with which everything is compared. Each epoch of every
further training is a candidate: of GRPO from that start or from the untrained selector, and of RCE that is trained for longer.
The candidate with the best accuracy on the 400 selection questions, the earliest among equals, is evaluated on the 800 report
questions, which are about other images. Questions, pools and this choice are those of the pipeline, at 2 shots; as there, the
start is no candidate.

Gains are in points over the RCE start of the same seed, on the same questions. Their 95 % intervals (percentile, 10,000
resamples) draw training seeds and questions with replacement and independently of each other, because both are samples; with
few seeds such an interval is rather too wide than too narrow. No interval is corrected for the number of rows. The gain beside
the selection accuracy is flattered by the choice of an epoch. ``gain, every epoch`` is without that choice, the mean over all
epochs; by it the default was chosen. KL is the exact KL from the start of the same training, mean over the steps of the chosen
epoch. ``picks changed`` is the share of report questions whose demonstrations, in order, are not those of that start.
``clipped`` is the share of trials whose ratio is clipped.

The answers of each policy are a line of the output file, with a character for each question: tenths of its accuracy, where
``a`` is 1. What the file holds already is skipped when the experiment is started again.

    OMP_NUM_THREADS=1 python -m benchmarks.beta_sweep --output docs/figures/beta_sweep.jsonl --plot docs/figures/beta_sweep.png
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.embedded import (
    DATA_SEED,
    RANDOM_DRAWS,
    SIMILARITY,
    Bench,
    QuestionSet,
    append_row,
    as_rl_data,
    best_epoch,
    read_rows,
)
from lever_mlflow.evaluation.policies import RANDOM
from lever_mlflow.evaluation.questions import split_questions
from lever_mlflow.files.cache_dir import default_cache_dir
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import EvalSettings, GrpoSettings, RceSettings, RolloutSettings, preset_of
from lever_mlflow.training.grpo import train_grpo
from lever_mlflow.training.loop import Epoch
from lever_mlflow.training.rce import train_rce
from lever_mlflow.trials.rl_data import RLData

UNTRAINED, RCE, MORE_RCE, GRPO, GRPO_ALONE = "untrained", "rce", "more rce", "grpo", "grpo from untrained"
PARTS = ("selection", "report")
SHOTS, RESAMPLES = 2, 10_000
BETAS, LRS = (0.0, 0.05, 0.12, 0.15, 0.18, 0.5), (5e-6, 5e-5, 2e-4, 1e-3)
COLOURS = ("tab:blue", "tab:green", "tab:orange", "tab:red")
# metric of an epoch -> its name in the records
EPOCH_METRICS = {
    "train/loss": "train_loss",
    "val/expected_reward": "expected_reward",
    "train/ppo_loss": "ppo_loss",
    "train/kl": "kl",
    "train/kl_exact": "kl_exact",
    "val/picks_changed": "picks_changed",
}
VARIED = ("epochs", "lr", "kl_beta", "batch_size", "freeze_backbone", "epsilon", "epsilon_high")
Settings = GrpoSettings | RceSettings

PREDECESSOR, DEFAULT = preset_of(GrpoSettings, "predecessor"), GrpoSettings()
CLIPS = ((0.2, 0.0), (0.5, 2.0), (0.9, 5.0), (0.99, 1000.0))


def trainings() -> list[tuple[str, Settings]]:
    """Returns all trainings of a seed: both presets at several lr and beta, what the default was chosen from, and others."""
    other = [replace(PREDECESSOR, lr=1e-3, epochs=10), replace(DEFAULT, lr=1e-3, epochs=5, freeze_backbone=True)]
    chosen_from = [
        replace(DEFAULT, lr=lr, epochs=5, epsilon=low, epsilon_high=high)
        for (low, high), lr in itertools.product(CLIPS[:3], (5e-5, 1e-4, 2e-4, 5e-4, 1e-3))
    ]
    other += [replace(DEFAULT, epochs=5, epsilon=CLIPS[3][0], epsilon_high=CLIPS[3][1]), replace(DEFAULT, batch_size=1)]
    presets = [replace(preset, lr=lr, kl_beta=beta) for preset in (PREDECESSOR, DEFAULT) for lr in LRS for beta in BETAS]
    longer = [RceSettings(epochs=15), RceSettings(epochs=10, lr=5e-4, batch_size=8)]
    by_grpo: list[tuple[str, Settings]] = [(GRPO, settings) for settings in (*other, *chosen_from, *presets)]
    return [*by_grpo, (GRPO_ALONE, DEFAULT), *((MORE_RCE, settings) for settings in longer)]


@dataclass(frozen=True, eq=False)
class Sweep:
    """Holds what all trainings share."""

    bench: Bench

    @cached_property
    def data(self) -> RLData:
        return as_rl_data(self.bench.groups)

    @cached_property
    def questions(self) -> dict[str, QuestionSet]:
        """Returns the selection and the report questions."""
        parts = split_questions(self.bench.resources.val, EvalSettings(), DATA_SEED)._asdict()
        return {part: self.bench.questions(parts[part], (SHOTS,)) for part in PARTS}

    def row(self, policy: str, seed: int, picks: Mapping[str, np.ndarray], **figures: Any) -> dict[str, Any]:
        """Makes a line of the output file: policy, seed, figures, and tenths of accuracy on both parts."""
        answers = {part: encode(self.questions[part].accuracy_QS(picks[part])[:, 0]) for part in PARTS}
        return {"policy": policy, "seed": seed, "n_queries": self.bench.n_queries, **figures, **answers}

    def baseline(self, policy: str, seed: int) -> dict[str, Any]:
        """Evaluates random demonstrations, with the number of the draw as seed, or the most similar ones."""
        pick: Callable[[QuestionSet], np.ndarray] = (
            (lambda q: q.random_QK(seed)) if policy == RANDOM else QuestionSet.similarity_QK
        )
        return self.row(policy, seed, {part: pick(questions) for part, questions in self.questions.items()})

    @cache  # noqa: B019
    def start(self, seed: int) -> PointerSelector:
        """Trains the RCE start of a seed."""
        return best_epoch(train_rce(self.data, self.bench.train_SD, RceSettings(), seed=seed))[1]

    def train(self, policy: str, seed: int, settings: Settings) -> dict[str, Any]:
        """Runs one training; returns its epochs, and the answers of the epoch that is best on the selection questions."""
        start = self.bench.untrained(seed) if policy == GRPO_ALONE else self.start(seed)
        trained: Iterable[Epoch]
        if isinstance(settings, GrpoSettings):
            trained = train_grpo(start, self.data, self.bench.train_SD, settings, seed=seed)
        else:
            trained = train_rce(self.data, self.bench.train_SD, settings, seed=seed)
        start_picks = self.picks(start)
        epochs, best, best_picks, chosen = [], -1.0, start_picks, 0
        for epoch in trained:
            picks = self.picks(copy.deepcopy(epoch.selector).eval())
            selection = round(float(self.questions["selection"].accuracy_QS(picks["selection"]).mean()), 12)
            epochs.append({**epoch_figures(epoch.metrics), "selection": selection})
            if selection > best:
                best, best_picks, chosen = selection, picks, epoch.epoch
        changed = {part: round(float((best_picks[part] != start_picks[part]).any(1).mean()), 5) for part in PARTS}
        figures = {"settings": varied(settings), "chosen": chosen, "changed": changed, "by_epoch": epochs}
        return self.row(policy, seed, best_picks, **figures)

    def picks(self, selector: PointerSelector) -> dict[str, np.ndarray]:
        """Returns a selector's greedy picks for both parts."""
        return {part: self.questions[part].greedy_QK(selector) for part in PARTS}


def epoch_figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of an epoch that are kept, rounded, and of GRPO the share of clipped trials."""
    figures = {field: round(metrics[name], 6) for name, field in EPOCH_METRICS.items() if name in metrics}
    if "train/clip_ratio_low" in metrics:
        figures["clip_fraction"] = round(metrics["train/clip_ratio_low"] + metrics["train/clip_ratio_high"], 6)
    return figures


def varied(settings: Settings) -> dict[str, Any]:
    """Returns the settings that this experiment varies."""
    return {name: value for name, value in asdict(settings).items() if name in VARIED}


def encode(accuracy_Q: np.ndarray) -> str:
    """Writes the accuracy of each question as a hexadecimal digit: its tenths."""
    tenths_Q = np.rint(10 * accuracy_Q).astype(int)
    assert np.allclose(tenths_Q / 10, accuracy_Q)
    return "".join(f"{tenth:x}" for tenth in tenths_Q)


def decode(answers: str) -> np.ndarray:
    """Reads what ``encode`` wrote, as accuracy in percent, [questions]."""
    return 10.0 * np.array([int(tenth, 16) for tenth in answers])


def identity(policy: str, seed: int, settings: Mapping[str, Any] | None) -> tuple[str, int, str]:
    """Returns what distinguishes a measurement from all others."""
    return policy, seed, json.dumps(settings, sort_keys=True)


def run(sweep: Sweep, output: Path, seeds: Sequence[int]) -> None:
    """Measures what the output file lacks."""
    rows = read_rows(output, sweep.bench.n_queries)
    measured = {identity(row["policy"], row["seed"], row.get("settings")) for row in rows}
    for policy, draw in [*((RANDOM, draw) for draw in range(RANDOM_DRAWS)), (SIMILARITY, 0)]:
        if identity(policy, draw, None) not in measured:
            append_row(output, sweep.baseline(policy, draw))
    for seed in seeds:
        for policy, selector in ((UNTRAINED, sweep.bench.untrained), (RCE, sweep.start)):
            if identity(policy, seed, None) not in measured:
                append_row(output, sweep.row(policy, seed, sweep.picks(selector(seed))))
    planned = [(policy, seed, settings) for seed in seeds for policy, settings in trainings()]
    missing = [training for training in planned if identity(*training[:2], varied(training[2])) not in measured]
    for policy, seed, settings in tqdm(missing, "trainings", unit="run"):
        append_row(output, sweep.train(policy, seed, settings))


def two_way_interval(points_TQ: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of the mean over T seeds and Q questions, both drawn with replacement."""
    seeds_RT, questions_RQ = (resample(size) for size in points_TQ.shape)
    means_R = ((seeds_RT @ points_TQ) * questions_RQ).sum(1) / points_TQ.size
    low, high = np.percentile(means_R, [2.5, 97.5])
    return float(low), float(high)


@cache
def resample(size: int) -> np.ndarray:
    """Draws ``size`` of ``size`` things with replacement; returns how often each is drawn, [resamples, size]."""
    return np.random.default_rng([0, size]).multinomial(size, np.full(size, 1 / size), RESAMPLES)


def to_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Makes a row for each policy and settings, with accuracy and gain over the RCE start in percent, over its seeds."""
    start = {(row["seed"], part): decode(row[part]) for row in rows if row["policy"] == RCE for part in PARTS}
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["policy"], json.dumps(row.get("settings"), sort_keys=True)), []).append(row)
    records = []
    for (policy, _), members in groups.items():
        seeds = [row["seed"] for row in members if (row["seed"], "report") in start]
        record: dict[str, Any] = {"policy": policy, "seeds": len(members), **(members[0].get("settings") or {})}
        for part in PARTS:
            accuracy_TQ = np.stack([decode(row[part]) for row in members])
            record[part], record[f"{part}_range"] = accuracy_TQ.mean(), two_way_interval(accuracy_TQ)
            if policy not in (RANDOM, SIMILARITY, RCE):  # others have a start of the same seed
                gain_TQ = accuracy_TQ - np.stack([start[seed, part] for seed in seeds])
                record[f"{part}_gain"], record[f"{part}_gain_range"] = gain_TQ.mean(), two_way_interval(gain_TQ)
                record[f"{part}_better"] = int((gain_TQ.mean(1) > 1e-9).sum())
        if "settings" in members[0]:
            chosen = [row["by_epoch"][row["chosen"] - 1] for row in members]
            every = [
                100 * epoch["selection"] - start[row["seed"], "selection"].mean()
                for row in members
                for epoch in row["by_epoch"]
            ]
            record |= {"every_epoch": np.mean(every), "changed": np.mean([row["changed"]["report"] for row in members])}
            if policy in (GRPO, GRPO_ALONE):
                record["kl"] = np.mean([epoch["kl_exact"] for epoch in chosen])
                record["clipped"] = np.mean([epoch["clip_fraction"] for epoch in chosen])
        records.append(record)
    order = {policy: i for i, policy in enumerate((RANDOM, SIMILARITY, UNTRAINED, RCE, MORE_RCE, GRPO, GRPO_ALONE))}
    keys = ["order", "freeze_backbone", "epsilon", "epochs", "batch_size", "lr", "kl_beta"]
    return pd.DataFrame(records).assign(order=lambda frame: frame.policy.map(order)).sort_values(keys, ignore_index=True)


def short(value: Any) -> str:
    """Writes a setting shortly: 0.05, 5e-6."""
    return f"{value:g}" if value == 0 or value >= 0.01 else np.format_float_scientific(value, trim="-", exp_digits=1)


def described(row: Mapping[str, Any]) -> str:
    """Describes a training in words, without its beta."""
    if row["lr"] is None:
        return str(row["policy"])
    words = f"{row['policy']}, lr {short(row['lr'])}, {row['epochs']:g} epochs, batch {row['batch_size']:g}"
    if row["kl_beta"] is None:
        return words
    bounds = f"{1 - row['epsilon']:g} to {1 + (row['epsilon_high'] or row['epsilon']):g}"
    return f"{words}, {'frozen backbone' if row['freeze_backbone'] else 'whole selector'}, ratio {bounds}"


def cell(row: Mapping[str, Any], name: str, form: str, *, interval: bool = False) -> str:
    """Writes a figure, and its interval if asked for; an absent figure is empty."""
    if row[name] is None:
        return ""
    low_high = " ({} to {})".format(*(format(bound, form) for bound in row[f"{name}_range"])) if interval else ""
    return format(row[name], form) + low_high


def markdown(frame: pd.DataFrame) -> str:
    """Makes a table with a row for each policy and settings."""
    lines = [
        "| policy | beta | selection | gain over RCE | gain, every epoch | report | gain over RCE | seeds better "
        "| picks changed | KL | clipped |",
        "|" + "---|" * 11,
    ]

    for record in frame.to_dict("records"):
        row = {str(name): None if not isinstance(value, tuple) and pd.isna(value) else value for name, value in record.items()}
        cells = [described(row), "" if row["kl_beta"] is None else short(row["kl_beta"])]
        cells += [
            cell(row, "selection", ".2f"),
            cell(row, "selection_gain", "+.2f", interval=True),
            cell(row, "every_epoch", "+.2f"),
        ]
        cells += [cell(row, "report", ".2f", interval=True), cell(row, "report_gain", "+.2f", interval=True)]
        cells += ["" if row["report_better"] is None else f"{row['report_better']:.0f} of {row['seeds']}"]
        cells += [cell(row, "changed", ".1%"), cell(row, "kl", ".4f"), cell(row, "clipped", ".1%")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draws gains, picks changed and KL by beta, with a line for each preset and learning rate."""
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    panels[1].sharey(panels[0])
    lines = [
        (name, lr, frame[of_preset(frame, preset) & (frame.lr == lr)].sort_values("kl_beta"))
        for name, preset in (("predecessor", PREDECESSOR), ("default", DEFAULT))
        for lr in LRS
    ]
    for i, (name, lr, part) in enumerate(lines):
        x = np.searchsorted(BETAS, part.kl_beta)
        dodged = x + 0.08 * (i - (len(lines) - 1) / 2)
        style: dict[str, Any] = {
            "color": COLOURS[LRS.index(lr)],
            "ls": "-" if name == "default" else ":",
            "marker": "o",
            "ms": 4,
        }
        for axes, part_name in zip(panels, ("report", "selection"), strict=False):
            gain = part[f"{part_name}_gain"]
            low, high = (np.array([bounds[side] for bounds in part[f"{part_name}_gain_range"]]) for side in (0, 1))
            axes.errorbar(dodged, gain, [gain - low, high - gain], elinewidth=0.8, **style)
        panels[2].plot(x, 100 * part.changed, label=f"preset {name}, lr {short(lr)}", **style)
        panels[3].plot(x, part.kl, **style)
    titles = {
        "(a) report questions (800)": "gain over the RCE start (points)",
        "(b) selection questions (400), where the epoch was chosen": "gain over the RCE start (points)",
        "(c) report questions whose picks are not the start's": "picks changed (%)",
        "(d) exact KL from the start": "KL (nats, log scale)",
    }
    for axes, (title, label) in zip(panels, titles.items(), strict=True):
        axes.set_title(title, fontsize=11)
        axes.set(xlabel="KL weight beta (evenly spaced)", ylabel=label)
        axes.set_xticks(range(len(BETAS)), [f"{beta:g}" for beta in BETAS])
        axes.grid(alpha=0.3)
    for axes in panels[:2]:
        axes.axhline(0, color="grey", lw=1)
    panels[2].set_ylim(bottom=0)
    panels[3].set_yscale("log")
    handles, _ = panels[2].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=len(LRS), fontsize=10, frameon=False)
    seeds = f"means over {frame.seeds.max()} seeds, 95 % intervals over seeds and questions"
    figure.suptitle(f"GRPO from the RCE start, accuracy at {SHOTS} shots: {seeds}", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def of_preset(frame: pd.DataFrame, preset: GrpoSettings) -> pd.Series[bool]:
    """Tells which rows are GRPO with a preset's settings, whatever their lr and beta."""
    same = frame.policy == GRPO
    for name in set(VARIED) - {"lr", "kl_beta"}:
        same &= frame[name] == getattr(preset, name)
    return same


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File of JSON lines for the results. A file that exists is continued.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), required=True, help="PNG file for the picture of the results."
)
@click.option("--seeds", default="0,1,2,3,4", show_default=True, help="Seeds of the trainings, separated by commas.")
@click.option(
    "--n_queries",
    default=RolloutSettings.n_queries,
    show_default=True,
    help="Number of queries of the RL data. A small number makes a quick trial.",
)
def main(output: Path, plot: Path, seeds: str, n_queries: int) -> None:
    """Measures what the output file lacks, and prints and plots all that is in it."""
    sweep = Sweep(Bench(Resources(cache_dir=default_cache_dir()), n_queries))
    run(sweep, output, [int(seed) for seed in seeds.split(",")])
    frame = to_frame(read_rows(output, n_queries))
    click.echo(markdown(frame))
    draw(frame, plot)


if __name__ == "__main__":
    main()
