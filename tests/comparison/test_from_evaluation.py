import pytest
from helpers.evaluation_samples import DIGESTS

from lever_mlflow.comparison.from_evaluation import commands_of, run_of_evaluation
from lever_mlflow.evaluation.answering import BestSingle
from lever_mlflow.evaluation.records import AccuracyCell
from lever_mlflow.evaluation.result import (
    EpochMetrics,
    Evaluation,
    EvaluationInputs,
    Registration,
    ResourceNames,
    RLDataSummary,
)
from lever_mlflow.settings import EvalSettings, GrpoSettings, RoundSettings
from lever_mlflow.vlm.profiles import PROFILES


@pytest.fixture
def evaluation():
    return Evaluation(
        kl_beta=0.12,
        best_epoch=1,
        run_id="e1",
        git_commit="c1",
        settings=EvalSettings(sizes=(5, 10), shots=(1, 2)),
        rounds=RoundSettings(),
        training=GrpoSettings(kl_beta=0.12, epochs=1),
        inputs=EvaluationInputs(
            **{name: f"{name} 1" for name in DIGESTS},
            seed=0,
            reward_mode="hard_plus_soft",
            start="rce epoch 4",
            start_uri="models:/m-1",
            training_seed=3,
            grpo_run="g1",
            gate="critical",
            start_gate_override="reward_mean",
            checkpoints={"checkpoint 1 (old.pt)": "d9"},
        ),
        rl_data=RLDataSummary(source="a b.json", n_queries=60, n_positive_queries=30, mean_reward=0.5),
        resources=ResourceNames(dataset="mini", vlm="mini", encoder="mini"),
        epochs=(EpochMetrics(epoch=1, metrics={"train/kl": 0.1, "val/kl_exact": 0.3, "train/loss": 0.9}),),
        profile=PROFILES["mini"],
        accuracy=(
            AccuracyCell(policy="zero-shot", size=10, shots=0, accuracy=0.25, spread=0.0),
            AccuracyCell(policy="epoch 1", size=10, shots=1, accuracy=0.5, spread=0.0),
        ),
        selection_accuracy={1: 0.75},
        checkpoints=("old.pt",),
        overlap=(),
        best_single=BestSingle(questions=5, oracle=0.8, random=0.4, winnable=0.6),
        registration=Registration(name="m", alias="kl-0-12", model_id="m-2", checkpoint_digest="d2", version="4"),
    )


def test_an_evaluation_as_results_in_percent(evaluation):
    run = run_of_evaluation(evaluation, ["train", "test"])
    assert (run.kl_beta, run.best_epoch, run.selection_accuracy) == (0.12, 1, {1: 75.0})
    assert run.epochs[0].metrics == {"kl": 0.1, "val_kl_exact": 0.3, "train_loss": 0.9}
    assert run.epochs[0].accuracy == {10: {1: 50.0}}
    assert run.baselines == {"zero-shot": {10: {0: 25.0}}}
    assert run.rl_data == {
        "digest": "rl_data_digest 1", "source": "a b.json", "n_queries": 60, "n_positive_queries": 30, "mean_reward": 0.5,
    }  # fmt: skip
    assert dict(run.registered) == {"name": "m", "version": "4", "alias": "kl-0-12"}
    assert (run.best_digest, run.run_id, run.commands) == ("d2", "e1", ("train", "test"))
    assert run.best_single == evaluation.best_single


def test_everything_that_decides_a_run_is_compared_and_in_order(evaluation):
    config = run_of_evaluation(evaluation).config
    inputs = [name for name in config if "." not in name]
    assert inputs == [
        "dataset", "vlm", "encoder", "dataset_digest", "vlm_digest", "profile_digest", "scoring", "encoder_digest", "seed",
        "reward_mode", "start_digest", "start",
        "gate", "start_gate_override", "training_seed",
    ]  # fmt: skip
    assert (config["training_seed"], config["start_gate_override"]) == (3, "reward_mean")
    assert (config["training.kl_beta"], config["training.epochs"]) == (0.12, 1)
    assert [name for name in config if name.startswith("evaluation.")] == [
        "evaluation.sizes", "evaluation.shots", "evaluation.n_selection", "evaluation.pool_size", "evaluation.pool_sampler",
        "evaluation.order",
    ]  # fmt: skip
    assert config["evaluation.sizes"] == "5,10"


def test_commands_name_what_was_used(evaluation):
    train, test = commands_of(evaluation)
    assert train.startswith(
        "mlflow run . --env-manager local -e grpo -P 'rl_data=a b.json' "
        "-P rounds=3 -P kl_reference=round -P round_patience=2 -P kl_beta=0.12 "
    )
    assert train.endswith(" -P init=models:/m-1 -P seed=3 -P reward_mode=hard_plus_soft")
    assert test.startswith(
        "mlflow run . --env-manager local -e evaluate -P kl_beta=0.12 -P grpo_run=g1 -P seed=0 -P sizes=5,10 -P shots=1,2 "
    )
    assert test.endswith(" -P checkpoints=old.pt")


def test_weights_of_the_reward_are_compared_and_named(evaluation):
    inputs = evaluation.inputs.model_copy(update={"reward_mode": "separated:hard=2,soft=0.5"})
    weighted = evaluation.model_copy(update={"inputs": inputs})
    assert run_of_evaluation(weighted).config["reward_mode"] == "separated:hard=2,soft=0.5"
    assert commands_of(weighted)[0].endswith(" -P reward_mode=separated -P reward_weights=hard=2,soft=0.5")
