"""Measures rounds of GRPO on the embedded default: pool sampler, number of rounds, fusion, and what else was tried, by seed.

For each training seed, RCE and GRPO are trained as ``main`` trains them, at the defaults but for what a variant changes. The
queries, the pools and the questions are those of data seed 0 in every variant. Each round begins with the last epoch of the
round before it. Each round's last epoch is evaluated on the 400 selection questions and the 800 report questions. The
registered one is the best of them on the selection questions, the earliest among equals.

Gains are paired, in points over the strongest of all baselines at each number of shots, by accuracy on the report questions.
Their 95 % intervals (percentile, 10,000 resamples) draw training seeds and questions with replacement and independently of each
other. No interval is corrected for the number of rows.

The answers of each policy are a line of the output file, with the accuracies as whole numbers of thirtieths. What the file
holds already is skipped when the experiment is started again.

    OMP_NUM_THREADS=1 python -m benchmarks.rounds --output rounds.jsonl --plot docs/figures/rounds.png
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
from matplotlib.figure import Figure

from benchmarks.embedded import DATA_SEED, append_row, as_rl_data, best_epoch
from lever_mlflow.evaluation.answering import Answering
from lever_mlflow.evaluation.policies import ZERO_SHOT
from lever_mlflow.evaluation.question_set import QuestionSet
from lever_mlflow.evaluation.questions import split_questions
from lever_mlflow.evaluation.records import REPORT
from lever_mlflow.files.cache_dir import default_cache_dir
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import EvalSettings, GrpoSettings, PoolSampler, RceSettings, RolloutSettings
from lever_mlflow.training.grpo import train_grpo
from lever_mlflow.training.rce import train_rce
from lever_mlflow.trials.rl_data import Group
from lever_mlflow.trials.rollout import choose_queries, rollout

SHOTS, RESAMPLES, THIRTIETHS = (1, 2, 4), 10_000, 30
PARTS = ("selection", "report")
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Variant:
    """Says what a training changes of the defaults.

    Attributes:
        kl_reference: ``round`` or ``start``.
        replay: whether each round also trains on the trials of the rounds before it.
        same_queries: whether all rounds record trials of the queries of the first one.
    """

    sampler: PoolSampler = "fused-similarity"
    rounds: int = 4
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    rce: RceSettings = field(default_factory=RceSettings)
    grpo: GrpoSettings = field(default_factory=lambda: GrpoSettings(kl_beta=0.12))
    kl_reference: str = "round"
    replay: bool = False
    same_queries: bool = False


def beta(kl_beta: float) -> Variant:
    """Returns the variant with this KL weight."""
    return Variant(grpo=GrpoSettings(kl_beta=kl_beta))


VARIANTS: Mapping[str, Variant] = {
    "default": Variant(),
    "fusion=concat": Variant(rce=RceSettings(fusion="concat")),
    "random pools": Variant(sampler="random"),
    "two demonstrations in a trial": Variant(rollout=RolloutSettings(shots=2)),
    "the same queries in all rounds": Variant(same_queries=True),
    "kl_reference=start": Variant(kl_reference="start"),
    "earlier trials as well (replay)": Variant(replay=True),
    "beta 0": beta(0.0),
    "beta 0.5": beta(0.5),
    "beta 2": beta(2.0),
}


@dataclass(frozen=True, eq=False)
class Experiment:
    """Holds what all trainings share, and the answers of the policies."""

    resources: Resources

    @cached_property
    def samples(self) -> dict[str, Any]:
        """Returns the selection and the report questions."""
        return split_questions(self.resources.val, EvalSettings(), DATA_SEED)._asdict()

    def questions(self, part: str, sampler: PoolSampler) -> QuestionSet:
        """Returns the questions of a part with their pools."""
        settings = EvalSettings(shots=SHOTS, pool_sampler=sampler)
        features = self.resources.features("val"), self.resources.features("train")
        return QuestionSet(self.samples[part], self.resources.train, *features, settings, DATA_SEED)

    def answers(self, part: str, picks: np.ndarray) -> list[list[int]]:
        """Returns the accuracy on each question at each shot count, in thirtieths; means over draws where there are several."""
        answering = Answering(self.resources.train, lambda p: self.resources.answer(p, part), self.resources.language_model.key)
        frame = answering.records(self.samples[part], REPORT, {"policy": picks}, SHOTS).frame
        by_shots = frame.groupby(["position", "shots"]).accuracy.mean().unstack()
        return [np.rint(THIRTIETHS * by_shots[k].to_numpy()).astype(int).tolist() for k in by_shots]

    def baselines(self, sampler: PoolSampler) -> Iterator[dict[str, Any]]:
        """Evaluates every baseline on the report questions."""
        for policy, picks in self.questions("report", sampler).baselines().items():
            yield {"policy": policy, "report": self.answers("report", picks)}

    def evaluated(self, selector: PointerSelector, sampler: PoolSampler) -> dict[str, Any]:
        """Returns the answers behind what a selector picks, by part."""
        picks = {part: self.questions(part, sampler).learned({"policy": selector})["policy"] for part in PARTS}
        return {part: self.answers(part, picks[part]) for part in PARTS}

    def trials(self, variant: Variant, selector: PointerSelector, number: int) -> list[Group]:
        """Records the trials of a round."""
        train, features = self.resources.train, self.resources.features("train")
        settings = replace(variant.rollout, pool_sampler=variant.sampler)
        queries = choose_queries(train, settings.n_queries, DATA_SEED, 1 if variant.same_queries else number)
        return rollout(
            queries, train, features, selector, lambda p: self.resources.answer(p, "rollout"), settings, seed=DATA_SEED
        )

    def stages(self, variant: Variant, seed: int) -> Iterator[tuple[str, PointerSelector]]:
        """Trains a variant; yields the untrained selector, the RCE epoch that GRPO starts from, and the end of each round."""
        features_SD = self.resources.features("train").of(variant.rce.fusion)
        torch_seeded = untrained(seed, features_SD.shape[1], variant.rce)
        yield UNTRAINED, torch_seeded
        groups = self.trials(variant, untrained(DATA_SEED, self.resources.features("train").fused_SD.shape[1]), 1)
        _, policy = best_epoch(train_rce(as_rl_data(groups), features_SD, variant.rce, seed=seed))
        start = policy
        yield "rce", policy
        for number in range(1, variant.rounds + 1):
            if number > 1:
                fresh = self.trials(variant, policy, number)
                groups = [*groups, *fresh] if variant.replay else fresh
            reference = start if variant.kl_reference == "start" else None
            epochs = train_grpo(policy, as_rl_data(groups), features_SD, variant.grpo, seed=seed, reference=reference)
            for epoch in epochs:
                reached = epoch.selector
            policy = copy.deepcopy(reached).eval()
            yield f"round {number}", policy


def untrained(seed: int, feature_dim: int, settings: RceSettings | None = None) -> PointerSelector:
    """Returns the selector that a training with this seed begins with."""
    import torch

    torch.manual_seed(seed)
    return PointerSelector(feature_dim=feature_dim, fusion=(settings or RceSettings()).fusion).eval()


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of the output file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def measure(experiment: Experiment, path: Path, names: Sequence[str], seeds: int) -> None:
    """Runs what the file does not hold yet."""
    measured = {(row["sampler"], row.get("variant"), row.get("seed")) for row in read(path)}
    for name in names:
        variant = VARIANTS[name]
        if (variant.sampler, None, None) not in measured:
            for row in experiment.baselines(variant.sampler):
                append_row(path, {"sampler": variant.sampler, **row})
            measured.add((variant.sampler, None, None))
        for seed in range(seeds):
            if (variant.sampler, name, seed) in measured:
                continue
            rows = [
                {
                    "sampler": variant.sampler,
                    "variant": name,
                    "seed": seed,
                    "stage": stage,
                    **experiment.evaluated(policy, variant.sampler),
                }
                for stage, policy in experiment.stages(variant, seed)
            ]
            for row in rows:
                append_row(path, row)


def percent(rows: Sequence[Mapping[str, Any]], part: str = "report") -> np.ndarray:
    """Returns accuracies in percent, [rows, shots, questions]."""
    return 100.0 * np.array([row[part] for row in rows]) / THIRTIETHS


def interval(gains_SQ: np.ndarray) -> str:
    """Writes the mean gain over seeds and questions with its interval."""
    rng = np.random.default_rng(0)
    S, Q = gains_SQ.shape
    means = [gains_SQ[rng.integers(S, size=S)][:, rng.integers(Q, size=Q)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{gains_SQ.mean():+.2f} ({low:+.2f} to {high:+.2f})"


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the tables in Markdown: baselines, the stages of each variant, and the registered epoch of each seed."""
    for sampler in dict.fromkeys(row["sampler"] for row in rows):
        baselines = {row["policy"]: percent([row])[0] for row in rows if row["sampler"] == sampler and "policy" in row}
        similarity = {policy: values for policy, values in baselines.items() if policy != ZERO_SHOT}
        best = {k: max(similarity, key=lambda policy: round(similarity[policy][i].mean(), 9)) for i, k in enumerate(SHOTS)}
        print(f"\n## {sampler}\n\n| baseline | {' | '.join(f'{k} shots' for k in SHOTS)} |\n|---|{'---|' * len(SHOTS)}")
        for policy, values in similarity.items():
            cells = [
                f"{'**' * (best[k] == policy)}{values[i].mean():.2f}{'**' * (best[k] == policy)}" for i, k in enumerate(SHOTS)
            ]
            print(f"| {policy} | {' | '.join(cells)} |")
        strongest = np.stack([similarity[best[k]][i] for i, k in enumerate(SHOTS)])
        trained = [row for row in rows if row["sampler"] == sampler and "variant" in row]
        for name in dict.fromkeys(row["variant"] for row in trained):
            of_variant = [row for row in trained if row["variant"] == name]
            print(f"\n### {name}\n\n| stage | {' | '.join(f'{k} shots | gain' for k in SHOTS)} | selection |")
            print(f"|---|{'---|---|' * len(SHOTS)}---|")
            for stage in dict.fromkeys(row["stage"] for row in of_variant):
                stage_rows = [row for row in of_variant if row["stage"] == stage]
                values = percent(stage_rows)
                cells = [f"{values[:, i].mean():.2f} | {interval(values[:, i] - strongest[i])}" for i in range(len(SHOTS))]
                print(f"| {stage} | {' | '.join(cells)} | {percent(stage_rows, 'selection').mean():.2f} |")
            for most in sorted({int(row["stage"].split()[1]) for row in of_variant if row["stage"].startswith("round")}):
                print(f"\nregistered, of {most} rounds: " + "; ".join(registered(of_variant, strongest, most)))


def registered(rows: Sequence[Mapping[str, Any]], strongest: np.ndarray, most: int) -> Iterator[str]:
    """Yields the registered policy of each seed in words, with its paired gains and their intervals over questions."""
    names = [f"round {number}" for number in range(1, most + 1)]
    for seed in sorted({row["seed"] for row in rows}):
        candidates = [row for row in rows if row["seed"] == seed and row["stage"] in names]
        chosen = max(candidates, key=lambda row: (round(percent([row], "selection").mean(), 9), -names.index(row["stage"])))
        gains = percent([chosen])[0] - strongest
        yield f"seed {seed} {chosen['stage']}: " + ", ".join(interval(gains[i][None]) for i in range(len(SHOTS)))


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the accuracy of the default after each stage, a point per seed, above that of the strongest baseline."""
    of_default = [row for row in rows if row.get("variant") == "default"]
    baselines = [row for row in rows if row["sampler"] == Variant().sampler and "policy" in row and row["policy"] != ZERO_SHOT]
    strongest = percent(baselines).mean(axis=2).max(axis=0)
    stages = list(dict.fromkeys(row["stage"] for row in of_default))
    figure = Figure(figsize=(4 * len(SHOTS), 3.4), layout="constrained")
    for i, (k, axes) in enumerate(zip(SHOTS, figure.subplots(1, len(SHOTS)), strict=True)):
        values = [percent([row for row in of_default if row["stage"] == stage])[:, i].mean(axis=1) for stage in stages]
        axes.axhline(strongest[i], color="tab:gray", linestyle="--", label="strongest baseline")
        axes.plot(range(len(stages)), [of_stage.mean() for of_stage in values], color="tab:blue", label="mean over seeds")
        for place, of_stage in enumerate(values):
            axes.plot([place] * len(of_stage), of_stage, ".", color="tab:blue")
        axes.set_xticks(range(len(stages)), [stage.replace("round ", "round\n") for stage in stages], fontsize=8)
        axes.set_title(f"{k} demonstration{'s' * (k > 1)}")
    figure.axes[0].set_ylabel("VQA accuracy in percent, 800 questions")
    figure.axes[0].legend(fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="File of the answers, one line per policy.")
@click.option("--seeds", default=5, show_default=True, help="Number of training seeds.")
@click.option("--variants", default=",".join(VARIANTS), help="Variants to run, separated by commas; all by default.")
@click.option("--plot", "figure", type=click.Path(path_type=Path), help="PNG of the accuracy by round.")
def main(output: Path, seeds: int, variants: str, figure: Path | None) -> None:
    """Run the experiment and print its tables."""
    measure(Experiment(Resources(cache_dir=default_cache_dir())), output, variants.split(","), seeds)
    rows = read(output)
    report(rows)
    if figure is not None:
        plot(rows, figure)


if __name__ == "__main__":
    main()
