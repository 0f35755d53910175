"""Measures whether GRPO improves on its RCE start on the embedded default, and what beta and the learning rate do.

RL data: the demo's (600 queries, an untrained selector, seed 0). For each training seed RCE is trained at its defaults; its
epoch with the highest expected reward is the start and the reference of every GRPO training of that seed. Each GRPO epoch is
a candidate; the one with the best mean accuracy over the shot counts on the 400 selection questions is evaluated on the 800
report questions, which are about other images, the earliest among equals. Questions, pools and choice are the pipeline's; the
start is no candidate there either.

Differences are in points, on the same questions, chosen GRPO epoch minus RCE start of the same seed. Their 95 % intervals
(percentile, 10,000 resamples) draw training seeds and questions anew, each with replacement and independently of the other, as
both are samples of what could have been; with few seeds such an interval is rather too wide than too narrow. None is
corrected for the number of rows. KL is the exact KL of the chosen epoch, mean over its training steps; ``picks changed`` is
the share of questions whose demonstrations, in order, are not the start's; ``clipped`` the share of trials whose ratio is;
``reward gain`` that of the expected reward of the RL data's validation queries. ``gain, every epoch`` is on the selection
questions without the choice of an epoch, which flatters the gain beside it.

Every policy's answers are a line of the output file, a character per question: tenths of its accuracy, ``a`` for 1. Started
again, what is there is skipped; with other ``--epochs``, ``--batch_size`` or ``--shots`` it grows by those trainings.
The plot shows what was trained at the defaults and evaluated at 2 shots.

    OMP_NUM_THREADS=1 python -m benchmarks.beta_sweep --output docs/figures/beta_sweep.jsonl --plot docs/figures/beta_sweep.png
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tqdm import tqdm

from benchmarks.bench import (
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
from lever_mlflow.evaluate import RANDOM, split_questions
from lever_mlflow.group_batches import split_groups, tabulate
from lever_mlflow.resources import Resources, default_cache_dir
from lever_mlflow.rl_data import RLData
from lever_mlflow.selector import PointerSelector
from lever_mlflow.train_grpo import train_grpo
from lever_mlflow.train_rce import train_rce
from lever_mlflow.types import EvalSettings, GrpoSettings, RceSettings, RolloutSettings
from lever_mlflow.validation import validate_selector

START, UNTRAINED, GRPO = "rce", "untrained", "grpo"
PARTS = ("selection", "report")
RESAMPLES = 10_000
SETTINGS = ("lr", "kl_beta", "epochs", "batch_size")  # of a GRPO training
EPOCH_METRICS = ("train_loss", "ppo_loss", "kl", "kl_exact", "expected_reward", "picks_changed")
PLOT_SHOTS = (2,)
COLOURS = ("tab:blue", "tab:green", "tab:orange", "tab:red", "tab:purple")


@dataclass(frozen=True)
class Sweep:
    """What all trainings share."""

    bench: Bench
    shots: tuple[int, ...]

    @cached_property
    def data(self) -> RLData:
        return as_rl_data(self.bench.groups)

    @cached_property
    def questions(self) -> dict[str, QuestionSet]:
        """Selection and report questions."""
        parts = split_questions(self.bench.resources.val, EvalSettings(), DATA_SEED)._asdict()
        return {part: self.bench.questions(parts[part], self.shots) for part in PARTS}

    def row(self, policy: str, seed: int, picks: Mapping[str, np.ndarray], **figures: Any) -> dict[str, Any]:
        """A line of the output file: who, figures, and tenths of accuracy per part and shot count."""
        answers = {part: encode(self.questions[part].accuracy_QS(picks[part])) for part in PARTS}
        shots, n_queries = list(self.shots), self.bench.n_queries
        return {"policy": policy, "seed": seed, "shots": shots, "n_queries": n_queries, **figures, **answers}

    def baseline(self, policy: str, seed: int) -> dict[str, Any]:
        """Random demonstrations, with the draw as seed, or the most similar ones."""
        return self.row(
            policy, seed, {p: q.random_QK(seed) if policy == RANDOM else q.similarity_QK() for p, q in self.questions.items()}
        )

    def start(self, seed: int) -> tuple[PointerSelector, list[dict[str, Any]]]:
        """The RCE start of a seed; rows of it and of the untrained selector."""
        epoch, selector = best_epoch(train_rce(self.data, self.bench.train_SD, RceSettings(), seed=seed))
        _, val = split_groups(self.data.groups, RceSettings.val_share, seed)
        table = tabulate(val, self.bench.train_SD, "hard_plus_soft")
        reward = validate_selector(selector, table)["expected_reward"]
        untrained = self.row(UNTRAINED, seed, self.picks(self.bench.untrained(seed)))
        figures = {"chosen": epoch, "expected_reward": round(reward, 6)}
        return selector, [untrained, self.row(START, seed, self.picks(selector), **figures)]

    def grpo(self, start: PointerSelector, seed: int, settings: GrpoSettings) -> dict[str, Any]:
        """One training: its epochs, and the one that is best on the selection questions."""
        start_picks = self.picks(start)
        epochs, best, best_picks = [], -1.0, dict(start_picks)
        for epoch in train_grpo(start, self.data, self.bench.train_SD, settings, seed=seed):
            selector = copy.deepcopy(epoch.selector)
            picks = self.picks(selector)
            selection = round(float(self.questions["selection"].accuracy_QS(picks["selection"]).mean()), 12)
            clipped = epoch.metrics["clip_ratio_low"] + epoch.metrics["clip_ratio_high"]
            measured = {**{name: epoch.metrics[name] for name in EPOCH_METRICS}, "clip_fraction": clipped}
            epochs.append({name: round(value, 6) for name, value in measured.items()} | {"selection": selection})
            if selection > best:
                best, best_picks, chosen = selection, picks, epoch.epoch
        changed = {part: round(float((best_picks[part] != start_picks[part]).any(1).mean()), 5) for part in PARTS}
        figures = {"chosen": chosen, "changed": changed, "by_epoch": epochs}
        return self.row(GRPO, seed, best_picks, **{name: getattr(settings, name) for name in SETTINGS}, **figures)

    def picks(self, selector: PointerSelector) -> dict[str, np.ndarray]:
        """Greedy picks for both parts."""
        return {part: self.questions[part].greedy_QK(selector) for part in PARTS}


def encode(accuracy_QS: np.ndarray) -> list[str]:
    """A string per shot count, a hexadecimal digit per question: tenths of its accuracy."""
    tenths_QS = np.rint(10 * accuracy_QS).astype(int)
    assert np.allclose(tenths_QS / 10, accuracy_QS)
    return ["".join(f"{tenth:x}" for tenth in tenths_Q) for tenths_Q in tenths_QS.T]


def decode(strings: Sequence[str]) -> np.ndarray:
    """Accuracy in percent, [questions, shot counts]."""
    return 10.0 * np.array([[int(tenth, 16) for tenth in string] for string in strings]).T


def identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells measurements apart."""
    return (row["policy"], row["seed"], tuple(row["shots"]), *(row.get(name) for name in SETTINGS))


def run(sweep: Sweep, output: Path, seeds: int, trainings: Sequence[GrpoSettings]) -> None:
    """Measures what the output file lacks."""
    rows = read_rows(output, sweep.bench.n_queries)
    known = {identity(row) for row in rows}
    for policy, draw_seed in [*((RANDOM, draw_seed) for draw_seed in range(RANDOM_DRAWS)), (SIMILARITY, 0)]:
        if identity({"policy": policy, "seed": draw_seed, "shots": sweep.shots}) not in known:
            append_row(output, sweep.baseline(policy, draw_seed))
    wanted = [
        (seed, settings)
        for seed in range(seeds)
        for settings in trainings
        if (GRPO, seed, sweep.shots, *(getattr(settings, name) for name in SETTINGS)) not in known
    ]
    start, start_seed = None, -1
    for seed, settings in tqdm(wanted, "trainings", unit="run"):
        if start is None or seed != start_seed:
            (start, start_rows), start_seed = sweep.start(seed), seed
            for row in start_rows:
                if identity(row) not in known:
                    append_row(output, row)
        append_row(output, sweep.grpo(start, seed, settings))


def two_way_interval(points_TQ: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over seeds and questions, [T, Q], both drawn with replacement."""
    seeds_RT, questions_RQ = (resample(size) for size in points_TQ.shape)
    means_R = ((seeds_RT @ points_TQ) * questions_RQ).sum(1) / points_TQ.size
    low, high = np.percentile(means_R, [2.5, 97.5])
    return float(low), float(high)


@cache
def resample(size: int) -> np.ndarray:
    """How often each of ``size`` things is drawn, [resamples, size]."""
    return np.random.default_rng([0, size]).multinomial(size, np.full(size, 1 / size), RESAMPLES)


def to_frame(
    rows: Sequence[Mapping[str, Any]], shots: tuple[int, ...], at: Sequence[int], by: Sequence[str] = SETTINGS
) -> pd.DataFrame:
    """One row per GRPO setting whose epochs were chosen at ``shots``: accuracies in percent at the shot counts ``at``.

    Settings that are not in ``by`` are averaged over, within each seed.
    """
    rows = [row for row in rows if tuple(row["shots"]) == shots]
    columns = [shots.index(k) for k in at]

    def accuracy_Q(row: Mapping[str, Any], part: str) -> np.ndarray:
        return decode(row[part])[:, columns].mean(1)

    start = {(row["seed"], part): accuracy_Q(row, part) for row in rows if row["policy"] == START for part in PARTS}
    reward = {row["seed"]: row["expected_reward"] for row in rows if row["policy"] == START}
    random_Q = np.mean([accuracy_Q(row, "report") for row in rows if row["policy"] == RANDOM], axis=0)
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["policy"] == GRPO:
            groups.setdefault(tuple(row[name] for name in by), []).append(row)
    records = []
    for settings, members in groups.items():
        record: dict[str, Any] = dict.fromkeys(SETTINGS, "all") | dict(zip(by, settings, strict=True))
        seeds = sorted({row["seed"] for row in members})
        record["seeds"] = len(seeds)
        for part in PARTS:
            gain_TQ = np.stack(
                [
                    np.mean([accuracy_Q(row, part) for row in members if row["seed"] == seed], axis=0) - start[seed, part]
                    for seed in seeds
                ]
            )
            accuracy = np.mean([start[seed, part] for seed in seeds]) + gain_TQ.mean()
            record[part], record[f"{part}_gain"] = accuracy, gain_TQ.mean()
            record[f"{part}_low"], record[f"{part}_high"] = two_way_interval(gain_TQ)
            record[f"{part}_better"] = int((gain_TQ.mean(1) > 1e-9).sum())
            record[f"{part}_worse"] = int((gain_TQ.mean(1) < -1e-9).sum())
        record["over_random"] = record["report"] - random_Q.mean()
        record["changed"] = np.mean([row["changed"]["report"] for row in members])
        chosen = [row["by_epoch"][row["chosen"] - 1] for row in members]
        for name in ("kl_exact", "clip_fraction"):
            record[name] = np.mean([epoch[name] for epoch in chosen])
        record["reward_gain"] = np.mean(
            [epoch["expected_reward"] - reward[row["seed"]] for row, epoch in zip(members, chosen, strict=True)]
        )
        if tuple(at) == shots:  # every epoch, the chosen one or not: free of the luck of the choice
            every = [
                100 * epoch["selection"] - start[row["seed"], "selection"].mean()
                for row in members
                for epoch in row["by_epoch"]
            ]
            record["every_epoch"] = np.mean(every)
        record["chosen"] = " ".join(str(row["chosen"]) for row in members) if len(members) == len(seeds) else ""
        records.append(record)
    order = [name for name in ("epochs", "batch_size", "lr", "kl_beta") if name in by]
    return pd.DataFrame(records).sort_values(order, ignore_index=True) if records else pd.DataFrame()


def short(value: Any) -> str:
    """A setting as one would write it: 0.05, 5e-6."""
    if isinstance(value, str) or value == 0 or value >= 0.01:
        return value if isinstance(value, str) else f"{value:g}"
    return np.format_float_scientific(value, trim="-", exp_digits=1)


def markdown(frame: pd.DataFrame) -> str:
    """A row per GRPO setting."""
    lines = [
        "| epochs | batch | lr | beta | selection | gain over start | gain, every epoch | report | gain over start "
        "| seeds better, worse | over random | picks changed | exact KL | clipped | reward gain | chosen epochs |",
        "|" + "---|" * 16,
    ]
    for row in frame.to_dict("records"):
        cells = [short(row[name]) for name in ("epochs", "batch_size", "lr", "kl_beta")]
        for part in PARTS:
            low, high = row[f"{part}_low"], row[f"{part}_high"]
            cells += [f"{row[part]:.2f}", f"{row[f'{part}_gain']:+.2f} ({low:+.2f} to {high:+.2f})"]
        cells.insert(6, f"{row['every_epoch']:+.2f}" if "every_epoch" in row else "")
        cells += [f"{row['report_better']}, {row['report_worse']} of {row['seeds']}", f"{row['over_random']:+.2f}"]
        cells += [f"{row['changed']:.1%}", f"{row['kl_exact']:.4f}", f"{row['clip_fraction']:.1%}"]
        cells += [f"{row['reward_gain']:+.4f}", row["chosen"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown_baselines(rows: Sequence[Mapping[str, Any]], shots: tuple[int, ...]) -> str:
    """Accuracy of the policies that GRPO is held against, mean and standard deviation over seeds or draws."""
    lines = [f"| policy | selection | report | at {', '.join(map(str, shots))} shots |", "|---|---|---|---|"]
    for policy in (RANDOM, SIMILARITY, UNTRAINED, START):
        members = [row for row in rows if row["policy"] == policy and tuple(row["shots"]) == shots]
        cells = []
        for part in PARTS:
            means = [decode(row[part]).mean() for row in members]
            cells.append(f"{np.mean(means):.2f}" + (f" ± {np.std(means, ddof=1):.2f}" if len(means) > 1 else ""))
        at = ", ".join(f"{mean:.2f}" for mean in np.mean([decode(row["report"]).mean(0) for row in members], axis=0))
        lines.append(f"| {policy} | {' | '.join(cells)} | {at} |")
    return "\n".join(lines)


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tables for every choice of shot counts in the output file; those by learning rate and by beta are of what is plotted."""
    parts = []
    for shots in sorted({tuple(row["shots"]) for row in rows if row["policy"] == GRPO}):
        parts += [
            f"Shots {', '.join(map(str, shots))}:",
            markdown_baselines(rows, shots),
            markdown(to_frame(rows, shots, shots)),
        ]
        if len(shots) > 1:
            parts += [text for k in shots for text in (f"The same, at {k} shots:", markdown(to_frame(rows, shots, [k])))]
    for name in ("lr", "kl_beta"):
        parts += [
            f"Means by {name}:",
            markdown(to_frame(of_sweep(rows), PLOT_SHOTS, PLOT_SHOTS, (name, "epochs", "batch_size"))),
        ]
    return "\n\n".join(parts)


def of_sweep(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without GRPO of other epochs or batch sizes than the defaults."""
    defaults = (GrpoSettings.epochs, GrpoSettings.batch_size)
    return [row for row in rows if row["policy"] != GRPO or (row["epochs"], row["batch_size"]) == defaults]


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Gains, picks changed and exact KL against beta, a line per learning rate."""
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    panels[1].sharey(panels[0])
    betas = sorted(frame.kl_beta.unique())
    for i, (lr, part) in enumerate(frame.groupby("lr")):
        x = np.searchsorted(betas, part.kl_beta)
        dodged = x + 0.12 * (i - (frame.lr.nunique() - 1) / 2)
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": "o",
            "ms": 5,
            "lw": 1.5,
            "label": f"lr {short(lr)}",
        }
        draw_gain(panels[0], dodged, part, "report", style)
        draw_gain(panels[1], dodged, part, "selection", style)
        panels[1].plot(dodged, part.every_epoch, **{**style, "ls": ":", "lw": 1, "markerfacecolor": "white"})
        panels[2].plot(x, 100 * part.changed, **style)
        panels[3].plot(x, part.kl_exact, **style)
    titles = (
        "(a) report questions (800)",
        "(b) selection questions (400), where the epoch was chosen",
        "(c) report questions whose picks are not the start's",
        "(d) exact KL from the start",
    )
    labels = (
        "gain over the RCE start (points)",
        "gain over the RCE start (points)",
        "picks changed (%)",
        "KL (nats, log scale)",
    )
    for axes, title, label in zip(panels, titles, labels, strict=True):
        axes.set_title(title, fontsize=11)
        axes.set(xlabel="KL weight beta (evenly spaced)", ylabel=label)
        axes.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
        axes.grid(alpha=0.3)
    panels[2].set_ylim(bottom=0)
    panels[3].set_yscale("log")
    handles, _ = panels[0].get_legend_handles_labels()
    every = Line2D(
        [], [], color="grey", marker="o", ms=5, ls=":", markerfacecolor="white", label="mean of all epochs, none chosen (b)"
    )
    figure.legend(handles=[*handles, every], loc="outside lower center", ncols=len(handles) + 1, fontsize=10, frameon=False)
    seeds = f"means over {frame.seeds.max()} seeds, 95 % intervals over seeds and questions"
    figure.suptitle(f"GRPO from the RCE start, accuracy at {PLOT_SHOTS[0]} shots: {seeds}", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_gain(axes: Axes, x: np.ndarray, part: pd.DataFrame, name: str, style: Mapping[str, Any]) -> None:
    """Gains with their intervals."""
    gain = part[f"{name}_gain"]
    axes.axhline(0, color="grey", lw=1)
    axes.errorbar(x, gain, [gain - part[f"{name}_low"], part[f"{name}_high"] - gain], elinewidth=1, capsize=2, **style)


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="JSON lines; continued if there")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), required=True, help="PNG to write")
@click.option("--lrs", default="5e-6,5e-5,2e-4,1e-3", show_default=True, help="learning rates of GRPO")
@click.option("--betas", default="0,0.05,0.12,0.15,0.18,0.5", show_default=True, help="KL weights")
@click.option("--epochs", default=GrpoSettings.epochs, show_default=True, help="of GRPO")
@click.option("--batch_size", default=GrpoSettings.batch_size, show_default=True, help="of GRPO")
@click.option("--shots", default="2", show_default=True, help="shot counts that choose the epoch and are reported")
@click.option("--seeds", default=5, show_default=True, help="seeds 0 to this - 1")
@click.option("--n_queries", default=RolloutSettings.n_queries, show_default=True, help="of the RL data; few for a try")
def main(
    output: Path, plot: Path, lrs: str, betas: str, epochs: int, batch_size: int, shots: str, seeds: int, n_queries: int
) -> None:
    """Measure, plot and print Markdown tables of everything in the output file."""
    sweep = Sweep(Bench(Resources(cache_dir=default_cache_dir()), n_queries), tuple(int(k) for k in shots.split(",")))
    settings = replace(GrpoSettings(), epochs=epochs, batch_size=batch_size)
    trainings = [replace(settings, lr=float(lr), kl_beta=float(beta)) for lr in lrs.split(",") for beta in betas.split(",")]
    run(sweep, output, seeds, trainings)
    rows = read_rows(output, n_queries)
    click.echo(report(rows))
    draw(to_frame(of_sweep(rows), PLOT_SHOTS, PLOT_SHOTS), plot)


if __name__ == "__main__":
    main()
