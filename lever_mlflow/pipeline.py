"""The experiment's steps as MLflow runs: what each reads, logs and leaves, and how it finds the step before it.

Every method that is named after a step returns a ``Step`` for ``tracking.run_here`` or ``tracking.ensure``. The ``find_*``
methods resolve an input left at ``auto``: to the newest finished run with the same settings in this experiment, or by
running that step first, as a child of the active run.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch

from lever_mlflow import compare, gate, gate_report, registry, report, tracking
from lever_mlflow.checkpoint import load_selector, read_meta, save_selector, selector_digest
from lever_mlflow.evaluate import (
    RANDOM,
    SIMILARITY,
    ZERO_SHOT,
    accuracy_table,
    choose_epoch,
    evaluate,
    greedy_picks,
    random_picks,
    similarity_picks,
    split_questions,
)
from lever_mlflow.resources import Resources
from lever_mlflow.rewards import RewardMode
from lever_mlflow.rl_data import RLData, load_rl_data, save_rl_data
from lever_mlflow.rollout import choose_queries, rollout
from lever_mlflow.selector import PointerSelector
from lever_mlflow.tracking import TAG, Step
from lever_mlflow.train_grpo import GrpoEpoch, train_grpo
from lever_mlflow.train_rce import RceEpoch, train_rce
from lever_mlflow.types import EvalSettings, GrpoSettings, RceSettings, RolloutSettings, Sample

__all__ = ["AUTO", "START_POLICY", "Pipeline"]

AUTO, RANDOM_INIT = "auto", "random"
START_POLICY = "start"
RL_DATA_FILE = "rl_data.json"
RECORDS_FILE, RESULT_FILE, COMPARISON_FILE = "records.parquet", "evaluation.json", "comparison.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pipeline:
    """All steps on one data set, VLM, encoder and seed.

    Attributes:
        resources: data set, VLM and encoder.
        seed: of every random choice.
        reward_mode: how a trial's scores become its reward.
        model_name: registered model; ``auto`` names it after data set and VLM.
    """

    resources: Resources
    seed: int = 0
    reward_mode: RewardMode = "hard_plus_soft"
    model_name: str = AUTO

    @property
    def registered_name(self) -> str:
        """Name of the registered model, such as ``lever-selector-mini-mini``."""
        return f"lever-selector-{self.resources.label}" if self.model_name == AUTO else self.model_name

    # rollout

    def rollout(self, settings: RolloutSettings, init: str = RANDOM_INIT) -> Step:
        """Records trials of a starting policy: ``init`` is ``random`` (an untrained selector) or a checkpoint."""
        selector = self._initial_selector(init)
        inputs = {**self._identity(), "start_digest": selector_digest(selector)}
        return Step("rollout", "rollout", asdict(settings), inputs, partial(self._rollout, settings, selector))

    def _rollout(self, settings: RolloutSettings, selector: PointerSelector) -> None:
        train = self.resources.train
        queries = choose_queries(train, settings.n_queries, self.seed)
        answer = partial(self.resources.answer, description="rollout")
        groups = rollout(queries, train, self.resources.features("train"), selector, answer, settings, seed=self.seed)
        meta = {**self._identity(), **asdict(settings), "generation": asdict(self.resources.language_model.profile)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / RL_DATA_FILE
            save_rl_data(path, groups, meta)
            data = load_rl_data(path)
            mlflow.log_artifact(str(path))
        mlflow.set_tag(f"{TAG}rl_data_digest", data.digest)
        trials = [trial for group in data.groups for trial in group.trials]
        mlflow.log_metrics(
            {
                "data/n_queries": len(data.groups),
                "data/n_trials": len(trials),
                "data/positive_trial_rate": sum(trial.correct for trial in trials) / len(trials),
            }
        )

    def find_rl_data(self, reference: str) -> RLData:
        """RL data by file, ``runs:/`` URI, or ``auto``: of the newest finished rollout of the same resources and seed."""
        if reference.startswith("runs:/"):
            run_id, _, path = reference.removeprefix("runs:/").partition("/")
            return load_rl_data(tracking.artifact(run_id, path or RL_DATA_FILE))
        if reference != AUTO:
            return load_rl_data(reference)
        run = tracking.find_run("rollout", self._identity())
        if run is None:
            log.info("rl_data=auto: no finished rollout with these settings in this experiment, running it first")
            return self.rl_data_of(tracking.ensure(self.rollout(RolloutSettings())))
        log.info("rl_data=auto: taken from %s", tracking.describe(run))
        return self.rl_data_of(run.info.run_id)

    def rl_data_of(self, run_id: str) -> RLData:
        """RL data that a rollout run logged."""
        return load_rl_data(tracking.artifact(run_id, RL_DATA_FILE))

    # validate

    def validate(self, data: RLData) -> Step:
        """Checks RL data with the Great Expectations suites; a failed critical expectation fails the run."""
        inputs = {"rl_data_digest": data.digest, "suite_digest": gate.suite_digest()}
        return Step("validate", "validate", {"reward_mode": self.reward_mode}, inputs, partial(self._validate, data))

    def _validate(self, data: RLData) -> None:
        result = gate.check(data, reward_mode=self.reward_mode)
        mlflow.log_text(gate_report.report_html(result), "gate.html")
        mlflow.log_dict(result.to_json(), "gate.json")
        log.info("%s", gate_report.format_table(result))
        self._pass_gate(data, result)

    def _pass_gate(self, data: RLData, result: gate.GateResult | None = None) -> None:
        """Logs figures and verdict of the gate on the active run, and ends it where a critical expectation failed."""
        result = result or gate.check(data, reward_mode=self.reward_mode)
        mlflow.log_input(tracking.rl_dataset(data), context="training")
        mlflow.log_metrics(tracking.finite(result.metrics))
        mlflow.set_tags({f"{TAG}gate": result.verdict, f"{TAG}suite_digest": result.suite_digest})
        result.raise_if_critical()

    # training

    def rce(self, data: RLData, settings: RceSettings) -> Step:
        """Trains a new selector by reward-weighted cross-entropy."""
        return Step(
            "rce",
            "rce",
            {**asdict(settings), "reward_mode": self.reward_mode},
            {**self._identity(), "rl_data_digest": data.digest, "suite_digest": gate.suite_digest()},
            partial(self._rce, data, settings),
        )

    def _rce(self, data: RLData, settings: RceSettings) -> None:
        self._pass_gate(data)
        train_SD = self.resources.features("train").fused_SD
        device = self.resources.torch_device
        epochs = train_rce(data, train_SD, settings, seed=self.seed, reward_mode=self.reward_mode, device=device)
        self._log_epochs("rce", epochs, data, {"rl_data_digest": data.digest})

    def find_start(self, reference: str, data: RLData) -> str:
        """Start checkpoint by path, model URI, or ``auto``: the best epoch of the newest finished RCE run on the same data."""
        if reference != AUTO:
            return reference
        run = tracking.find_run("rce", {**self._identity(), "rl_data_digest": data.digest})
        if run is None:
            log.info("init=auto: no finished rce run on this data in this experiment, running it first")
            return self.start_of(tracking.ensure(self.rce(data, RceSettings())))
        log.info("init=auto: taken from %s", tracking.describe(run))
        return self.start_of(run.info.run_id)

    def start_of(self, run_id: str) -> str:
        """URI of a training run's checkpoint with the highest expected reward on validation queries."""
        return f"models:/{mlflow.get_run(run_id).data.tags[f'{TAG}best_model']}"

    def grpo(self, data: RLData, start: str, settings: GrpoSettings) -> Step:
        """Optimises a start checkpoint with GRPO under a KL penalty."""
        folder = tracking.checkpoint_folder(start)
        selector = load_selector(folder)
        meta = read_meta(folder) if folder.is_dir() else {}
        settings_ = {**asdict(settings), "reward_mode": self.reward_mode}
        inputs = {
            **self._identity(),
            "rl_data_digest": data.digest,
            "suite_digest": gate.suite_digest(),
            "kl_beta": settings.kl_beta,
            "start_digest": selector_digest(selector),
            "start": f"{meta.get('step', 'file')} epoch {meta.get('epoch', '?')}" if meta else Path(start).name,
            "start_uri": start if ":/" in start else str(Path(start).resolve()),
        }
        execute = partial(self._grpo, data, selector, settings)
        return Step("grpo", f"grpo beta {settings.kl_beta:g}", settings_, inputs, execute)

    def _grpo(self, data: RLData, start: PointerSelector, settings: GrpoSettings) -> None:
        self._pass_gate(data)
        train_SD = self.resources.features("train").fused_SD
        device = self.resources.torch_device
        epochs = train_grpo(start, data, train_SD, settings, seed=self.seed, reward_mode=self.reward_mode, device=device)
        origin = {"rl_data_digest": data.digest, "start_digest": selector_digest(start), "kl_beta": settings.kl_beta}
        self._log_epochs("grpo", epochs, data, origin)

    def _log_epochs(self, step: str, epochs: Iterable[RceEpoch | GrpoEpoch], data: RLData, origin: Mapping[str, Any]) -> None:
        """Logs each epoch's metrics and checkpoint as it comes, and at the end which is which."""
        dataset = tracking.rl_dataset(data)
        first, train_SD = data.groups[0], self.resources.features("train").fused_SD
        rows = {"query": [train_SD[first.query_id].tolist()], "candidates": [train_SD[list(first.pool[:4])].tolist()]}
        models: dict[int, str] = {}
        rewards: dict[int, float] = {}
        for epoch, metrics, selector in epochs:
            tracking.finite(metrics)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "checkpoint"
                save_selector(path, selector, {"step": step, "epoch": epoch, "seed": self.seed, **origin})
                beta = f"-beta-{origin['kl_beta']:g}".replace(".", "-") if "kl_beta" in origin else ""
                models[epoch] = tracking.log_checkpoint(
                    f"{step}{beta}-epoch-{epoch}",
                    path,
                    epoch=epoch,
                    params={"epoch": epoch, "seed": self.seed, **origin},
                    tags={"checkpoint_digest": selector_digest(selector)},
                    example=pd.DataFrame(rows),
                )
            mlflow.log_metrics(metrics, step=epoch, model_id=models[epoch], dataset=dataset)
            rewards[epoch] = metrics["expected_reward"]
        best = max(rewards, key=lambda epoch: (rewards[epoch], -epoch))
        mlflow.set_tags({f"{TAG}models": json.dumps(models), f"{TAG}best_epoch": str(best), f"{TAG}best_model": models[best]})

    # evaluate

    def find_grpo(self, reference: str, settings: GrpoSettings) -> str:
        """Id of a GRPO run as given, or for ``auto`` of the newest finished one of this beta, run first if there is none."""
        if reference != AUTO:
            return reference
        run = tracking.find_run("grpo", {**self._identity(), "kl_beta": settings.kl_beta})
        if run is not None:
            log.info("grpo_run=auto: taken from %s", tracking.describe(run))
            return str(run.info.run_id)
        log.info("grpo_run=auto: no finished grpo run of beta %g in this experiment, running it first", settings.kl_beta)
        data = self.find_rl_data(AUTO)
        return tracking.ensure(self.grpo(data, self.find_start(AUTO, data), settings))

    def evaluate(self, grpo_run: str, settings: EvalSettings) -> Step:
        """Evaluates every epoch of one GRPO run beside the baselines, chooses the best and registers it."""
        tags = tracking.run_tags(grpo_run, "grpo")
        names = ("rl_data_digest", "start_digest", "start", "start_uri", "kl_beta", "models", "gate", "rl_data_vlm_digest")
        inputs = {**self._identity(), **{name: tags[name] for name in names if name in tags}, "grpo_run": grpo_run}
        kl_beta = float(inputs["kl_beta"])
        execute = partial(self._evaluate, grpo_run, kl_beta, settings, inputs)
        return Step(
            "evaluate", f"evaluate beta {kl_beta:g}", {**asdict(settings), "model_name": self.registered_name}, inputs, execute
        )

    def _evaluate(self, grpo_run: str, kl_beta: float, settings: EvalSettings, inputs: Mapping[str, Any]) -> None:
        models = {int(epoch): model_id for epoch, model_id in json.loads(inputs["models"]).items()}
        selectors = {f"epoch {e}": load_selector(tracking.checkpoint_folder(f"models:/{m}")) for e, m in models.items()}
        start = load_selector(tracking.checkpoint_folder(inputs["start_uri"]))
        epochs = {epoch: f"epoch {epoch}" for epoch in models}
        questions = split_questions(self.resources.val, settings, self.seed)
        answer = partial(self.resources.answer, description=f"evaluate beta {kl_beta:g}")
        evaluated = []
        for part, samples in questions._asdict().items():
            picks = self._picks(samples, {START_POLICY: start, **selectors}, settings)
            evaluated.append(evaluate(samples, part, picks, settings.shots, self.resources.train, answer))
        records = pd.concat(evaluated, ignore_index=True)
        best, selection = choose_epoch(records, epochs)
        table = accuracy_table(records, settings.sizes)
        self._log_accuracies(table, epochs, models, selection)
        rows = table.to_dict("records")
        at_largest = {
            f"acc_n{row['size']}_shots{row['shots']}": f"{100 * row['accuracy']:.2f}"
            for row in rows
            if row["policy"] == epochs[best] and row["size"] == max(settings.sizes)
        }
        digest = selector_digest(selectors[epochs[best]])
        digests = {name: value for name, value in inputs.items() if name.endswith("_digest") or name in ("gate", "seed")}
        version = registry.register(
            models[best], self.registered_name, kl_beta, digest, {"epoch": best, **digests, **at_largest}
        )
        log.info("beta %g: epoch %d is %s version %s", kl_beta, best, self.registered_name, version)
        mlflow.set_tags({f"{TAG}best_epoch": str(best), f"{TAG}registered": f"{self.registered_name} version {version}"})
        result = {
            "kl_beta": kl_beta,
            "best_epoch": best,
            "registered": {"name": self.registered_name, "version": version, "alias": registry.beta_alias(kl_beta)},
            "selection_accuracy": selection,
            "settings": asdict(settings),
            "training": tracking.run_settings(grpo_run),
            "inputs": dict(inputs),
            "epochs": tracking.epoch_metrics(grpo_run),
            "accuracy": rows,
        }
        mlflow.log_dict(result, RESULT_FILE)
        with tempfile.TemporaryDirectory() as folder:
            tracking.log_frame(records, Path(folder) / RECORDS_FILE)

    def _picks(
        self, samples: Sequence[Sample], policies: Mapping[str, PointerSelector], settings: EvalSettings
    ) -> dict[str, Any]:
        """Train indices that each baseline and policy picks for each question."""
        shots, train_SD = max(settings.shots), self.resources.features("train").fused_SD
        queries_QD = self.resources.features("val").fused_SD[[sample.index for sample in samples]]
        pools_QN = self.resources.pools(samples, settings.pool_size, self.seed)
        return {
            ZERO_SHOT: pools_QN[:, :0],
            RANDOM: random_picks(samples, pools_QN, shots, self.seed),
            SIMILARITY: similarity_picks(queries_QD, pools_QN, train_SD, shots),
            **{name: greedy_picks(policy, queries_QD, pools_QN, train_SD, shots) for name, policy in policies.items()},
        }

    def _log_accuracies(
        self, table: Any, epochs: Mapping[int, str], models: Mapping[int, str], selection: Mapping[int, float]
    ) -> None:
        """Epochs as metrics ``acc/n{size}/shots{k}`` with the epoch as step, everything else as ``baseline/{policy}/...``."""
        slugs = {ZERO_SHOT: "zero_shot", RANDOM: "random", SIMILARITY: "fused_similarity", START_POLICY: "start"}
        metrics: dict[str, dict[str, float]] = {}
        for row in table.to_dict("records"):
            metrics.setdefault(row["policy"], {})[f"n{row['size']}/shots{row['shots']}"] = row["accuracy"]
        for policy, slug in slugs.items():
            mlflow.log_metrics({f"baseline/{slug}/{cell}": value for cell, value in metrics[policy].items()})
        for epoch, name in epochs.items():
            accuracies = {f"acc/{cell}": value for cell, value in metrics[name].items()}
            mlflow.log_metrics({**accuracies, "selection/accuracy": selection[epoch]}, step=epoch, model_id=models[epoch])

    # compare

    def find_evaluation(self, kl_beta: float, settings: EvalSettings) -> str:
        """Id of the newest finished evaluation of this beta on the same resources and seed, run first if there is none."""
        run = tracking.find_run("evaluate", {**self._identity(), "kl_beta": kl_beta})
        if run is not None:
            log.info("beta %g: evaluation taken from %s", kl_beta, tracking.describe(run))
            return str(run.info.run_id)
        log.info("beta %g: no finished evaluation in this experiment, running it first", kl_beta)
        grpo_run = self.find_grpo(AUTO, GrpoSettings(kl_beta=kl_beta))
        return tracking.ensure(self.evaluate(grpo_run, settings))

    def compare(self, evaluations: Sequence[str]) -> Step:
        """Compares evaluated betas: a Markdown report and ``comparison.json``."""
        execute = partial(self._compare, evaluations)
        return Step("compare", "compare", {}, {**self._identity(), "evaluations": ",".join(evaluations)}, execute)

    def _compare(self, evaluations: Sequence[str]) -> None:
        results = []
        for run_id in evaluations:
            records = compare.read_records(tracking.artifact(run_id, RECORDS_FILE))
            result = json.loads(tracking.artifact(run_id, RESULT_FILE).read_text(encoding="utf-8"))
            results.append(compare.Evaluation(run_id, result, records))
        comparison = compare.compare(results, seed=self.seed)
        mlflow.log_dict(comparison, COMPARISON_FILE)
        mlflow.log_text(report.markdown(comparison), "report.md")
        mlflow.set_tag("mlflow.note.content", comparison["verdict"])

    # the whole experiment

    def experiment(
        self,
        kl_betas: Sequence[float],
        rollout: RolloutSettings,
        rce: RceSettings,
        grpo: GrpoSettings,
        evaluation: EvalSettings,
    ) -> Step:
        """Every step in turn as a child run; those that finished before with the same inputs are reused."""
        execute = partial(self._experiment, kl_betas, rollout, rce, grpo, evaluation)
        return Step("main", "experiment", {"kl_betas": tuple(kl_betas)}, self._identity(), execute)

    def _experiment(
        self,
        kl_betas: Sequence[float],
        rollout: RolloutSettings,
        rce: RceSettings,
        grpo: GrpoSettings,
        evaluation: EvalSettings,
    ) -> None:
        data = self.rl_data_of(tracking.ensure(self.rollout(rollout)))
        tracking.ensure(self.validate(data))
        start = self.start_of(tracking.ensure(self.rce(data, rce)))
        evaluations = []
        for kl_beta in kl_betas:
            grpo_run = tracking.ensure(self.grpo(data, start, replace(grpo, kl_beta=kl_beta)))
            evaluations.append(tracking.ensure(self.evaluate(grpo_run, evaluation)))
        comparison = json.loads(tracking.artifact(tracking.ensure(self.compare(evaluations)), COMPARISON_FILE).read_text())
        mlflow.log_dict(comparison, COMPARISON_FILE)
        mlflow.set_tag("mlflow.note.content", comparison["verdict"])
        log.info("\n%s\n\nLook at it with:\n  %s", report.summary(comparison), tracking.ui_command())

    # promote

    def promote(self, kl_beta: float) -> Step:
        """Makes the version behind a beta's alias the champion."""
        settings = {"model_name": self.registered_name, "kl_beta": kl_beta}
        return Step("promote", f"promote beta {kl_beta:g}", settings, {}, partial(self._promote, kl_beta))

    def _promote(self, kl_beta: float) -> None:
        version, former = registry.promote(self.registered_name, kl_beta)
        log.info("%s: version %s (beta %g) is champion", self.registered_name, version, kl_beta)
        if former is not None:
            log.info("%s: version %s is previous-champion", self.registered_name, former)
        mlflow.set_tag(f"{TAG}champion", version)

    def _initial_selector(self, init: str) -> PointerSelector:
        if init != RANDOM_INIT:
            return load_selector(tracking.checkpoint_folder(init))
        torch.manual_seed(self.seed)
        return PointerSelector(feature_dim=self.resources.features("train").fused_SD.shape[1]).eval()

    def _identity(self) -> dict[str, Any]:
        """Digests of what all steps work on; runs that share them may be found by ``auto``."""
        model = self.resources.language_model
        return {
            "dataset_digest": self.resources.dataset_digest,
            "vlm_digest": model.digest,
            "profile_digest": model.profile.digest,
            "encoder_digest": self.resources.encoder_digest,
            "seed": self.seed,
        }
