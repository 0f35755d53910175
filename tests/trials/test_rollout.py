from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from lever_mlflow.data.candidate_pools import candidate_pools
from lever_mlflow.data.features import FeatureTable
from lever_mlflow.exceptions import ParameterError
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import RolloutSettings, preset_of
from lever_mlflow.trials import generators
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rl_data import save_rl_data
from lever_mlflow.trials.rollout import choose_queries, is_mined, positive_query_rate, rollout
from lever_mlflow.vlm.answer_cache import AnswerCache, cached_answers

SETTINGS = preset_of(RolloutSettings, "predecessor", pool_size=10)  # two shots, from random pools
OFF = replace(SETTINGS, beam_width=0, samples_per_temperature=0, retrieval_per_feature=0, random_pointers=0)
MINING = replace(OFF, random_pointers=1, mine_positives=8)


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
    """Answers right when the first demonstration has an even index."""
    return [f" {p.query.answer}" if p.demonstrations[0].index % 2 == 0 else " no idea, sorry" for p in prompts]


def answer_by_both_demonstrations(prompts):
    """Answers right when both demonstrations have a low index, which is rare."""
    return [f" {p.query.answer}" if max(d.index for d in p.demonstrations) < 9 else " no idea" for p in prompts]


def record(samples, features, selector, settings=SETTINGS, seed=0, answer=answer_by_first_demonstration, n_queries=6):
    queries = choose_queries(samples, n_queries, seed)
    return rollout(queries, samples, features, selector, answer, settings, seed=seed)


def tried(groups):
    return [[(trial.gen_method, trial.pointer) for trial in group.trials] for group in groups]


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
    group = record(samples, features, selector, replace(OFF, retrieval_per_feature=1))[0]
    pool = list(group.pool)
    expected = {
        tuple(np.argsort(-(table[pool] @ table[group.query_id]))[:2].tolist())
        for table in (features.fused_SD, features.image_SD, features.text_SD)
    }
    assert {trial.pointer for trial in group.trials} == expected


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
        record(samples, features, selector, replace(SETTINGS, pool_size=2))
    with pytest.raises(ParameterError, match="n_queries=31, but the training split has 30"):
        choose_queries(samples, 31, 0)


@pytest.mark.parametrize("state_update", [False, True])
def test_many_queries_at_once_are_proposed_the_same_as_one_by_one(samples, features, monkeypatch, state_update):
    torch.manual_seed(1)
    selector = PointerSelector(feature_dim=8, hidden_dim=8, state_update=state_update).eval()
    if state_update:
        torch.nn.init.normal_(selector.state_proj.weight)
    settings = replace(SETTINGS, mine_positives=3)
    together = rollout(samples, samples, features, selector, answer_by_both_demonstrations, settings, seed=0)
    alone = [
        rollout([query], samples, features, selector, answer_by_both_demonstrations, settings, seed=0)[0] for query in samples
    ]
    monkeypatch.setattr(generators, "BATCH_SIZE", 7)
    in_batches = rollout(samples[::-1], samples, features, selector, answer_by_both_demonstrations, settings, seed=0)[::-1]
    assert together == alone == in_batches
    for one, other in zip(together, alone, strict=True):
        for a, b in zip(one.trials, other.trials, strict=True):
            assert a.record == pytest.approx(b.record, abs=1e-5)


@pytest.mark.parametrize(
    ("generator", "method", "few", "many"),
    [
        ("beam_width", "beam", (1, 1), (7, 7)),
        ("samples_per_temperature", "sample", (1, 2), (20, 40)),
        ("retrieval_per_feature", "retrieval", (1, 3), (5, 15)),
        ("random_pointers", "random", (1, 1), (9, 9)),
    ],
)
def test_each_generator_alone_gives_as_many_pointers_as_asked_for(samples, features, selector, generator, method, few, many):
    for count, most in (few, many):
        for group in record(samples, features, selector, replace(OFF, **{generator: count})):
            assert {trial.gen_method for trial in group.trials} == {method}
            assert len(group.trials) <= most
            assert len(group.trials) == most or method != "beam"
    without = record(samples, features, selector, replace(SETTINGS, **{generator: 0}))
    assert {"beam", "sample", "retrieval", "random"} - {m for group in tried(without) for m, _ in group} == {method}


def test_temperatures_are_recorded_and_make_a_difference(samples, features, selector):
    settings = replace(OFF, temperatures=(0.05, 50.0), samples_per_temperature=30)
    counts = {0.05: 0, 50.0: 0}
    for group in record(samples, features, selector, settings):
        for trial in group.trials:
            counts[trial.record["temperature"]] += 1
    assert counts[0.05] < counts[50.0] / 3  # cold: nearly always the same pointer, which is kept once


def test_further_retrieval_goes_on_where_the_first_ended(samples, features, selector):
    for group in record(samples, features, selector, replace(OFF, retrieval_per_feature=5)):
        pool, pointers = list(group.pool), [trial.pointer for trial in group.trials]
        order = np.argsort(-(features.fused_SD[pool] @ features.fused_SD[group.query_id])).tolist()
        assert pointers[:5] == [tuple(order[i : i + 2]) for i in range(0, 10, 2)]


@pytest.mark.parametrize("sampler", ["random", "image-similarity", "text-similarity", "mixed"])
def test_pools_are_those_of_the_sampler(samples, features, selector, sampler):
    groups = record(samples, features, selector, replace(SETTINGS, pool_sampler=sampler))
    queries = choose_queries(samples, 6, 0)
    expected = candidate_pools(queries, samples, sampler, 10, 0, features, features)
    assert [list(group.pool) for group in groups] == expected.tolist()


def test_what_leaves_nothing_to_try_or_does_not_fit_is_refused(samples, features, selector):
    with pytest.raises(ParameterError, match=r"beam_width, .*, random_pointers: all 0, which leaves nothing to try"):
        record(samples, features, selector, OFF)
    with pytest.raises(ParameterError, match="retrieval_per_feature=6 with 2 shots needs 12 candidates, but pool_size=10"):
        record(samples, features, selector, replace(SETTINGS, retrieval_per_feature=6))


def test_mining_goes_on_by_turns_until_the_first_positive_trial(samples, features, selector):
    before = record(samples, features, selector, replace(MINING, mine_positives=0), 0, answer_by_both_demonstrations, 30)
    after = record(samples, features, selector, MINING, 0, answer_by_both_demonstrations, 30)
    assert not any(is_mined(trial) for group in before for trial in group.trials)
    lengths = set()
    for old, new in zip(before, after, strict=True):
        mined = new.trials[len(old.trials) :]
        assert new.trials[: len(old.trials)] == old.trials
        assert [is_mined(trial) for trial in new.trials] == [False] * len(old.trials) + [True] * len(mined)
        if any(trial.correct for trial in old.trials):
            assert not mined
            continue
        assert not any(trial.correct for trial in mined[:-1])
        assert len(mined) == 8 or mined[-1].correct == 1.0
        assert len({trial.pointer for trial in new.trials}) == len(new.trials)
        assert {trial.record["temperature"] for trial in mined if trial.gen_method == "sample"} <= {2.0}
        lengths.add(len(mined))
    assert len(lengths) > 3  # some found soon, some late, some never
    rates = [positive_query_rate(before), positive_query_rate(after, mined=False), positive_query_rate(after)]
    assert rates == [sum(any(t.correct for t in g.trials) for g in groups) / 30 for groups in (before, before, after)]
    assert rates[0] == rates[1] < rates[2] < 1.0


def test_mining_takes_turns_between_policy_and_chance(samples, features, selector):
    wrong = record(samples, features, selector, MINING, answer=lambda prompts: ["no idea"] * len(prompts))
    for group in wrong:
        methods = [trial.gen_method for trial in group.trials]
        assert len(methods) == 9
        assert methods[1] == "sample"
        assert set(methods[1:]) == {"sample", "random"}
    longer = record(samples, features, selector, replace(MINING, mine_positives=500), answer=lambda p: ["no idea"] * len(p))
    assert all(60 < len(group.trials) <= 90 for group in longer)  # of 10 * 9 pointers


def test_mining_asks_each_round_at_once_and_never_twice(samples, features, selector):
    prompts_of_rounds = []

    def answer(prompts):
        prompts_of_rounds.append([p.query.index for p in prompts])
        return answer_by_both_demonstrations(prompts)

    groups = record(samples, features, selector, MINING, 0, answer, 30)
    assert len(prompts_of_rounds) == 1 + 8
    assert all(len(set(prompts)) == len(prompts) for prompts in prompts_of_rounds[1:])
    assert all(set(later) <= set(sooner) for sooner, later in pairwise(prompts_of_rounds))
    assert sum(map(len, prompts_of_rounds)) == sum(len(group.trials) for group in groups)


def test_scores_are_those_of_each_trials_own_prompt(samples, features, selector):
    def score(prompts):
        return [0.5 + 0.001 * p.query.index + 0.01 * sum(d.index for d in p.demonstrations) for p in prompts]

    settings = replace(SETTINGS, gt_prob=True, mine_positives=2)
    groups = rollout(samples[:6], samples, features, selector, answer_by_both_demonstrations, settings, seed=0, score=score)
    assert any(is_mined(trial) for group in groups for trial in group.trials)
    for group in groups:
        for trial in group.trials:
            bonus = 0.01 * sum(group.pool[position] for position in trial.pointer)
            assert trial.gt_prob == pytest.approx(0.5 + 0.001 * group.query_id + bonus)
            assert trial.record["vqa_rel_score"] == pytest.approx(bonus)
    with pytest.raises(ValueError, match="call rollout with score=FUNCTION"):
        record(samples, features, selector, settings)
    plain = record(samples, features, selector)
    assert {trial.gt_prob for group in plain for trial in group.trials} == {None}


def test_a_killed_rollout_asks_only_for_what_is_missing(samples, features, selector, tmp_path):
    generated, allowed = [], 40

    def generate(prompts):
        for position, prompt in enumerate(prompts):
            if len(generated) == allowed:
                raise KeyboardInterrupt
            generated.append(prompt)
            yield [(position, answer_by_both_demonstrations([prompt])[0])]

    def answer(prompts):
        with AnswerCache(tmp_path / "answers.sqlite") as cache:
            return cached_answers(prompts, repr, generate, cache).texts

    with pytest.raises(KeyboardInterrupt):  # in the middle of mining
        record(samples, features, selector, MINING, 0, answer, 30)
    allowed = 10_000
    groups = record(samples, features, selector, MINING, 0, answer, 30)
    assert groups == record(samples, features, selector, MINING, 0, answer_by_both_demonstrations, 30)
    assert 40 < len(generated) == sum(len(group.trials) for group in groups)


def test_mined_trials_say_so_in_the_file(samples, features, selector, tmp_path):
    groups = record(samples, features, selector, MINING, 0, answer_by_both_demonstrations, 30)
    save_rl_data(tmp_path / "a.json", groups, {})
    read = load_rl_data(tmp_path / "a.json", keep_records=True).groups
    assert [[is_mined(t) for t in group.trials] for group in read] == [[is_mined(t) for t in group.trials] for group in groups]
    assert positive_query_rate(read, mined=False) == positive_query_rate(groups, mined=False)
