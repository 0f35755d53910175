"""Measures at which values of the data gate's metrics training on the embedded default stops helping.

The demo's RL data (600 queries, an untrained selector, seed 0) are spoiled step by step: in a share of the groups, chosen by
seed, every trial gets the score 0, as if the rollout had been broken. Each mixture goes through the gate. Then RCE is trained
on it with the default settings, and GRPO with those of the predecessor and beta 0.12; each takes its epoch with the highest
expected reward, as the pipeline does. All evaluation questions are then answered at 2 shots, with the same pool of 64 for
every policy.

A mixture has three variants, which share the untouched groups:

* ``mixed`` has the untouched groups and the zeroed ones;
* ``dropped`` has only the untouched ones, which tells the harm done by zeroed groups from a mere loss of data;
* ``matched`` is like ``dropped``, with so many RCE epochs that RCE takes as many steps as in ``mixed``; GRPO is the same.

At a share of 100 % only the pointers themselves are left to learn from. Accuracy gains are in points, over random
demonstrations and over the untrained selector that the training seed initialises. Every finished training is a line of the
output file, and a training that has its line is skipped when the experiment is started again. The plot leaves out GRPO of
``dropped`` and ``matched``; the table has it.

    OMP_NUM_THREADS=1 python -m benchmarks.gate_thresholds --output docs/figures/gate_thresholds.jsonl \\
        --plot docs/figures/gate_thresholds.png
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from tqdm import tqdm

from benchmarks.embedded import RANDOM_DRAWS, SIMILARITY, Bench, QuestionSet, append_row, as_rl_data, best_epoch, read_rows
from lever_mlflow import gate
from lever_mlflow.evaluation.policies import RANDOM
from lever_mlflow.files.cache_dir import default_cache_dir
from lever_mlflow.gate.suites import read_suites
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.settings import GrpoSettings, RceSettings, RolloutSettings, preset_of
from lever_mlflow.training.grpo import train_grpo
from lever_mlflow.training.rce import train_rce
from lever_mlflow.trials.rl_data import Group

SHOTS = 2
KL_BETA = 0.12
VARIANTS = ("mixed", "dropped", "matched")
FIGURES = {  # metric of the gate -> suite and name of its critical expectation; the warning has the suffix _warning
    "positive_query_rate": ("rl_queries", "positive_query_rate"),
    "reward_mean": ("rl_trials", "reward_mean"),
    "frac_reward_zero_std": ("rl_queries", "zero_spread_share"),
}
VERDICT_COLOURS = {"pass": "white", "warning": "gold", "critical": "red"}
LINES = {  # (variant, policy) -> colour, marker, style and label of its line
    ("mixed", "rce"): ("tab:blue", "o", "-", "RCE, zeroed groups mixed in"),
    ("mixed", "grpo"): ("tab:cyan", "^", "-", "GRPO, zeroed groups mixed in"),
    ("dropped", "rce"): ("tab:purple", "s", "--", "RCE, zeroed groups left out"),
    ("matched", "rce"): ("tab:green", "D", ":", "RCE, left out, as many steps (e and f)"),
}


def spoil(groups: Sequence[Group], share: float, seed: int, variant: str) -> list[Group]:
    """Scores ``share`` percent of the groups 0, or leaves them out in the variants without zeroed groups.

    The groups of a smaller share are among those of a larger one.
    """
    order = np.random.default_rng([seed, 7]).permutation(len(groups))
    zeroed = set(order[: round(share / 100 * len(groups))].tolist())
    if variant != "mixed":
        return [group for i, group in enumerate(groups) if i not in zeroed]
    return [zero(group) if i in zeroed else group for i, group in enumerate(groups)]


def zero(group: Group) -> Group:
    """Returns a group with the same pointers, of which every answer is wrong."""
    return replace(group, trials=tuple(replace(trial, correct=0.0, accuracy=0.0) for trial in group.trials))


def baselines(questions: QuestionSet) -> dict[str, float]:
    """Returns the accuracy of random demonstrations, as the mean over draws, and of the most similar ones."""
    draws = [questions.accuracy_QS(questions.random_QK(seed)).mean() for seed in range(RANDOM_DRAWS)]
    return {RANDOM: float(np.mean(draws)), SIMILARITY: float(questions.accuracy_QS(questions.similarity_QK()).mean())}


def measure(bench: Bench, questions: QuestionSet, share: float, seed: int, variant: str) -> dict[str, Any]:
    """Trains on one mixture; returns the gate's metrics and the accuracies as a line of the output file."""
    groups = spoil(bench.groups, share, seed, variant)
    data = as_rl_data(groups)
    result = gate.check(data)
    settings = RceSettings()
    if variant == "matched":
        settings = replace(settings, epochs=round(settings.epochs * len(bench.groups) / len(groups)))
    rce_epoch, rce = best_epoch(train_rce(data, bench.train_SD, settings, seed=seed))
    grpo_settings = replace(preset_of(GrpoSettings, "predecessor"), kl_beta=KL_BETA)
    grpo_epoch, grpo = best_epoch(train_grpo(rce, data, bench.train_SD, grpo_settings, seed=seed))
    selectors = {"untrained": bench.untrained(seed), "rce": rce, "grpo": grpo}
    trained_Q = {name: questions.accuracy_QS(questions.greedy_QK(model))[:, 0] for name, model in selectors.items()}
    untrained_Q = trained_Q.pop("untrained")
    accuracy = {**baselines(questions), "untrained": float(untrained_Q.mean())}
    return {
        "n_queries": bench.n_queries,
        "share": share,
        "seed": seed,
        "variant": variant,
        "verdict": result.verdict,
        "failed": [check.name for check in result.checks if not check.passed],
        **{name.removeprefix("data/"): round(value, 5) for name, value in result.metrics.items() if name != "data/n_queries"},
        "n_groups": len(groups),
        "rce_epoch": rce_epoch,
        "grpo_epoch": grpo_epoch,
        "n_questions": len(untrained_Q),
        "accuracy": {name: round(value, 5) for name, value in accuracy.items()}
        | {name: round(float(values_Q.mean()), 5) for name, values_Q in trained_Q.items()},
        "standard_error_over_untrained": {  # over questions, paired
            name: round(float((values_Q - untrained_Q).std(ddof=1) / math.sqrt(len(untrained_Q))), 5)
            for name, values_Q in trained_Q.items()
        },
    }


def to_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Makes a table with a row for each training and its gains in points.

    The training on unchanged data (``mixed`` at 0 %) also stands in the table as the first point of every other variant.
    """
    frame = pd.json_normalize([dict(row) for row in rows])
    for policy in ("rce", "grpo", "untrained", SIMILARITY):
        frame[f"{policy}-random"] = 100 * (frame[f"accuracy.{policy}"] - frame[f"accuracy.{RANDOM}"])
        frame[f"{policy}-untrained"] = 100 * (frame[f"accuracy.{policy}"] - frame["accuracy.untrained"])
    frame["n_good"] = frame.n_queries - (frame.share / 100 * frame.n_queries).round().astype(int)
    whole = frame[(frame.share == 0) & (frame.variant == "mixed")]
    controls = [whole.assign(variant=variant) for variant in VARIANTS[1:] if (frame.variant == variant).any()]
    return pd.concat([frame, *controls], ignore_index=True).sort_values(["variant", "share", "seed"])


def markdown(frame: pd.DataFrame) -> str:
    """Makes a table of the means over seeds; gains also have the standard deviation over seeds."""
    lines = [
        "| zeroed | variant | seeds | queries | positive queries | positive trials | reward mean | reward std | zero spread "
        "| verdict | RCE - random | RCE - untrained | GRPO - random | GRPO - untrained | better than untrained (RCE, GRPO) |",
        "|" + "---|" * 15,
    ]
    rank = frame.variant.map(VARIANTS.index)
    for (_, share), part in frame[(frame.variant == "mixed") | (frame.share > 0)].groupby([rank, "share"]):
        verdicts = " ".join(f"{verdict} {count}" for verdict, count in part.verdict.value_counts().items())
        cells = [f"{share:g} %", part.variant.iloc[0], str(len(part)), f"{part.n_groups.mean():.0f}"]
        for name in ("positive_query_rate", "positive_trial_rate", "reward_mean", "reward_std", "frac_reward_zero_std"):
            cells.append(f"{part[name].mean():.3f}")
        cells.append(verdicts if part.verdict.nunique() > 1 else part.verdict.iloc[0])
        for gain in ("rce-random", "rce-untrained", "grpo-random", "grpo-untrained"):
            cells.append(f"{part[gain].mean():+.2f} ± {part[gain].std():.2f}")
        cells.append(", ".join(str((part[f"{policy}-untrained"] > 0).sum()) for policy in ("rce", "grpo")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def threshold(suite: str, name: str) -> tuple[float, bool]:
    """Returns the threshold of an expectation, and whether values above it fail; if not, those below it do."""
    kwargs = next(item["kwargs"] for item in read_suites()[suite] if item["meta"]["name"] == name)
    return (kwargs["min_value"], False) if "min_value" in kwargs else (kwargs["max_value"], True)


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draws the gains by the share of zeroed groups, by the gate's metrics, and by the number of untouched queries."""
    figure = Figure(figsize=(12, 9), dpi=100, layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    # A variant without zeroed groups is drawn at the metrics of the mixture with the same untouched groups.
    mixed = frame[frame.variant == "mixed"].set_index(["share", "seed"])
    points = frame[[key in mixed.index for key in zip(frame.share, frame.seed, strict=True)]].copy()
    points[list(FIGURES)] = mixed.loc[pd.MultiIndex.from_frame(points[["share", "seed"]]), list(FIGURES)].to_numpy()
    for axes, column, title in (
        (panels[0], "share", "(a) share of zeroed groups (%)"),
        (panels[1], "positive_query_rate", "(b) positive-query rate"),
        (panels[2], "reward_mean", "(c) mean reward"),
        (panels[3], "frac_reward_zero_std", "(d) zero-spread share"),
        (panels[4], "n_good", "(e) untouched queries"),
    ):
        shade_thresholds(axes, column, points)
        axes.axhline(points[f"{SIMILARITY}-random"].mean(), color="black", ls="-.", lw=1.2)
        axes.axhline(points["untrained-random"].mean(), color="grey", ls=":", lw=1.8)
        draw_lines(axes, points[points.n_good > 0] if column == "n_good" else points[points.variant != "matched"], column)
        axes.set(xlabel=title, ylabel="gain over random (points)")
        if column != "n_good":
            axes.sharey(panels[0])
    panels[4].set_xscale("log")
    counts = sorted(points.n_good[points.n_good > 0].unique())
    panels[4].set_xticks(counts, [str(count) for count in counts], rotation=45, fontsize=9)
    panels[4].minorticks_off()
    panels[5].axhline(0, color="grey", ls=":", lw=1.8)
    draw_lines(panels[5], points, "share", "untrained", seeds=True)
    panels[5].set(xlabel="(f) share of zeroed groups (%)", ylabel="gain over untrained, same seed (points)")
    for axes in panels:
        axes.grid(alpha=0.3)
    spread = f"means over {frame.seed.nunique()} seeds, bars ± 1 standard error"
    figure.suptitle(f"Accuracy at {SHOTS} shots after training on spoiled RL data: {spread}", fontsize=12)
    figure.legend(handles=legend_handles(frame), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def shade_thresholds(axes: Axes, column: str, points: pd.DataFrame) -> None:
    """Shades where the gate fails by this metric alone; columns that are no metric of the gate have no shade."""
    if column not in FIGURES:
        return
    suite, name = FIGURES[column]
    warning, above = threshold(suite, f"{name}_warning")
    critical, _ = threshold(suite, name)
    end = max(points[column].max(), critical) + 0.02 if above else min(points[column].min(), critical) - 0.02
    for start, stop, colour in ((warning, critical, "gold"), (critical, end, "red")):
        axes.axvspan(start, stop, color=colour, alpha=0.15, lw=0)
        axes.axvline(start, color=colour, lw=1.2)


def draw_lines(axes: Axes, points: pd.DataFrame, column: str, baseline: str = "random", *, seeds: bool = False) -> None:
    """Draws means over seeds, whose markers are filled by the verdict.

    They have standard errors as bars, or with ``seeds`` every seed as a small point.
    """
    for (variant, policy), (colour, marker, style, _) in LINES.items():
        part, gain = points[points.variant == variant], f"{policy}-{baseline}"
        by_share = part.groupby("share")
        x, y = by_share[column].mean(), by_share[gain].mean()
        if seeds:
            axes.scatter(part[column], part[gain], s=9, color=colour, alpha=0.6, lw=0)
            axes.plot(x, y, style, color=colour, lw=1.5)
        else:
            axes.errorbar(x, y, by_share[gain].sem(), ls=style, color=colour, lw=1.5, elinewidth=1, capsize=2)
        faces = [VERDICT_COLOURS[verdict] for verdict in by_share.verdict.agg(lambda verdicts: verdicts.mode()[0])]
        axes.scatter(x, y, s=36, marker=marker, c=faces, edgecolors=colour, linewidths=1.4, zorder=3)


def legend_handles(frame: pd.DataFrame) -> list[Line2D | Patch]:
    """Makes the entries of the legend."""
    lines = [
        Line2D([], [], color=colour, marker=marker, ls=style, markerfacecolor="white", label=label)
        for (variant, _), (colour, marker, style, label) in LINES.items()
        if (frame.variant == variant).any()
    ]
    verdicts = [
        Line2D([], [], color="grey", marker="o", ls="", markerfacecolor=colour, label=f"verdict of the gate: {verdict}")
        for verdict, colour in VERDICT_COLOURS.items()
    ]
    return [
        *lines,
        Line2D([], [], color="grey", marker=".", ls="", alpha=0.6, label="one seed (f)"),
        Line2D([], [], color="black", ls="-.", label="fused similarity"),
        Line2D([], [], color="grey", ls=":", lw=1.8, label="untrained selector"),
        *verdicts,
        Patch(color="gold", alpha=0.3, label="warning by this figure"),
        Patch(color="red", alpha=0.3, label="critical by this figure"),
    ]


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
@click.option(
    "--shares",
    default="0,25,50,75,90,95,99,100",
    show_default=True,
    help="Percentages of the groups whose trials get the score 0, separated by commas.",
)
@click.option("--seeds", default=5, show_default=True, help="Number of training seeds, from 0.")
@click.option("--variants", default="mixed,dropped", show_default=True, help=f"Some of {','.join(VARIANTS)}.")
@click.option(
    "--n_queries",
    default=RolloutSettings.n_queries,
    show_default=True,
    help="Number of queries of the RL data. A small number makes a quick trial.",
)
def main(output: Path, plot: Path, shares: str, seeds: int, variants: str, n_queries: int) -> None:
    """Measures what the output file lacks, and plots and prints all that is in it."""
    bench = Bench(Resources(cache_dir=default_cache_dir()), n_queries)
    questions = bench.questions(bench.resources.val, (SHOTS,))
    trainings = [
        (float(share), seed, variant)
        for seed in range(seeds)
        for share in shares.split(",")
        for variant in variants.split(",")
        if variant == "mixed" or 0 < float(share) < 100
    ]
    measured = {(row["share"], row["seed"], row["variant"]) for row in read_rows(output, n_queries)}
    for share, seed, variant in tqdm([key for key in trainings if key not in measured], "trainings", unit="run"):
        append_row(output, measure(bench, questions, share, seed, variant))
    frame = to_frame(read_rows(output, n_queries))
    draw(frame, plot)
    click.echo(markdown(frame))


if __name__ == "__main__":
    main()
