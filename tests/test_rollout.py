import numpy as np
import pytest
import torch

from lever_mlflow.exceptions import ParameterError
from lever_mlflow.features import FeatureTable
from lever_mlflow.rl_data import load_rl_data, save_rl_data
from lever_mlflow.rollout import choose_queries, rollout
from lever_mlflow.selector import PointerSelector
from lever_mlflow.types import RolloutSettings

SETTINGS = RolloutSettings(pool_size=10)


@pytest.fixture
def features(samples):
    rng = np.random.default_rng(0)
    image, text = (rng.standard_normal((len(samples), 8)).astype(np.float32) for _ in range(2))
    return FeatureTable(image, text, image + text, np.concatenate([image, text], axis=1), "digest")


@pytest.fixture
def selector():
    torch.manual_seed(0)
    return PointerSelector(feature_dim=8, hidden_dim=8).eval()


def answer_by_first_demonstration(prompts):
    """Right when the first demonstration has an even index."""
    return [f" {p.query.answer}" if p.demonstrations[0].index % 2 == 0 else " no idea, sorry" for p in prompts]


def record(samples, features, selector, settings=SETTINGS, seed=0):
    queries = choose_queries(samples, 6, seed)
    return rollout(queries, samples, features, selector, answer_by_first_demonstration, settings, seed=seed)


def test_trials_are_scored_by_the_answer_to_their_own_prompt(samples, features, selector):
    for group in record(samples, features, selector):
        for trial in group.trials:
            right = group.pool[trial.pointer[0]] % 2 == 0
            assert (trial.correct, trial.accuracy) == ((1.0, 1.0) if right else (0.0, 0.0))
            assert trial.record["vqa_pred_answer"] == (samples[group.query_id].answer if right else "no idea")


def test_generators_and_no_pointer_twice(samples, features, selector):
    for group in record(samples, features, selector):
        pointers = [trial.pointer for trial in group.trials]
        assert len(set(pointers)) == len(pointers)
        assert all(len(set(pointer)) == 2 and max(pointer) < 10 for pointer in pointers)
        methods = [trial.gen_method for trial in group.trials]
        assert methods.count("beam") == 5
        assert methods.count("sample") <= 4
        assert methods.count("retrieval") <= 3
        assert methods.count("random") <= 2
    assert {"beam", "sample", "retrieval", "random"} == {
        trial.gen_method for group in record(samples, features, selector) for trial in group.trials
    }


def test_beam_trials_are_the_policys_best(samples, features, selector):
    group = record(samples, features, selector)[0]
    beam = [trial for trial in group.trials if trial.gen_method == "beam"]
    query = torch.from_numpy(features.fused_SD[[group.query_id]])
    pool = torch.from_numpy(features.fused_SD[list(group.pool)])[None]
    assert beam[0].pointer == tuple(selector.greedy(query, pool, 2)[0].tolist())
    scores = selector.logprobs(query, pool, torch.tensor([[trial.pointer for trial in beam]]))[0].tolist()
    assert [trial.record["beam_score"] for trial in beam] == pytest.approx(scores, abs=1e-5)
    assert scores == sorted(scores, reverse=True)


def test_retrieval_takes_the_most_similar_by_each_feature(samples, features, selector):
    group = record(samples, features, selector, RolloutSettings(pool_size=10, beam_width=1, samples_per_temperature=0))[0]
    pool = list(group.pool)
    expected = {
        tuple(np.argsort(-(table[pool] @ table[group.query_id]))[:2].tolist())
        for table in (features.fused_SD, features.image_SD, features.text_SD)
    }
    found = {trial.pointer for trial in group.trials if trial.gen_method in ("retrieval", "beam")}
    assert expected <= found


def test_rollout_repeats_and_survives_the_file(samples, features, selector, tmp_path):
    first, second = (record(samples, features, selector) for _ in range(2))
    assert first == second
    save_rl_data(tmp_path / "a.json", first, {"seed": 0})
    data = load_rl_data(tmp_path / "a.json", keep_records=True)
    assert [g.pool for g in data.groups] == [g.pool for g in first]
    assert [[t.pointer for t in g.trials] for g in data.groups] == [[t.pointer for t in g.trials] for g in first]
    assert data.groups[0].query["question"] == samples[data.groups[0].query_id].question
    assert record(samples, features, selector, seed=1) != first


def test_a_pool_must_be_larger_than_the_shots(samples, features, selector):
    with pytest.raises(ParameterError, match="pool_size=2 with 2 shots"):
        record(samples, features, selector, RolloutSettings(pool_size=2))
    with pytest.raises(ParameterError, match="n_queries=31, but the training split has 30"):
        choose_queries(samples, 31, 0)
