"""Defines the evaluation step: it compares a beta's epochs with the baselines, and registers the best epoch if it may."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any, TypeVar

import mlflow
from pydantic import TypeAdapter

from lever_mlflow.data.features import check_sampler
from lever_mlflow.data.samples import Sample
from lever_mlflow.evaluation.answering import BestSingle
from lever_mlflow.evaluation.answers_page import answers_page
from lever_mlflow.evaluation.overlap import PickOverlap
from lever_mlflow.evaluation.policies import (
    CHAMPION,
    START,
    ZERO_SHOT,
    checkpoint_policy,
    epoch_policy,
)
from lever_mlflow.evaluation.questions import split_questions
from lever_mlflow.evaluation.records import REPORT, SELECTION, AccuracyCell, EvaluationRecords, best_epoch
from lever_mlflow.evaluation.result import (
    EpochMetrics,
    Evaluation,
    EvaluationInputs,
    Registration,
    ResourceNames,
    RLDataSummary,
)
from lever_mlflow.evaluation.rounding import decimals
from lever_mlflow.evaluation.strongest import strongest
from lever_mlflow.exceptions import CheckpointError, DataError, ParameterError
from lever_mlflow.pipeline.baselines import (
    accuracies_of,
    answering,
    baselines_step,
    log_records,
    question_set,
    read_baselines,
    read_records,
)
from lever_mlflow.pipeline.checkpoints import Start, start_selector
from lever_mlflow.pipeline.context import Context, make_step, of_beta
from lever_mlflow.pipeline.gate import rl_data_figures
from lever_mlflow.pipeline.grpo import GRPO, candidates_of, find_grpo
from lever_mlflow.pipeline.registration import check_registered_model, refusal, register_best
from lever_mlflow.registry.model_card import describe_version
from lever_mlflow.registry.versions import beta_alias
from lever_mlflow.runs.artifacts import artifact, as_recorded, log_text
from lever_mlflow.runs.metrics import ANSWER_RATE, DATA, epoch_metrics
from lever_mlflow.runs.planning import active_plan
from lever_mlflow.runs.search import absent, auto_run_id, find_run
from lever_mlflow.runs.steps import Step, active_run, ensure, run_settings
from lever_mlflow.runs.tags import Tag, finished_run_tags, record, set_description
from lever_mlflow.serving.logged_models import checkpoint_folder
from lever_mlflow.settings import AUTO, NONE, EvalSettings, GrpoSettings, RoundSettings, format_beta, preset_of

if TYPE_CHECKING:
    from lever_mlflow.selector.network import PointerSelector

__all__ = [
    "EVALUATE",
    "ensure_evaluated",
    "evaluate_step",
    "evaluate_version_step",
    "find_evaluation",
    "prompts_of_policies",
    "read_checkpoints",
    "read_evaluation",
    "read_records",
]

S = TypeVar("S")
EVALUATE = "evaluate"
RESULT_FILE, ANSWERS_PAGE = "evaluation.json", "answers.html"
_GIT_COMMIT = "mlflow.source.git.commit"  # MLflow's own tag

log = logging.getLogger(__name__)


def evaluate_step(context: Context, grpo_run: str, settings: EvalSettings, checkpoints: Sequence[str] = ()) -> Step:
    """Prepares the evaluation of every epoch of one GRPO run beside the baselines, and the registration of the best.

    Args:
        checkpoints: further ones to be evaluated, each a path or a model URI; they are never registered.

    Raises:
        CheckpointError, ParameterError: as ``read_checkpoints`` and ``check_registered_model``; or the GRPO run was trained on
            other data or models.
    """
    check_sampler(settings.pool_sampler, context.resources.encoder_sides)
    tags = finished_run_tags(grpo_run, GRPO)
    _check_same_resources(context, grpo_run, tags)
    check_registered_model(context)
    others = read_checkpoints(context, checkpoints)
    with as_recorded(f"run {grpo_run}", "one of its facts"):
        inputs = EvaluationInputs.model_validate(
            {
                **{name: value for name, value in tags.items() if name in EvaluationInputs.model_fields},
                "seed": context.seed,
                "scoring": context.resources.data.scoring,
                "training_seed": tags[Tag.SEED],
                "grpo_run": grpo_run,
                "checkpoints": {policy: start.digest for policy, start in others.items()},
            }
        )
        kl_beta = float(tags[Tag.KL_BETA])
    job = _Evaluation(context, kl_beta, settings, inputs, tuple(checkpoints), others)
    registering = {"model_name": context.registered_name, "register": context.register}
    choices = {**asdict(settings), **registering, "kl_beta": job.kl_beta}
    lookup = {Tag.KL_BETA: job.kl_beta, **context.same_trainings()}
    options = {"checkpoints": ",".join(checkpoints) or NONE, **context.reward.options}
    # no parameter, as the page that compares runs in the UI would begin with it
    config = {**context.shared_options(), EVALUATE: {"grpo_run": grpo_run, **options, **choices}}
    policies = {"learned": 1 + len(others), "candidates": len(candidates_of(grpo_run))}
    needs: dict[str, Any] = {"shots": max(settings.shots), "prompts": prompts_of_policies(settings, **policies)}
    facts = {**lookup, **_input_tags(inputs)}
    return make_step(context, EVALUATE, job.name, choices, facts, job.run, options, config=config, **needs)


def prompts_of_policies(settings: EvalSettings, learned: int, candidates: int) -> int:
    """Returns how many prompts an evaluation asks at most beside those of the baselines.

    Args:
        learned: number of trained policies that answer the report questions only.
        candidates: number of epochs, which answer the selection questions too.
    """
    report, shots = max(settings.sizes), len(settings.shots)
    return shots * ((learned + candidates) * report + candidates * settings.n_selection)


def read_checkpoints(context: Context, checkpoints: Sequence[str]) -> dict[str, Start]:
    """Finds the further checkpoints of an evaluation, each given by path or model URI, and returns them by policy.

    Raises:
        CheckpointError: as ``read_selector``.
        ParameterError: a name is empty.
    """
    if not all(checkpoints):
        raise ParameterError("checkpoints: an empty name between commas; name each checkpoint, or give none")
    return {
        checkpoint_policy(number, reference): start_selector(context, reference)
        for number, reference in enumerate(checkpoints, start=1)
    }


def evaluate_version_step(context: Context, version: str, like: Evaluation) -> Step:
    """Prepares the evaluation of a registered version on the report questions of another evaluation.

    Raises:
        ParameterError: this context works on other data, models or another seed than that evaluation.
    """
    context.resources.check()
    identity = context.identity()
    for name, value in identity.items():
        if (expected := getattr(like.inputs, name)) != value:
            raise ParameterError(
                f"run {like.run_id} evaluated with {name} {expected}, but this has {value}; "
                "give the dataset, vlm, encoder, scoring and seed of that evaluation"
            )
    reference = f"models:/{context.registered_name}/{version}"
    registered = start_selector(context, reference)
    execute = partial(_evaluate_version, context, registered, like.settings)
    inputs = {**identity, Tag.CHECKPOINT_DIGEST: registered.digest}
    name, shots = f"evaluate version {version}", max(like.settings.shots)
    needs: dict[str, Any] = {"shots": shots, "prompts": prompts_of_policies(like.settings, learned=1, candidates=0)}
    return make_step(context, "evaluate-version", name, asdict(like.settings), inputs, execute, **needs)


def find_evaluation(context: Context, kl_beta: float) -> str:
    """Returns the id of the newest finished evaluation of this beta on these resources and this seed, or runs it first."""
    run = find_run(EVALUATE, {**context.same_trainings(), Tag.KL_BETA: kl_beta})
    if run is not None:
        run_id = auto_run_id("evaluations", of_beta(EVALUATE, kl_beta), run)
        if active_plan() is None:
            register_best(context, read_evaluation(run_id))
        return run_id
    absent(f"evaluation of beta {format_beta(kl_beta)}")
    settings = preset_of(EvalSettings, context.preset)
    context.resources.try_longest_prompt(max(settings.shots))  # before a training begins
    grpo_run = find_grpo(context, AUTO, kl_beta)
    ensure(baselines_step(context, settings))
    return ensure_evaluated(context, grpo_run, settings)


def ensure_evaluated(context: Context, grpo_run: str, settings: EvalSettings) -> str:
    """Returns the id of an evaluation of this GRPO run, reused or new; its best epoch is registered, unless it says why not."""
    run_id = ensure(evaluate_step(context, grpo_run, settings))
    if active_plan() is None:
        register_best(context, read_evaluation(run_id))
    return run_id


def read_evaluation(run_id: str) -> Evaluation:
    """Reads the result of a finished evaluation.

    Raises:
        DataError: it is not there, or was written by another version of this package.
    """
    path = artifact(run_id, RESULT_FILE)
    try:
        return Evaluation.read(path)
    except DataError as error:
        raise DataError(f"run {run_id}: {error}") from None


@dataclass(frozen=True)
class _Evaluation:
    """Evaluates one GRPO run.

    Attributes:
        checkpoints: the references of further checkpoints; ``others`` are they themselves, by policy.
    """

    context: Context
    kl_beta: float
    settings: EvalSettings
    inputs: EvaluationInputs
    checkpoints: tuple[str, ...]
    others: Mapping[str, Start]

    @property
    def name(self) -> str:
        return of_beta(EVALUATE, self.kl_beta)

    def run(self) -> None:
        """Evaluates the epochs, logs everything, and registers the best epoch or says why not."""
        from lever_mlflow.selector.checkpoint import load_selector, selector_digest

        models = candidates_of(self.inputs.grpo_run)
        epochs = {epoch: load_selector(checkpoint_folder(f"models:/{model_id}")) for epoch, model_id in models.items()}
        by_policy = {epoch_policy(epoch): selector for epoch, selector in epochs.items()}
        checkpoints = {START: self._start(), **{policy: start.load() for policy, start in self.others.items()}, **by_policy}
        questions = split_questions(self.context.resources.val, self.settings, self.context.seed)
        report, selection = (question_set(self.context, samples, self.settings) for samples in questions)
        learned = report.learned(checkpoints)
        baselines = read_baselines(ensure(baselines_step(self.context, self.settings)))
        asked = answering(self.context, self.name, self.settings.order)
        records = EvaluationRecords.joined(
            [
                baselines.records,
                asked.records(report.samples, REPORT, learned, self.settings.shots),
                asked.records(selection.samples, SELECTION, selection.learned(by_policy), self.settings.shots),
            ]
        )
        selection_accuracy = records.selection_accuracy(epochs)
        best = best_epoch(selection_accuracy)
        table, overlap = records.table(self.settings.sizes), report.overlap(checkpoints, learned)
        self._log_accuracies(best, table, models, selection_accuracy)
        mlflow.log_metric(ANSWER_RATE, report.answer_rate)  # not first: the UI compares runs by the first metric
        self._log_answers(report.samples, records, table, best)
        record({Tag.BEST_EPOCH: best})
        registration = Registration(
            name=self.context.registered_name,
            alias=beta_alias(self.kl_beta),
            model_id=models[best],
            checkpoint_digest=selector_digest(epochs[best]),
        )
        evaluation = self._result(best, selection_accuracy, table, overlap, baselines.best_single, registration)
        evaluation = evaluation.with_registration(refusal=refusal(self.context, evaluation))
        tags, card = describe_version(evaluation, records)
        self._register_and_log(evaluation.with_registration(tags=tags, description=card), records)

    def _start(self) -> PointerSelector:
        """Reads the start checkpoint, which must still be the one that the GRPO run started from."""
        from lever_mlflow.selector.checkpoint import load_selector, selector_digest

        start = load_selector(checkpoint_folder(self.inputs.start_uri))
        if selector_digest(start) != self.inputs.start_digest:
            raise CheckpointError(
                f"{self.inputs.start_uri}: not the checkpoint any more that run {self.inputs.grpo_run} started from "
                f"(digest {self.inputs.start_digest}); restore it, or train again from the present one"
            )
        return start

    def _result(
        self,
        best: int,
        selection_accuracy: dict[int, float],
        table: Sequence[AccuracyCell],
        overlap: Sequence[PickOverlap],
        best_single: BestSingle | None,
        registration: Registration,
    ) -> Evaluation:
        resources, grpo_run = self.context.resources, self.inputs.grpo_run
        chosen = run_settings(grpo_run)
        return Evaluation(
            kl_beta=self.kl_beta,
            best_epoch=best,
            run_id=active_run().info.run_id,
            git_commit=mlflow.get_run(grpo_run).data.tags.get(_GIT_COMMIT, "unknown"),
            settings=self.settings,
            training=_recorded(GrpoSettings, chosen),
            rounds=_recorded(RoundSettings, chosen),
            inputs=self.inputs,
            rl_data=_rl_data_summary(grpo_run),
            resources=ResourceNames(dataset=resources.dataset, vlm=resources.vlm, encoder=resources.encoder),
            epochs=tuple(
                EpochMetrics(epoch=epoch, metrics=values)
                for epoch, values in epoch_metrics(grpo_run).items()
                if epoch in selection_accuracy
            ),
            profile=resources.language_model.profile,
            accuracy=tuple(table),
            selection_accuracy=selection_accuracy,
            checkpoints=self.checkpoints,
            overlap=tuple(overlap),
            best_single=best_single,
            registration=registration,
        )

    def _log_accuracies(
        self, best: int, table: Sequence[AccuracyCell], models: Mapping[int, str], selection: Mapping[int, float]
    ) -> None:
        """Logs the accuracies by which runs are compared, in [0, 1], on the largest number of questions.

        Without a step are those of the best epoch: ``accuracy``, the mean over shots, and ``accuracy/shots{k}``. With the epoch
        as step are ``epoch/accuracy`` and ``epoch/selection_accuracy``, both means over shots. Everything else is in the
        records and in ``evaluation.json``.
        """
        by_epoch = {epoch: accuracies_of(table, epoch_policy(epoch), max(self.settings.sizes)) for epoch in models}
        mlflow.log_metric("accuracy", mean(by_epoch[best].values()))
        mlflow.log_metrics({f"accuracy/shots{shots}": value for shots, value in by_epoch[best].items()})
        for epoch, model_id in models.items():
            means = {"accuracy": mean(by_epoch[epoch].values()), "selection_accuracy": selection[epoch]}
            mlflow.log_metrics({f"epoch/{name}": value for name, value in means.items()}, step=epoch, model_id=model_id)

    def _log_answers(
        self, queries: Sequence[Sample], records: EvaluationRecords, table: Sequence[AccuracyCell], best: int
    ) -> None:
        """Logs a page with images: what the best epoch, its start and the strongest baseline picked, and what was answered."""
        beta, shots = format_beta(self.kl_beta), max(self.settings.shots)
        policies = {ZERO_SHOT: "no demonstrations"}
        size = max(self.settings.sizes)
        means: dict[tuple[str, int | None], float] = {(c.policy, c.shots): c.accuracy for c in table if c.size == size}
        baseline = strongest(means, shots)
        if baseline is not None:
            policies[baseline.policy] = f"{baseline.policy}, the strongest baseline"
        policies |= {START: "start checkpoint", epoch_policy(best): f"beta {beta}, epoch {best}"}
        page = answers_page(f"Answers of beta {beta}", records, policies, queries, self.context.resources.train, shots)
        log_text(page, ANSWERS_PAGE)

    def _register_and_log(self, evaluation: Evaluation, records: EvaluationRecords) -> None:
        version = register_best(self.context, evaluation)
        registered = f"{self.context.registered_name} version {version}"
        outcome = f"It is {registered}." if version else evaluation.registration.refusal
        summary, _, card = evaluation.registration.description.partition("\n")
        set_description(f"{summary} {outcome}\n{card}")
        if version:
            record({Tag.REGISTERED: registered})
        else:
            log.warning("%s: %s", self.name, outcome)
        log_text(evaluation.with_registration(version=version).model_dump_json(indent=2), RESULT_FILE)
        log_records(records)


def _evaluate_version(context: Context, registered: Start, settings: EvalSettings) -> None:
    """Evaluates a registered version on the report questions, and logs the records."""
    samples = split_questions(context.resources.val, settings, context.seed).report
    picks = question_set(context, samples, settings).learned({CHAMPION: registered.load()})
    records = answering(context, "evaluate champion", settings.order).records(samples, REPORT, picks, settings.shots)
    log_records(records)
    set_description(f"{decimals(100 * records.frame['accuracy'].mean())} % on {len(samples):,} questions, as a mean over shots")


def _check_same_resources(context: Context, grpo_run: str, tags: Mapping[str, str]) -> None:
    for name, value in context.identity().items():
        if name != Tag.SEED and tags[name] != str(value):
            raise ParameterError(
                f"run {grpo_run} was trained with {name} {tags[name]}, but this evaluation has {value}; "
                "give the dataset, vlm, encoder and scoring that it was trained with"
            )


def _input_tags(inputs: EvaluationInputs) -> dict[str, Any]:
    """Returns the inputs as tags; one tag stands for the digests of all further checkpoints."""
    tags = inputs.model_dump(exclude_none=True, exclude={"checkpoints"})
    if inputs.checkpoints:
        content = json.dumps(inputs.checkpoints, sort_keys=True)
        tags[Tag.CHECKPOINTS] = hashlib.sha256(content.encode()).hexdigest()[:32]
    return tags


def _recorded(kind: type[S], chosen: Mapping[str, Any]) -> S:
    """Returns settings of a class as a run recorded them in JSON; settings that are newer than the run have their defaults."""
    names = {setting.name for setting in fields(kind)}  # type: ignore[arg-type]
    return TypeAdapter(kind).validate_python({name: value for name, value in chosen.items() if name in names})


def _rl_data_summary(grpo_run: str) -> RLDataSummary:
    metrics = rl_data_figures(grpo_run)
    with as_recorded(f"run {grpo_run}", "its figures of RL data"):
        queries = int(metrics[f"{DATA}n_queries"])
        return RLDataSummary(
            source=finished_run_tags(grpo_run, GRPO)[Tag.RL_DATA_SOURCE],
            n_queries=queries,
            n_positive_queries=round(metrics[f"{DATA}positive_query_rate"] * queries),
            mean_reward=metrics[f"{DATA}reward_mean"],
        )
