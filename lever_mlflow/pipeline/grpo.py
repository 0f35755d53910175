"""Defines the GRPO step: rounds of fresh trials, data gate and optimisation, each as child runs; and finds its runs again."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import mlflow

from lever_mlflow.exceptions import GateError, ParameterError
from lever_mlflow.gate import GateResult
from lever_mlflow.pipeline.context import Context, make_step, of_beta
from lever_mlflow.pipeline.gate import find_verdict, pass_gate
from lever_mlflow.pipeline.rollout import find_rl_data, recorded_settings, rl_data_of_run, rollout_step
from lever_mlflow.pipeline.training import (
    GrpoStart,
    RoundPlace,
    find_start,
    round_step,
    start_of_grpo,
    training_inputs,
)
from lever_mlflow.runs.artifacts import as_recorded, log_json, read_json
from lever_mlflow.runs.metrics import ROUNDS, epoch_metrics, log_history
from lever_mlflow.runs.models import checkpoints_of, log_checkpoints
from lever_mlflow.runs.search import absent, auto_run_id, find_run
from lever_mlflow.runs.steps import Step, ensure, finished_run, run_as_child
from lever_mlflow.runs.tags import Tag, finished_run_tags, holder_of, record, run_tags, set_description
from lever_mlflow.settings import (
    AUTO,
    NONE,
    GrpoSettings,
    RolloutSettings,
    RoundSettings,
    format_beta,
    preset_of,
)
from lever_mlflow.training.curves import training_curves
from lever_mlflow.training.diagnosis import no_longer_rising, taught_nothing
from lever_mlflow.training.filters import filter_summary
from lever_mlflow.trials.generators import gen_methods
from lever_mlflow.trials.rl_data import RLData
from lever_mlflow.trials.rollout import first_choice_reward, most_prompts, positive_query_rate

__all__ = ["GRPO", "candidates_of", "find_grpo", "grpo_step", "why_nothing_was_learnt"]

GRPO = "grpo"
ROUNDS_FILE, LAST_EPOCHS = "rounds.json", "last_epochs"  # the numbers of the last epochs of the rounds
# metric of a round -> metric of its last epoch
_OF_ROUND = {"expected_reward": "val/expected_reward", "kl_exact": "val/kl_exact", "picks_changed": "val/picks_changed"}

log = logging.getLogger(__name__)


def grpo_step(
    context: Context, data: RLData, start: str, settings: GrpoSettings, rounds: RoundSettings, resume: str = AUTO
) -> Step:
    """Prepares the optimisation of a start checkpoint with GRPO under a KL penalty, in rounds.

    Args:
        data: the trials that the first round learns from; each later round records its own, in the same way.
        start: the checkpoint that the first round starts from, by path or model URI.
        settings: of the optimisation in each round.
        rounds: how many rounds there are, and what they share.
        resume: as for ``interrupted_training``, for the first round that has not finished; or the run of the interrupted step.

    Raises:
        DataError, ParameterError: a later round cannot be recorded as the data were, or the filters would leave nothing.
    """
    filter_summary(data, settings, context.seed)
    prompts, shots = 0, None
    if rounds.rounds > 1:  # a value that later rounds cannot use is reported before the first one
        recorded = recorded_settings(data)
        _check_later_rounds(settings, recorded)
        prompts, shots = (rounds.rounds - 1) * most_prompts(recorded), recorded.shots
    policy = start_of_grpo(context, start)
    inputs = {**training_inputs(context, data), Tag.KL_BETA: settings.kl_beta, **policy.tags}
    values = {**asdict(settings), **asdict(rounds)}

    def execute() -> None:
        _Rounds(context, data, policy, settings, rounds, _resumed(step, resume)).run()

    name = of_beta(GRPO, settings.kl_beta)
    options = {"rl_data": data.origin, **context.options_of_judgement(), "init": policy.tags[Tag.START_URI], "resume": resume}
    needs = (policy.tags[Tag.START_URI],)
    step = make_step(context, GRPO, name, values, inputs, execute, options, shots=shots, prompts=prompts, needs=needs)
    return step


def find_grpo(context: Context, reference: str, kl_beta: float) -> str:
    """Returns the id of the GRPO run that a reference names by its id, or finds by ``auto``.

    For ``auto`` it is the newest finished run of the beta. Where there is none, a run is made with the settings of the
    context's preset.

    Raises:
        ParameterError: the run was trained with another beta.
    """
    beta = format_beta(kl_beta)
    if reference != AUTO:
        reference = holder_of(reference)
        with as_recorded(f"run {reference}", "its tag kl_beta"):
            trained = float(finished_run_tags(reference, GRPO)[Tag.KL_BETA])
        if trained != kl_beta:
            raise ParameterError(f"kl_beta={beta}, but run {reference} was trained with {format_beta(trained)}")
        return reference
    run = find_run(GRPO, {**context.same_trainings(), Tag.KL_BETA: kl_beta})
    if run is not None:
        return auto_run_id("grpo_run", of_beta(GRPO, kl_beta), run)
    absent(f"grpo run of beta {beta}")
    data = find_rl_data(context, AUTO)
    settings, rounds = preset_of(GrpoSettings, context.preset, kl_beta=kl_beta), preset_of(RoundSettings, context.preset)
    return ensure(grpo_step(context, data, find_start(context, AUTO, data), settings, rounds))


def candidates_of(run_id: str) -> dict[int, str]:
    """Returns the ids of the logged models that a finished GRPO run offers for registration, by epoch.

    These are the last epochs of the rounds, with which the next round began. A single round offers all its epochs.
    """
    ends, models = _last_epochs(run_id), checkpoints_of(run_id)
    return {epoch: model_id for epoch, model_id in models.items() if epoch in ends or len(ends) == 1}


def _last_epochs(run_id: str) -> list[int]:
    """Returns the last epoch of each round of a finished GRPO run."""
    with as_recorded(f"run {run_id}", f"artifact {ROUNDS_FILE}"):
        return [int(epoch) for epoch in read_json(run_id, ROUNDS_FILE)[LAST_EPOCHS]]


def why_nothing_was_learnt(run_id: str, epoch: int) -> str:
    """Says why the rounds of a finished GRPO run taught its policy nothing up to an epoch; empty where one of them did."""
    metrics, ends = epoch_metrics(run_id), _last_epochs(run_id)
    with as_recorded(f"run {run_id}", "metrics of its epochs"):
        reasons = [taught_nothing(metrics[end]) for before, end in pairwise([0, *ends]) if before < epoch]
    return reasons[-1] if all(reasons) else ""


@dataclass
class _Rounds:
    """Runs the rounds of one GRPO step, and logs in its run what they have come to.

    Attributes:
        start: the first start; ``policy`` is the URI of the policy reached so far.
        resume: of the first round that has not finished; ``none`` trains every round anew.
        models: ids of the logged models by epoch, over all rounds.
        rewards: mean reward of the policy's first choice on the fresh trials of each round.
        overrides: what ``on_bad_data=warn`` let through, by round.
        history: the metrics of each epoch, over all rounds; ``ends`` are the numbers of the rounds' last epochs.
    """

    context: Context
    data: RLData
    start: GrpoStart
    settings: GrpoSettings
    rounds: RoundSettings
    resume: str
    models: dict[int, str] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policy = self.start.tags[Tag.START_URI]

    def run(self) -> None:
        """Runs the rounds until they are done, the data gate stops one, or they no longer help."""
        context, data = self.context, self.data
        let_through = pass_gate(context, data, find_verdict(context, data))
        self.overrides += let_through.values()
        ended = ""
        for number in range(1, self.rounds.rounds + 1):
            if number > 1:
                recorded = recorded_settings(self.data)
                data = rl_data_of_run(context, ensure(rollout_step(context, recorded, self.policy, number)))
            self._log_trials(number, data)
            ended = self._why_to_end(number, data) if number > 1 else ""
            if ended:
                log.warning("%s", ended)
                break
            self._optimise(number, data)
        self._conclude(ended)

    def _why_to_end(self, number: int, data: RLData) -> str:
        """Returns why the rounds end before a round on these trials, or an empty text where they go on."""
        verdict = find_verdict(self.context, data)
        if verdict.failed_critical:
            refusal = self._refusal(number, verdict)
            if refusal:
                return refusal
        if no_longer_rising(self.rewards, self.rounds.round_patience):
            shown = ", ".join(f"{value:.3f}" for value in self.rewards)
            return f"ended before round {number}: the reward of the policy's first choice no longer rises ({shown})"
        return ""

    def _refusal(self, number: int, verdict: GateResult) -> str:
        """Returns why the data gate stops a round.

        With ``on_bad_data=warn`` nothing stops it: the text is empty, and a tag of the run names what was overridden.
        """
        try:
            if self.context.gate.on_bad_data == "stop":
                verdict.raise_if_critical()
        except GateError as error:
            return f"ended before round {number} with what was reached: {error}"
        self.overrides.append(f"round {number}: {', '.join(verdict.failed_critical)}")
        record({Tag.GATE_OVERRIDE: "; ".join(self.overrides)})
        return ""

    def _log_trials(self, number: int, data: RLData) -> None:
        """Logs what the fresh trials of a round say of the policy that they were recorded from."""
        figures = {"positive_query_rate": positive_query_rate(data.groups)}
        reward = first_choice_reward(data.groups, self.context.reward)
        if reward is not None:
            self.rewards.append(reward)
            figures["first_choice_reward"] = reward
        mlflow.log_metrics({f"{ROUNDS}{name}": value for name, value in figures.items()}, step=number)

    def _optimise(self, number: int, data: RLData) -> None:
        """Trains a round as a child run, or takes the finished one, and adds its epochs to those of the rounds before."""
        reference = self.start.tags[Tag.START_URI] if self.rounds.kl_reference == "start" and number > 1 else None
        place = RoundPlace(number, len(self.models), reference)
        step = round_step(self.context, data, self.policy, self.settings, place, self.resume)
        run_id = None if self.resume == NONE else finished_run(step)
        if run_id is None:
            run_id = run_as_child(step)
            self.resume = NONE if self.resume == NONE else AUTO  # a named run is gone on from once
        self.models |= checkpoints_of(run_id)
        epochs = epoch_metrics(run_id)
        for epoch, metrics in epochs.items():
            mlflow.log_metrics(metrics, step=epoch)
        self.history += epochs.values()
        self.ends.append(len(self.history))
        self.policy = f"models:/{self.models[len(self.history)]}"
        last = {name: self.history[-1][metric] for name, metric in _OF_ROUND.items()}
        mlflow.log_metrics({f"{ROUNDS}{name}": value for name, value in last.items()}, step=number)

    def _conclude(self, ended: str) -> None:
        """Logs the checkpoints and curves of all rounds, and says in words what the rounds came to."""
        log_checkpoints(self.models)
        log_json({LAST_EPOCHS: self.ends}, ROUNDS_FILE)
        log_history(dict(enumerate(self.history, start=1)))
        title = f"GRPO beta {format_beta(self.settings.kl_beta)} (the lines mark the last epoch of each round)"
        mlflow.log_figure(training_curves(self.history, title, self.ends), "training_curves.png")
        last, n_rounds = len(self.history), len(self.ends)
        rewards = ", ".join(f"{reward:.3f}" for reward in self.rewards)
        trend = f"; reward of the policy's first choice on the fresh trials of each round: {rewards}" if rewards else ""
        description = f"{n_rounds} of {self.rounds.rounds} round{'s' * (self.rounds.rounds != 1)}, {last} epochs{trend}"
        if ended:
            description = f"{description}; {ended}"
            record({Tag.ROUNDS_ENDED: ended})
        record({Tag.ROUNDS_DONE: n_rounds, Tag.BEST_EPOCH: last, Tag.BEST_MODEL: self.models[last]})
        set_description(description)


def _check_later_rounds(settings: GrpoSettings, recorded: RolloutSettings) -> None:
    """Checks that the trials of later rounds, which are recorded with these settings, have the methods that are trained on."""
    methods = gen_methods(recorded)
    for method in settings.filter_gen_methods:
        if method not in methods:
            raise ParameterError(
                f"filter_gen_methods: later rounds record trials of {', '.join(methods)}, and none of {method}; leave it out, "
                "or give rounds=1"
            )


def _resumed(step: Step, resume: str) -> str:
    """Returns the value of ``resume`` for the rounds: ``auto`` finds the round in which the interrupted run of this step ended.

    Raises:
        ParameterError: that run is of other settings, data or code, or it is still running.
    """
    if resume in (AUTO, NONE) or Path(resume).is_dir() or run_tags(resume).get(Tag.STEP) != GRPO:
        return resume
    from lever_mlflow.pipeline.resume import check_same_step

    check_same_step(step, resume)
    return AUTO
