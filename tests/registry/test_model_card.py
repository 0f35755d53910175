from dataclasses import replace

import numpy as np
import pytest
from helpers import evaluation_samples
from helpers.evaluation_samples import NAME, evaluation_of, records_of

from lever_mlflow.evaluation.policies import BASELINES
from lever_mlflow.evaluation.records import EvaluationRecords
from lever_mlflow.evaluation.result import ResourceNames
from lever_mlflow.registry.evidence import Condition
from lever_mlflow.registry.model_card import (
    describe_promotion,
    describe_registered_model,
    describe_version,
    promoted,
    renewed,
)
from lever_mlflow.registry.version_tags import measured, overrides
from lever_mlflow.settings import GrpoSettings


@pytest.fixture
def records():
    """Records of four questions at 1 shot and at 2, other epochs, a further checkpoint and selection questions among them.

    By hand, in percent at 1 shot, at 2 and in the mean: the epoch reaches 40, 25, 32.5; the start, half of it, 20, 12.5, 16.25;
    zero-shot 30; random, of two draws, 15, 0, 7.5; text-similarity 35, 27.5, 31.25.
    """
    accuracies = np.array([[1.0, 0.0, 0.6, 0.0], [1.0, 0.0, 0.0, 0.0]])
    draws = np.array([[[0.6, 0.0, 0.0, 0.0], [0.0] * 4], [[0.0, 0.6, 0.0, 0.0], [0.0] * 4]])
    policies = {
        "epoch 2": np.ones((2, 4)),
        "epoch 1": accuracies,
        "start": accuracies / 2,
        "checkpoint 1 (old.pt)": np.ones((2, 4)),
        "text-similarity": np.array([[0.8, 0.0, 0.6, 0.0], [0.8, 0.3, 0.0, 0.0]]),
        "random": draws,
        "zero-shot": np.array([[0.3, 0.3, 0.3, 0.3]]),
    }
    selection = records_of({"epoch 1": np.ones((2, 9))}, part="selection")
    return EvaluationRecords.joined([records_of(policies), selection])


MEANS = """
**Bold**: the strongest baseline of the column.

| policy | 0 shots&emsp; | 1 shot&emsp; | 2 shots&emsp; | mean&emsp; | interval of the mean |
|---|---:|---:|---:|---:|---:|
| epoch 1 | | 40.0 | 25.0 | 32.5 | 0.0 to 75.0 |
| start | | 20.0 | 12.5 | 16.3 | 0.0 to 37.5 |
| text-similarity | | **35.0** | 27.5 | **31.3** | 7.5 to 63.8 |
| random | | 15.0 | 0.0 | 7.5 | 0.0 to 15.0 |
| zero-shot | 30.0 | 30.0 | **30.0** | 30.0 | 30.0 to 30.0 |
"""
GAINS = """
| shots&emsp;&emsp; | interval of epoch 1&emsp; | gain&emsp;&emsp; | interval of the gain&emsp; | over |
|---|---:|---:|---:|---|
| 1 shot | 0.0 to 80.0 | +5.00 | 0.00 to +15.00 | text-similarity |
| 2 shots | 0.0 to 75.0 | -5.00 | -30.00 to +45.00 | zero-shot |
| mean | 0.0 to 75.0 | +1.25 | -11.25 to +15.00 | text-similarity |

The strongest baseline is chosen on these questions, which favours it.

## Data and training
"""


def test_the_tables_of_the_card(records):
    """By hand: of the 256 equally likely resamples of four questions, an interval leaves out 6.4 at each end.

    In the mean over shots, the epoch's questions have 100, 0, 30, 0. Its 5 best resamples have the first question four times,
    or three times and the third once; in the next 8 the first comes three times and an empty one once: 300 / 4. 16 have only
    the empty ones. The start has half of it. At 1 shot (100, 0, 60, 0) the 5 best are the same ones, and then the first comes
    twice and the third twice: 320 / 4. At 2 shots (100, 0, 0, 0) only one resample has more than 300 / 4.
    Text-similarity has 80, 15, 30, 0: the 5 best are the same again and then 255 / 4 comes; the 5 worst have 15 or less in sum,
    and then 30 / 4 comes. Random has 15, 15, 0, 0, of which 16 resamples have only the first two, and 16 only the others.

    Less the strongest baseline, the questions give 20, 0, 0, 0 at 1 shot; 70, -30, -30, -30 at 2; 20, -15, 0, 0 in the mean. 1
    resample has the first question four times and 12 three times, so the upper end is where it comes three times: 60 / 4,
    (210 - 30) / 4 and 60 / 4; in 81 it does not come at all, which is the lower end. In the mean, 9 have the second question
    three times or four, and not the first: the lower end is -45 / 4.
    """
    _, card = describe_version(evaluation_of(4), records)
    assert MEANS in card
    assert GAINS in card
    assert card.startswith(
        "Beta 0.12, epoch 1: VQA accuracy 32.5 % [0.0, 75.0] on 4 questions, mean over shots; "
        "+1.25 [-11.25, +15.00] points over text-similarity, the strongest baseline.\n\nA pointer selector: "
    )


def test_a_version_has_few_tags_that_say_what_it_is(records):
    tags, _ = describe_version(evaluation_of(4, gate_override="a is 0"), records)
    assert tags == {
        "accuracy": "32.50 [0.00, 75.00] on 4 questions",
        "gain": "+1.25 [-11.25, +15.00] over text-similarity",
        "epoch": "1",
        "gate": "pass",
        "gate_override": "a is 0",
        "evaluation_run": "run",
        "evaluation_digest": records.digest,
    }
    assert overrides(tags) == {"gate_override": "a is 0"}
    assert measured(tags) == {"accuracy", "gain"}


def test_the_card_states_the_origin_with_short_digests(records):
    digests = {"dataset_digest": "0123456789abcdef", "rl_data_digest": "fedcba9876543210"}
    _, card = describe_version(evaluation_of(4, gate_override="a is 0", **digests), records)
    assert "- data set mini (01234567), VLM mini (digest o), encoder mini (digest o), prompt digest o\n" in card
    assert "- RL data fedcba98; data gate: pass; overrides: a is 0\n" in card
    assert "- GRPO from rce epoch 4 (digest o) in run g1; weights weights\n" in card
    assert "mean over shots by epoch: 1: 50.00, 2: 25.00" in card
    assert f'mlflow.pyfunc.load_model("models:/{NAME}@kl-0-12")' in card


def test_without_a_baseline_there_is_no_gain():
    tags, card = describe_version(evaluation_of(4), records_of({"epoch 1": np.ones((2, 4)), "start": np.zeros((2, 4))}))
    assert (tags["accuracy"], "gain" in tags) == ("100.00 [100.00, 100.00] on 4 questions", False)
    assert "\n| epoch 1 | | 100.0 | 100.0 | 100.0 | 100.0 to 100.0 |\n" in card
    assert "\n| start | | 0.0 | 0.0 | 0.0 | 0.0 to 0.0 |\n\n## Data" in card
    assert "strongest" not in card


def test_the_registered_model_says_how_it_is_used():
    text = describe_registered_model(NAME, ResourceNames(dataset="mini", vlm="Qwen/some", encoder="mini"))
    assert text.startswith("Selectors of demonstrations for data set mini and VLM Qwen/some.\n")
    assert "- `previous-champion`: the champion before it, to which a rollback returns\n" in text
    assert f'`mlflow models serve -m "models:/{NAME}@champion" --env-manager local -p 5001`' in text
    assert "-e promote -P kl_beta=0.12`" in text
    assert len(text) < 2500


def test_the_description_of_a_promotion():
    conditions = [Condition("gate", True, "data gate: pass"), Condition("random", False, "over random demonstrations: no")]
    assert describe_promotion("Not promoted.", "It is not.", conditions) == (
        "**Not promoted.** It is not.\n\n- met: data gate: pass\n- **not met**: over random demonstrations: no"
    )
    assert describe_promotion("Nothing to do.", "It is.", ()) == "**Nothing to do.** It is."


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
    assert "| 4 shots |" in card
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


def test_nothing_in_a_card_is_markup():
    card = describe_version(evaluation_of(8, start="[x](http://e) <b> | *y*\n# z"), records_of({"epoch 1": np.ones((2, 8))}))[1]
    assert r"GRPO from [x]\(http://e) &lt;b> \| \*y\* # z (" in card
