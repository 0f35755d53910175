import json
import re
from dataclasses import replace

import numpy as np
import pytest
from helpers import evaluation_samples
from helpers.evaluation_samples import NAME, evaluation_of, records_of

from lever_mlflow.evaluation.policies import BASELINES
from lever_mlflow.evaluation.records import EvaluationRecords
from lever_mlflow.evaluation.result import ResourceNames
from lever_mlflow.registry.model_card import describe_version, promoted, renewed
from lever_mlflow.registry.version_tags import accuracy_text, gain_text, is_measured, overrides, shots_of
from lever_mlflow.settings import GrpoSettings


@pytest.fixture
def described():
    """Tags and card of a version that was trained on data which the gate would have stopped."""
    accuracies = np.array([[1.0, 0.0, 0.6, 0.0], [1.0, 0.0, 0.0, 0.0]])
    policies = {
        "zero-shot": np.ones((1, 4)) * 0.3,
        "random": np.zeros((3, 2, 4)),
        "epoch 2": np.ones((2, 4)),
        "epoch 1": accuracies,
        "start": accuracies / 2,
        "checkpoint 1 (old.pt)": np.ones((2, 4)),
        "fused-similarity of all": accuracies,
    }
    selection = records_of({"epoch 1": np.ones((2, 9))}, part="selection")
    records = EvaluationRecords.joined([records_of(policies), selection])
    return describe_version(evaluation_of(4, gate_override="a is 0"), records)


def test_tags_hold_accuracies_in_percent(described):
    tags, _ = described
    low, high = json.loads(tags["acc_n4_shots1_interval"])
    assert 0.0 <= low < 40.0 < high <= 100.0
    assert (tags["acc_n4_shots1"], tags["acc_n4_shots2"], tags["acc_n4_mean"]) == ("40.00", "25.00", "32.50")
    assert tags["baseline_start_n4_shots1"] == "20.00"
    assert tags["baseline_zero_shot_n4_shots0"] == "30.00"
    assert tags["baseline_random_n4_mean"] == "0.00"
    assert tags["baseline_fused_similarity_of_all_n4_shots2"] == "25.00"
    assert not [name for name in tags if "epoch_" in name or "checkpoint_" in name]
    measured = {name for name in tags if name.startswith(("acc_", "baseline_"))}
    assert {name for name in tags if is_measured(name)} == {*measured, "strongest_baseline", "gain_over_strongest"}


def test_tags_say_what_a_version_is_and_where_it_comes_from(described):
    tags, _ = described
    names = ("epoch", "evaluation_run", "git_commit", "questions", "gate", "gate_override", "start", "start_uri", "grpo_run")
    assert [tags[name] for name in names] == ["1", "run", "c0ffee", "4", "pass", "a is 0", "rce epoch 4", "models:/m-1", "g1"]
    assert tags["rl_data_digest"] == "digest of rl_data"
    assert "start_gate_override" not in tags


def test_tags_are_read_again(described):
    tags, _ = described
    assert shots_of(tags) == {1, 2}
    assert accuracy_text(tags, 2) == f"25.00 {tags['acc_n4_shots2_interval']}"
    assert accuracy_text(tags, 3) is None
    assert overrides(tags) == {"gate_override": "a is 0"}


def test_the_card_shows_the_table_and_the_origin(described):
    _, card = described
    assert "\n| | 0 | 1 | 2 | mean |\n|---|---:|---:|---:|---:|\n| epoch 1 |" in card
    assert re.search(r"^\| epoch 1 \|  \| 40\.0 \[\d.*\] \| 25\.0 \[.*\] \| 32\.5 \[.*\] \|$", card, re.MULTILINE)
    assert re.search(r"^\| zero-shot \| 30\.0 \[30\.0, 30\.0\] \|  \|  \| 30\.0 ", card, re.MULTILINE)
    rows = re.findall(r"^\| ([a-z][^|]*) \|", card, re.MULTILINE)
    assert rows == ["epoch 1", "start", "zero-shot", "random", "fused-similarity of all"]
    assert "mean over shots by epoch: 1: 50.00, 2: 25.00" in card
    assert "overrides: a is 0" in card
    assert f'mlflow.pyfunc.load_model("models:/{NAME}@kl-0-12")' in card


def test_the_strongest_baseline_of_each_shot_count_and_the_gain_over_it():
    """By hand, in percent at 1 shot, at 2 and in the mean.

    The epoch reaches 40, 25, 32.5; zero-shot 30; random 7.5, 0, 3.75; text-similarity 35, 27.5, 31.25. Less the strongest, the
    four questions give 20, 0, 0, 0 at 1 shot; 70, -30, -30, -30 at 2; 20, -15, 0, 0 in the mean. Of 256 equally likely
    resamples, 1 has the first question four times and 12 three times, so the upper end is where it comes three times: 60 / 4,
    (210 - 30) / 4 and 60 / 4; in 81 it does not come at all, which is the lower end. In the mean, 9 have the second question
    three times or four, and not the first: the lower end is -45 / 4.
    """
    draws = np.array([[[0.6, 0.0, 0.0, 0.0], [0.0] * 4], [[0.0, 0.6, 0.0, 0.0], [0.0] * 4]])
    policies = {
        "epoch 1": np.array([[1.0, 0.0, 0.6, 0.0], [1.0, 0.0, 0.0, 0.0]]),
        "start": np.ones((2, 4)),
        "text-similarity": np.array([[0.8, 0.0, 0.6, 0.0], [0.8, 0.3, 0.0, 0.0]]),
        "random": draws,
        "zero-shot": np.array([[0.3, 0.3, 0.3, 0.3]]),
    }
    tags, card = describe_version(evaluation_of(4), records_of(policies))
    assert "| *strongest baseline* |  | text-similarity | zero-shot | text-similarity |\n" in card
    gains = ("+5.00 [+0.00, +15.00]", "-5.00 [-30.00, +45.00]", mean := "+1.25 [-11.25, +15.00]")
    assert f"| *gain over it* |  | {' | '.join(gains)} |\n" in card
    assert "the paired gain of epoch 1 over it, in points" in card
    assert (tags["strongest_baseline"], tags["gain_over_strongest"]) == ("text-similarity", mean)
    assert gain_text(tags) == f"{mean} over text-similarity"


def test_without_a_baseline_there_is_no_gain():
    tags, card = describe_version(evaluation_of(4), records_of({"epoch 1": np.ones((2, 4)), "start": np.zeros((2, 4))}))
    assert not {"strongest_baseline", "gain_over_strongest"} & tags.keys()
    assert gain_text(tags) is None
    assert "strongest" not in card


def test_the_card_of_an_experiment_on_real_data_is_not_cut(monkeypatch):
    monkeypatch.setattr(evaluation_samples, "SHOTS", (1, 2, 3, 4))
    rng = np.random.default_rng(0)
    accuracies = {name: rng.integers(0, 2, (4, 100)) for name in ("epoch 1", "start", *BASELINES)}
    digests = dict.fromkeys(evaluation_samples.DIGESTS, "0123456789abcdef")
    evaluation = evaluation_of(
        100,
        run_id="a" * 32,
        settings={"shots": (1, 2, 3, 4)},
        resources=ResourceNames(
            dataset="/data/okvqa/folder", vlm="Qwen/Qwen2.5-VL-3B-Instruct", encoder="openai/clip-vit-base-patch32"
        ),
        grpo_run="b" * 32,
        **digests,
    )
    _, card = describe_version(evaluation, records_of(accuracies | {"zero-shot": accuracies["zero-shot"][:1]}))
    assert "(cut: " not in card
    assert "| *gain over it* |" in card
    assert card.rstrip().endswith("its signature tells what it takes.")


def test_a_description_is_never_longer_than_the_database_takes():
    records = records_of({"epoch 1": np.ones((2, 4)), "start": np.ones((2, 4))})
    long = "y" * 1500
    evaluation = evaluation_of(
        4,
        training=replace(GrpoSettings(), scale_rewards="x" * 2000),
        resources=ResourceNames(dataset=long, vlm=long, encoder=long),
    )
    _, card = describe_version(evaluation, records)
    assert len(card) <= 3500
    assert card.endswith("(cut: the rest is in evaluation.json and promotion.json)\n")
    once = promoted("line\n" * 1000, "line\n" * 1000)
    assert 4900 < len(once) <= 5000
    again = promoted(once, "Champion since today.")
    assert again.count("## Promotion") == 1
    assert again.endswith("## Promotion\n\nChampion since today.")
    assert renewed("new card", again) == "new card\n\n## Promotion\n\nChampion since today."
    assert renewed("new card", "old card") == "new card"
