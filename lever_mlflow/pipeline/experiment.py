"""The experiment's steps as MLflow runs: what each reads, logs and leaves, and how it finds the step before it.

Every method that is named after a step returns a ``Step`` for ``tracking.run_here`` or ``tracking.ensure``. The ``find_*``
methods resolve an input left at ``auto``: to the newest finished run with the same settings in this experiment, or by
running that step first, as a child of the active run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import torch

from lever_mlflow.comparison import terminal
from lever_mlflow.comparison.results import read_results
from lever_mlflow.evaluation.questions import split_questions
from lever_mlflow.exceptions import CheckpointError, DataError, GateError, ParameterError
from lever_mlflow.gate import GateResult, suite_digest
from lever_mlflow.pipeline import context, evaluation, promotion, registration, rollout
from lever_mlflow.pipeline.comparison import COMPARISON_FILE, compare_betas, compare_results
from lever_mlflow.pipeline.gate import check_data, read_verdict
from lever_mlflow.pipeline.resources import Resources
from lever_mlflow.pipeline.training import STATE_TAG, Interrupted, Launch, Start, find_state, train_by_grpo, train_by_rce
from lever_mlflow.runs import artifacts, commands, processes, search, steps
from lever_mlflow.runs.steps import Step
from lever_mlflow.runs.tags import TAG, any_run_tags, run_tags
from lever_mlflow.selector.checkpoint import load_selector, read_meta, selector_digest
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.serving import logged_models
from lever_mlflow.settings import (
    PRESET_SETTINGS,
    EvalSettings,
    GateSettings,
    GrpoSettings,
    Language,
    PromotionSettings,
    RceSettings,
    RewardMode,
    RolloutSettings,
)
from lever_mlflow.trials.rl_data import RLData, load_rl_data
from lever_mlflow.trials.rollout import check_settings, choose_queries

__all__ = ["AUTO", "NONE", "Pipeline"]

AUTO, NONE, RANDOM_INIT = "auto", "none", "random"

log = logging.getLogger(__name__)


class Pipeline:
    """All steps on one data set, VLM, encoder and seed; ``model_name`` auto names the registered model after the first two."""

    def __init__(
        self,
        resources: Resources,
        *,
        seed: int = 0,
        reward_mode: RewardMode = "hard_plus_soft",
        use_fallback: bool = False,
        model_name: str = AUTO,
        gate: GateSettings | None = None,
    ) -> None:
        name = f"lever-selector-{resources.label}" if model_name == AUTO else model_name
        if not re.fullmatch(r"[\w .-]+", name):
            raise ParameterError(f"model_name={name!r}: registered models are named with letters, digits, spaces, _ . and -")
        self.resources = resources
        self.use_fallback = use_fallback
        self.context = context.Context(resources, seed, reward_mode, name, gate or GateSettings())

    # rollout

    def rollout(self, settings: RolloutSettings, init: str = RANDOM_INIT) -> Step:
        """Records trials of a starting policy: ``init`` is ``random`` (an untrained selector) or a checkpoint.

        Raises:
            ParameterError: the settings do not fit together.
        """
        check_settings(settings)
        selector = self._initial_selector(init)
        inputs = {**self.context.identity(), "start_digest": selector_digest(selector)}
        return self._step(
            "rollout", "rollout", asdict(settings), inputs, partial(rollout.record_trials, self.context, settings, selector)
        )

    def find_rl_data(self, reference: str) -> RLData:
        """RL data by file, run, or ``auto``: of the newest finished rollout of the same resources and seed."""
        if reference != AUTO:
            return self.rl_data(reference)
        run = search.find_run("rollout", self.context.identity())
        if run is None:
            log.info("rl_data=auto: no finished rollout with these settings in this experiment, running it first")
            return self.rl_data_of(steps.ensure(self.rollout(RolloutSettings())))
        log.info("rl_data=auto: taken from %s", search.describe(run))
        return self.rl_data_of(run.info.run_id)

    def rl_data(self, reference: str) -> RLData:
        """RL data by file, or by run, as its id or ``runs:/<id>[/<artifact>]``: what it made, or what it worked on."""
        if reference.startswith("runs:/"):
            run_id, _, path = reference.removeprefix("runs:/").partition("/")
            return self.rl_data_of(run_id, path)
        if re.fullmatch("[0-9a-f]{32}", reference) and not Path(reference).exists():
            return self.rl_data_of(reference)
        return self._load(reference)

    def rl_data_of(self, run_id: str, path: str = "") -> RLData:
        """RL data that a run logged as an artifact, by default a rollout's; of other runs, those that they worked on.

        Raises:
            MissingRunError: no such run, or one without RL data. DataError: they are not what they were.
        """
        tags = any_run_tags(run_id)
        origin = tags.get("rl_data_source")
        if path or origin is None or origin == f"runs:/{run_id}/{rollout.RL_DATA_FILE}":
            path = path or rollout.RL_DATA_FILE
            return self._load(artifacts.artifact(run_id, path), source=f"runs:/{run_id}/{path}")
        data = self.rl_data(origin)
        if data.digest != tags["rl_data_digest"]:
            raise DataError(
                f"{origin}: its digest is {data.digest}, but run {run_id} worked on {tags['rl_data_digest']}; "
                "the file has changed since"
            )
        return data

    def _load(self, path: str | Path, source: str | None = None) -> RLData:
        return load_rl_data(path, use_fallback=self.use_fallback, source=source)

    # validate

    def validate(self, data: RLData, reference: RLData | None = None) -> Step:
        """Checks RL data with the Great Expectations suites; a failed critical expectation fails the run."""
        settings = self.context.gate
        inputs = {
            "rl_data_digest": data.digest,
            "suite_digest": suite_digest(thresholds=settings.thresholds),
            "dataset_digest": self.context.identity()["dataset_digest"],
            **({} if reference is None else {"reference_digest": reference.digest}),
        }
        return self._step(
            "validate",
            "validate",
            {"reward_mode": self.context.reward_mode, "thresholds": settings.thresholds, "max_shots": settings.max_shots},
            inputs,
            partial(check_data, self.context, data, reference),
        )

    def verdict(self, data: RLData) -> GateResult:
        """The gate's verdict on RL data: as recorded for their digest and these suites, or reached now in a child run."""
        step = self.validate(data)
        run = search.find_run(step.step, {"key": step.key}, having="gate")
        if run is None:
            with suppress(GateError):  # the verdict is recorded there; what follows from it is decided where it is asked for
                return read_verdict(steps.ensure(step))
            run = search.find_run(step.step, {"key": step.key}, having="gate")
            assert run is not None, "a gate that stops leaves its verdict"
        else:
            log.info("data gate: verdict taken from %s", search.describe(run))
        return read_verdict(run.info.run_id)

    # training

    def rce(self, data: RLData, settings: RceSettings, resume: str = AUTO) -> Step:
        """Trains a new selector by reward-weighted cross-entropy; ``resume`` as for ``interrupted``."""

        def execute() -> None:
            train_by_rce(self.context, data, settings, self._launch(step, data, resume))

        step = self._step("rce", "rce", asdict(settings), self._training_inputs(data), execute)
        return step

    def interrupted(self, step: Step, resume: str) -> Interrupted | None:
        """The training to go on from: ``auto``, an unfinished run of exactly this step; ``none``; or this one, by id or folder.

        Raises:
            ParameterError: the run is of another step, or of other settings, data or code. CheckpointError: it left nothing.
        """
        if resume == NONE:
            return None
        if resume == AUTO:
            return self._newest_interrupted(step)
        tags = {} if Path(resume).is_dir() else any_run_tags(resume)
        if tags and processes.is_training(mlflow.get_run(resume)):
            raise ParameterError(f"resume={resume}: that run is still training on this machine; wait for it, or stop it first")
        found = find_state(resume) if not tags or tags.get("key") == step.key else None
        if found is None or found.key != step.key:
            raise ParameterError(f"resume={resume}: {_difference(step, tags)}; give the same parameters, or resume=none")
        return found

    def _newest_interrupted(self, step: Step) -> Interrupted | None:
        """What the newest run of this step left that has not finished and whose process is gone."""
        for run in search.find_runs(step.step, {"key": step.key}, having=STATE_TAG, unfinished=True):
            training = processes.is_training(run)
            if training:
                log.info("%s trains the same just now; starting over beside it", search.describe(run))
            elif training is None:
                told = "%s seems to train the same on another machine; if it was interrupted, give resume=%s"
                log.warning(told, search.describe(run), run.info.run_id)
            else:
                try:
                    return find_state(run.info.run_id)
                except CheckpointError as error:
                    log.warning("%s; starting over", error)
                    return None
        return None

    def find_start(self, reference: str, data: RLData) -> str:
        """Start checkpoint by path, model URI, or ``auto``: the best epoch of the newest finished RCE run on the same data."""
        if reference != AUTO:
            return reference
        run = search.find_run("rce", {**self._common(), "rl_data_digest": data.digest})
        if run is None:
            log.info("init=auto: no finished rce run on this data in this experiment, running it first")
            return self.start_of(steps.ensure(self.rce(data, RceSettings())))
        log.info("init=auto: taken from %s", search.describe(run))
        return self.start_of(run.info.run_id)

    def start_of(self, run_id: str) -> str:
        """URI of a training run's checkpoint with the highest expected reward on validation queries."""
        return f"models:/{mlflow.get_run(run_id).data.tags[f'{TAG}best_model']}"

    def grpo(self, data: RLData, start: str, settings: GrpoSettings, resume: str = AUTO) -> Step:
        """Optimises a start checkpoint with GRPO under a KL penalty; ``resume`` as for ``interrupted``."""
        folder = logged_models.checkpoint_folder(start)
        selector = self._selector(start, folder)
        meta = read_meta(folder) if folder.is_dir() else {}
        inputs = {
            **self._training_inputs(data),
            "kl_beta": settings.kl_beta,
            "start_digest": selector_digest(selector),
            "start": f"{meta.get('step', 'file')} epoch {meta.get('epoch', '?')}" if meta else Path(start).name,
            "start_uri": start if ":/" in start else str(Path(start).resolve()),
        }
        told = "; ".join(meta[name] for name in context.OVERRIDES if name in meta)
        overrides = {"start_gate_override": told} if told else {}
        inputs |= overrides

        def execute() -> None:
            began = Start(selector, inputs["start_uri"], overrides)
            train_by_grpo(self.context, data, began, settings, self._launch(step, data, resume))

        step = self._step("grpo", f"grpo beta {settings.kl_beta:g}", asdict(settings), inputs, execute)
        return replace(step, labels={**step.labels, **_used(settings)})

    # evaluate

    def find_grpo(self, reference: str, settings: GrpoSettings) -> str:
        """Id of a GRPO run as given, or for ``auto`` of the newest finished one of this beta, run first if there is none."""
        if reference != AUTO:
            trained = float(run_tags(reference, "grpo")["kl_beta"])
            if trained != settings.kl_beta:
                raise ParameterError(f"kl_beta={settings.kl_beta:g}, but run {reference} was trained with {trained:g}")
            return reference
        run = search.find_run("grpo", {**self._common(), "kl_beta": settings.kl_beta})
        if run is not None:
            log.info("grpo_run=auto: taken from %s", search.describe(run))
            return str(run.info.run_id)
        log.info("grpo_run=auto: no finished grpo run of beta %g in this experiment, running it first", settings.kl_beta)
        data = self.find_rl_data(AUTO)
        return steps.ensure(self.grpo(data, self.find_start(AUTO, data), settings))

    def evaluate(self, grpo_run: str, settings: EvalSettings, checkpoints: Sequence[str] = ()) -> Step:
        """Evaluates every epoch of one GRPO run beside the baselines, chooses the best and registers it.

        ``checkpoints``: others to be evaluated beside them, each a path or a model URI; never registered.
        """
        tags = run_tags(grpo_run, "grpo")
        for name, value in self.context.identity().items():
            if name != "seed" and tags[name] != str(value):
                raise ParameterError(
                    f"run {grpo_run} was trained with {name} {tags[name]}, but this evaluation has {value}; "
                    "give the dataset, vlm and encoder that it was trained with"
                )
        names = (
            "reward_mode",
            "rl_data_digest",
            "start_digest",
            "start",
            "start_uri",
            "kl_beta",
            "models",
            "gate",
            *context.OVERRIDES,
        )
        inputs = {
            **self.context.identity(),
            **{name: tags[name] for name in names if name in tags},
            "training_seed": tags["seed"],
            "grpo_run": grpo_run,
        }
        if not all(checkpoints):
            raise ParameterError("checkpoints: an empty name between commas; name each checkpoint, or give none")
        others = {
            f"checkpoint {number} ({reference})": self._selector(reference)
            for number, reference in enumerate(checkpoints, start=1)
        }
        if others:
            inputs["checkpoints"] = json.dumps({name: selector_digest(selector) for name, selector in others.items()})
        kl_beta = float(inputs["kl_beta"])
        execute = partial(evaluation.evaluate_epochs, self.context, grpo_run, kl_beta, settings, inputs, others)
        return self._step(
            "evaluate",
            f"evaluate beta {kl_beta:g}",
            {**asdict(settings), "model_name": self.context.registered_name, "kl_beta": kl_beta},
            inputs,
            execute,
        )

    # compare

    def find_evaluation(self, kl_beta: float, settings: EvalSettings) -> str:
        """Id of the newest finished evaluation of this beta on the same resources and seed, run first if there is none."""
        run = search.find_run("evaluate", {**self._common(), "kl_beta": kl_beta})
        if run is not None:
            log.info("beta %g: evaluation taken from %s", kl_beta, search.describe(run))
            registration.register_best(self.context, evaluation.read_evaluation(run.info.run_id))
            return str(run.info.run_id)
        log.info("beta %g: no finished evaluation in this experiment, running it first", kl_beta)
        return self.evaluated(self.find_grpo(AUTO, GrpoSettings(kl_beta=kl_beta)), settings)

    def evaluated(self, grpo_run: str, settings: EvalSettings) -> str:
        """Id of an evaluation of this GRPO run, reused or new, whose best epoch is behind its beta's alias."""
        run_id = steps.ensure(self.evaluate(grpo_run, settings))
        registration.register_best(self.context, evaluation.read_evaluation(run_id))
        return run_id

    def given_evaluations(self, references: Sequence[str]) -> list[str]:
        """Ids of finished evaluations of different betas, each given by its id or the beginning of it.

        Raises:
            ParameterError: a beginning that several evaluations share, or two of the same beta; the message lists them.
            MissingRunError: no such finished evaluation in this experiment.
        """
        runs = search.find_runs("evaluate", {})
        chosen: dict[str, str] = {}
        for reference in references:
            found = [run for run in runs if reference and run.info.run_id.startswith(reference)]
            if len(found) > 1:
                named = "; ".join(map(search.describe, found))
                raise ParameterError(f"evaluations={reference}: several begin so: {named}; give more of the id")
            run_id = found[0].info.run_id if found else reference
            beta = run_tags(run_id, "evaluate")["kl_beta"]
            if beta in chosen:
                raise ParameterError(f"evaluations: {chosen[beta]} and {run_id} are both of beta {beta}; give one of them")
            chosen[beta] = run_id
        return list(chosen.values())

    def compare(self, evaluations: Sequence[str], language: Language) -> Step:
        """Compares evaluated betas: a report as a page and as Markdown, its figures and ``json``."""
        execute = partial(compare_betas, self.context, evaluations, language)
        inputs = {**self.context.identity(), "evaluations": ",".join(evaluations)}
        return self._step("compare", "compare", {"lang": language}, inputs, execute)

    def compare_results(self, path: Path, language: Language) -> Step:
        """Compares the runs in a results file, in the same way; nothing else is read.

        Raises:
            DataError: the file is not there or not of that shape.
        """
        results = read_results(path)
        inputs = {"results_digest": hashlib.sha256(json.dumps(results.to_json(), sort_keys=True).encode()).hexdigest()[:32]}
        execute = partial(compare_results, results, str(path), language, self.context.seed)
        return Step("compare", "compare", {"lang": language, "results": str(path)}, inputs, execute)

    def summary(self, comparison_run: str) -> str:
        """A comparison as a table for the terminal, and the line that opens the active run in the UI, whose note it becomes."""
        comparison = json.loads(artifacts.artifact(comparison_run, COMPARISON_FILE).read_text(encoding="utf-8"))
        mlflow.set_tag("mlflow.note.content", comparison["verdict"])
        return f"{terminal.summary(comparison)}\n\nLook at it with:\n  {commands.ui_command()}"

    # the whole experiment

    def experiment(
        self,
        kl_betas: Sequence[float],
        rollout: RolloutSettings,
        rce: RceSettings,
        grpo: GrpoSettings,
        evaluation: EvalSettings,
        language: Language,
    ) -> Step:
        """Every step in turn as a child run; those that finished before with the same inputs are reused.

        Raises:
            ParameterError: questions or pools do not suffice for the settings, found out before any work.
        """
        check_settings(rollout)
        choose_queries(self.resources.train, rollout.n_queries, self.context.seed)
        split_questions(self.resources.val, evaluation, self.context.seed)

        def execute() -> None:
            data = self.rl_data_of(steps.ensure(self.rollout(rollout)))
            steps.ensure(self.validate(data))
            start = self.start_of(steps.ensure(self.rce(data, rce)))
            evaluations = []
            for kl_beta in kl_betas:
                grpo_run = steps.ensure(self.grpo(data, start, replace(grpo, kl_beta=kl_beta)))
                evaluations.append(self.evaluated(grpo_run, evaluation))
            log.info("\n%s", self.summary(steps.ensure(self.compare(evaluations, language))))

        settings = {
            "kl_betas": tuple(kl_betas),
            **{f"rollout_{name}": value for name, value in asdict(rollout).items()},
            **{f"rce_{name}": value for name, value in asdict(rce).items()},
            **{f"grpo_{name}": value for name, value in asdict(grpo).items() if name != "kl_beta"},
            **{f"evaluation_{name}": value for name, value in asdict(evaluation).items()},
            "lang": language,
        }
        return self._step("main", "experiment", settings, self._common(), execute)

    # the registry

    def promote(self, kl_beta: float, settings: PromotionSettings) -> Step:
        """Makes the version behind a beta's alias the champion, if the evidence is for it."""
        choices = {"model_name": self.context.registered_name, "kl_beta": kl_beta, **asdict(settings)}
        execute = partial(promotion.promote_beta, self.context, kl_beta, settings, self.evaluated_version)
        return Step("promote", f"promote beta {kl_beta:g}", choices, {}, execute)

    def rollback(self) -> Step:
        """Makes the previous champion the champion again, and the champion the previous one."""
        settings = {"model_name": self.context.registered_name}
        return Step("rollback", "rollback", settings, {}, partial(promotion.roll_back, self.context))

    def status(self) -> Step:
        """Lists the versions of the registered model."""
        settings = {"model_name": self.context.registered_name}
        return Step("status", "status", settings, {}, partial(promotion.show_status, self.context))

    def listing(self, status_run: str) -> str:
        """The table that a status run logged."""
        return artifacts.artifact(status_run, promotion.STATUS_FILE).read_text(encoding="utf-8")

    def evaluated_version(self, version: str, like: Mapping[str, Any]) -> str:
        """Id of a run that evaluates a registered version on the questions of an evaluation, given as its result.

        Raises:
            ParameterError: this pipeline works on other data, models or another seed than that evaluation.
        """
        self.resources.check()
        identity = self.context.identity()
        for name, value in identity.items():
            if like["inputs"][name] != value:
                raise ParameterError(
                    f"run {like['run_id']} evaluated with {name} {like['inputs'][name]}, but this has {value}; "
                    "give the dataset, vlm, encoder and seed of that evaluation"
                )
        choices: dict[str, Any] = {**like["settings"], **{name: tuple(like["settings"][name]) for name in ("sizes", "shots")}}
        settings, reference = EvalSettings(**choices), f"models:/{self.context.registered_name}/{version}"
        digest = selector_digest(load_selector(logged_models.checkpoint_folder(reference)))
        return steps.ensure(
            self._step(
                "evaluate-version",
                f"evaluate version {version}",
                asdict(settings),
                {**identity, "checkpoint_digest": digest},
                partial(promotion.evaluate_version, self.context, reference, settings),
            )
        )

    def _launch(self, step: Step, data: RLData, resume: str) -> Launch:
        return Launch(step.key, partial(self.verdict, data), partial(self.interrupted, step, resume))

    def _step(
        self, step: str, name: str, settings: Mapping[str, Any], inputs: Mapping[str, Any], execute: Callable[[], None]
    ) -> Step:
        resources = self.resources
        labels = {name: getattr(resources, name) for name in ("dataset", "vlm", "vlm_model", "encoder")}
        labels |= {"seed": self.context.seed, **asdict(resources.data), **resources.language_model.recorded}

        def run() -> None:
            context.log_skipped(resources)
            execute()

        return Step(step, name, settings, inputs, run, labels)

    def _common(self) -> dict[str, Any]:
        """What runs must share so that ``auto`` may find one for the other."""
        return {**self.context.identity(), "reward_mode": self.context.reward_mode}

    def _training_inputs(self, data: RLData) -> dict[str, Any]:
        suites = suite_digest(thresholds=self.context.gate.thresholds)
        return {**self._common(), "rl_data_digest": data.digest, "suite_digest": suites}

    def _selector(self, reference: str, folder: Path | None = None) -> PointerSelector:
        """A checkpoint's selector by path or model URI, unless its ``folder`` is known.

        Raises:
            CheckpointError: it cannot be read, or is not one for this encoder's features.
        """
        selector = load_selector(folder or logged_models.checkpoint_folder(reference))
        takes, given = selector.config["feature_dim"], self.resources.features("train").of(selector.fusion).shape[1]
        if takes != given:
            raise CheckpointError(
                f"{reference}: its selector takes features of {takes} numbers, but encoder={self.resources.encoder} gives "
                f"{given}; give the encoder that it was trained with"
            )
        return selector

    def _initial_selector(self, init: str) -> PointerSelector:
        if init != RANDOM_INIT:
            return self._selector(init)
        torch.manual_seed(self.context.seed)
        return PointerSelector(feature_dim=self.resources.features("train").fused_SD.shape[1]).eval()


def _used(settings: GrpoSettings) -> dict[str, Any]:
    """What presets differ in, as parameters under names that ``mlflow run`` has not logged as ``auto`` already."""
    used = {f"used/{name}": getattr(settings, name) for name in PRESET_SETTINGS}
    return {**used, "used/epsilon_high": settings.epsilon_high or settings.epsilon}


def _difference(step: Step, tags: Mapping[str, str]) -> str:
    """What keeps a run from being this step, in words; without its tags, only that something does."""
    if not tags:
        return "that training was of another step, or of other settings, data or code"
    if tags.get("step") != step.step:
        return f"that is a {tags.get('step', 'foreign')} run, not {step.step}"
    theirs = json.loads(tags["settings"])
    ours = json.loads(json.dumps(dict(step.settings)))
    settings = [f"{name} was {theirs.get(name)}, now {value}" for name, value in ours.items() if theirs.get(name) != value]
    inputs = [name for name, value in step.inputs.items() if tags.get(name) != str(value)]
    return f"that run differs: {'; '.join(settings or inputs or ['code of the package'])}"
