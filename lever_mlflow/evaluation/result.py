"""Describes the result of an evaluation: one typed record, kept as ``evaluation.json`` and read everywhere by the same type."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from lever_mlflow.evaluation.answering import BestSingle
from lever_mlflow.evaluation.overlap import PickOverlap
from lever_mlflow.evaluation.records import AccuracyCell
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.files.records import read_record
from lever_mlflow.settings import EvalSettings, GrpoSettings, RoundSettings, Scoring
from lever_mlflow.trials.rewards import Reward
from lever_mlflow.vlm.profiles import PromptProfile

__all__ = ["EpochMetrics", "Evaluation", "EvaluationInputs", "RLDataSummary", "Registration", "ResourceNames"]


def _reward_label(text: str) -> str:
    """Returns the label of a reward as it is; raises ValueError where it names none."""
    try:
        return Reward.of_label(text).label
    except ParameterError as error:
        raise ValueError(str(error)) from None


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EvaluationInputs(_Record):
    """Describes what an evaluation worked on: digests of data and models, and how the evaluated epochs were trained.

    Attributes:
        profile_digest: of the prompt profile and the way of scoring together.
        seed: of the evaluation: its questions, pools and random draws.
        reward_mode: the label of the reward that the GRPO run was trained with (``Reward.label``).
        training_seed: of the GRPO run.
        start: the start checkpoint in words, such as ``rce epoch 4``; ``start_uri`` is where it was read.
        gate: the data gate's verdict on the RL data.
        gate_override, start_gate_override: critical expectations that ``on_bad_data=warn`` let through in training, for the
            GRPO run and for its start checkpoint.
        checkpoints: digest of each further checkpoint that was evaluated, by the name of its policy.
    """

    dataset_digest: str
    vlm_digest: str
    profile_digest: str
    encoder_digest: str
    seed: int
    reward_mode: Annotated[str, AfterValidator(_reward_label)]
    rl_data_digest: str
    start: str
    start_digest: str
    start_uri: str
    training_seed: int
    grpo_run: str
    gate: str
    gate_override: str | None = None
    start_gate_override: str | None = None
    checkpoints: dict[str, str] = {}
    scoring: Scoring = "raw"

    @property
    def overrides(self) -> dict[str, str]:
        """Returns those of ``gate_override`` and ``start_gate_override`` that are set."""
        overrides = {"gate_override": self.gate_override, "start_gate_override": self.start_gate_override}
        return {name: value for name, value in overrides.items() if value is not None}


class RLDataSummary(_Record):
    """Describes the RL data of a training: where they were read, their size, and how much there was to learn from."""

    source: str
    n_queries: int
    n_positive_queries: int
    mean_reward: float


class ResourceNames(_Record):
    """Holds the names by which a user gave data set, VLM and encoder."""

    dataset: str
    vlm: str
    encoder: str


class EpochMetrics(_Record):
    """Holds the metrics that training logged for one epoch (1-based)."""

    epoch: int
    metrics: dict[str, float]


class Registration(_Record):
    """Describes the version that holds the best epoch, or says why none was registered.

    Attributes:
        name, alias: of the registered model, and of the version in it.
        model_id: of the logged checkpoint of the best epoch; ``checkpoint_digest`` is that of its weights.
        tags, description: what the version says of itself; made from the rest of the evaluation.
        refusal: why it is not registered, and how it would be, as a sentence; empty where it is.
        version: its number; empty before it is registered.
    """

    name: str
    alias: str
    model_id: str
    checkpoint_digest: str
    tags: dict[str, str] = {}
    description: str = ""
    refusal: str = ""
    version: str = ""


class Evaluation(_Record):
    """Holds everything that is known of the evaluation of one GRPO run.

    Attributes:
        run_id: of the evaluation; ``git_commit`` is that of the training.
        settings, training: of the evaluation, and of the GRPO run.
        epochs: the metrics of training, by epoch that was evaluated.
        profile: the texts and settings of the prompts.
        accuracy: of every policy by size and shot count.
        selection_accuracy: of every epoch on the selection questions, in [0, 1].
        checkpoints: the references of further checkpoints that were evaluated, as the user gave them.
        overlap: how far each two checkpoints pick the same demonstrations.
        best_single: what the best single demonstration of each pool would bring; None where that was not measured.
    """

    kl_beta: float
    best_epoch: int
    run_id: str
    git_commit: str
    settings: EvalSettings
    training: GrpoSettings
    rounds: RoundSettings
    inputs: EvaluationInputs
    rl_data: RLDataSummary
    resources: ResourceNames
    epochs: tuple[EpochMetrics, ...]
    profile: PromptProfile
    accuracy: tuple[AccuracyCell, ...]
    selection_accuracy: dict[int, float]
    checkpoints: tuple[str, ...]
    overlap: tuple[PickOverlap, ...]
    best_single: BestSingle | None
    registration: Registration

    def with_registration(self, **values: Any) -> Evaluation:
        """Returns a copy in which these fields of the registration are filled in."""
        return self.model_copy(update={"registration": self.registration.model_copy(update=values)})

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Reads the JSON file that holds an evaluation.

        Raises:
            DataError: as ``read_record``.
        """
        return read_record(cls, path, "an evaluation", "evaluate")
