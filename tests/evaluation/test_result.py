import json

import pytest
from helpers.evaluation_samples import DIGESTS

from lever_mlflow.evaluation.answering import BestSingle
from lever_mlflow.evaluation.overlap import IdenticalPicks, PickOverlap
from lever_mlflow.evaluation.records import AccuracyCell
from lever_mlflow.evaluation.result import (
    EpochMetrics,
    Evaluation,
    EvaluationInputs,
    Registration,
    ResourceNames,
    RLDataSummary,
)
from lever_mlflow.exceptions import DataError
from lever_mlflow.settings import EvalSettings, GrpoSettings, RoundSettings
from lever_mlflow.vlm.profiles import PROFILES


@pytest.fixture
def evaluation():
    return Evaluation(
        kl_beta=0.1234567,
        best_epoch=2,
        run_id="e" * 32,
        git_commit="c" * 40,
        settings=EvalSettings(sizes=(5, 10), shots=(1, 2)),
        rounds=RoundSettings(),
        training=GrpoSettings(kl_beta=0.1234567, epochs=2),
        inputs=EvaluationInputs(
            **{name: f"{name} 1" for name in DIGESTS},
            seed=0,
            reward_mode="hard_plus_soft:hard=2",
            start="rce epoch 4",
            start_uri="models:/m-1",
            training_seed=3,
            grpo_run="g" * 32,
            gate="critical",
            gate_override="on_bad_data=warn: reward_mean",
        ),
        rl_data=RLDataSummary(source="runs:/r/rl_data.json", n_queries=60, n_positive_queries=30, mean_reward=0.5),
        resources=ResourceNames(dataset="mini", vlm="mini", encoder="mini"),
        epochs=(EpochMetrics(epoch=1, metrics={"kl": 0.1}), EpochMetrics(epoch=2, metrics={"kl": 0.2})),
        profile=PROFILES["mini"],
        accuracy=(AccuracyCell(policy="epoch 2", size=10, shots=1, accuracy=0.1 + 0.2, spread=0.0),),
        selection_accuracy={1: 0.25, 2: 1 / 3},
        checkpoints=("old.pt",),
        overlap=(
            PickOverlap(
                first="start",
                second="epoch 1",
                shots=1,
                ordered=1.0,
                unordered=1.0,
                reason=IdenticalPicks(rule="equal_weights"),
            ),
        ),
        best_single=BestSingle(questions=5, oracle=0.8, random=0.4, winnable=0.6),
        registration=Registration(name="m", alias="kl-0-1234567", model_id="m-2", checkpoint_digest="d" * 32),
    )


def test_an_evaluation_comes_back_from_its_file_as_it_was(evaluation, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(evaluation.model_dump_json())
    again = Evaluation.read(path)
    assert again == evaluation
    assert again.accuracy[0].accuracy == 0.1 + 0.2
    assert again.selection_accuracy[2] == 1 / 3
    assert again.settings.sizes == (5, 10)


def test_the_registration_is_filled_in_without_changing_the_rest(evaluation):
    registered = evaluation.with_registration(version="7", tags={"epoch": "2"})
    assert (registered.registration.version, registered.registration.tags) == ("7", {"epoch": "2"})
    assert registered.registration.checkpoint_digest == "d" * 32
    assert evaluation.registration.version == ""


def test_overrides_are_those_that_there_are(evaluation):
    assert evaluation.inputs.overrides == {"gate_override": "on_bad_data=warn: reward_mean"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.pop("best_epoch"), "best_epoch: Field required"),
        (lambda content: content["inputs"].pop("gate"), "inputs.gate: Field required"),
        (lambda content: content["inputs"].update(reward_mode="soft"), "inputs.reward_mode: .*'soft' is not one of hard_plus_"),
        (lambda content: content["inputs"].update(reward_mode="hard_only:hard=x"), "inputs.reward_mode: "),
        (lambda content: content.update(odd=1), "odd: Extra inputs are not permitted"),
        (lambda content: content["settings"].update(pool_size="many"), "settings.pool_size: Input should be a valid integer"),
    ],
)
def test_an_evaluation_of_another_version_is_one_line(evaluation, tmp_path, change, reason):
    path, content = tmp_path / "evaluation.json", json.loads(evaluation.model_dump_json())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"not an evaluation of this version \({reason}.*; run the evaluate step"):
        Evaluation.read(path)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"evaluation\.json: no such file"):
        Evaluation.read(tmp_path / "evaluation.json")
