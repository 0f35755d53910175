"""The search in the whole training set for demonstrations that make a query positive."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from lever_mlflow.data.features import FeatureTable
from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import RolloutSettings
from lever_mlflow.trials.global_search import right_answers
from lever_mlflow.trials.mining import is_mined
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rl_data import save_rl_data
from lever_mlflow.trials.rollout import most_prompts, positive_query_rate, rollout

SETTINGS = RolloutSettings(
    pool_size=6, beam_width=0, samples_per_temperature=0, retrieval_per_feature=0, random_pointers=2, search_positives=5
)


@pytest.fixture
def items(samples):
    """30 items on 15 images, of which query 0 and some others have colours as answers."""
    answers = {
        0: ("red",) * 6 + ("scarlet",) * 3 + ("pink",),
        1: ("red",) * 10,  # shows the image of query 0
        10: ("pink",) * 10,  # which only one annotator of query 0 says
        20: ("Scarlet!",) * 10,
        25: ("a red",) * 10,
    }
    return [replace(sample, answers=answers.get(sample.index, sample.answers)) for sample in samples]


@pytest.fixture
def features(items):
    """Features on an arc: the nearest to item 0 are the items 1, 2, 3 and so on."""
    angles = 0.05 * np.arange(len(items))
    arc_SD = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return FeatureTable(arc_SD, arc_SD, arc_SD, np.concatenate([arc_SD, arc_SD], axis=1), "digest")


class Vlm:
    """Answers right when all demonstrations are among the helpful items, and keeps what it was asked."""

    def __init__(self, *helpful):
        self.helpful, self.rounds = set(helpful), []

    def __call__(self, prompts):
        self.rounds.append([(p.query.index, tuple(d.index for d in p.demonstrations)) for p in prompts])
        return [f" {p.query.answer}" if {d.index for d in p.demonstrations} <= self.helpful else " no idea" for p in prompts]

    def searched(self, query):
        """The demonstrations that were tried for a query after the first round."""
        return [demonstrations for prompts in self.rounds[1:] for index, demonstrations in prompts if index == query]


def record(items, features, vlm, queries=(0,), seed=0, **changes):
    torch.manual_seed(0)
    selector = PointerSelector(feature_dim=2, hidden_dim=8).eval()
    chosen = [items[query] for query in queries]
    return rollout(chosen, items, features, selector, vlm, replace(SETTINGS, **changes), seed=seed)


def test_right_answers_are_those_that_would_count_as_correct(items):
    # leave-one-out: scarlet has 3 of 10, which is (3 * 2/3 + 7 * 1) / 10 = 0.9; pink has 1 of 10, which is 9 * 1/3 / 10 = 0.3
    assert right_answers(items[0]) == {"red", "scarlet"}
    assert right_answers(replace(items[0], answers=(" ",) * 10)) == set()  # an empty answer is never right


def test_items_with_a_right_answer_come_first_then_the_nearest(items, features):
    vlm = Vlm()
    (group,) = record(items, features, vlm)
    assert group.pool == (2, 3, 4, 5, 6, 7)
    tried = {group.pool[trial.pointer[0]] for trial in group.trials}
    untried = [index for index in range(2, 30) if index not in tried]  # 1 shows the image of the query
    assert vlm.searched(0) == [(20,), (25,), *((index,) for index in untried[:3])]
    assert [len(prompts) for prompts in vlm.rounds] == [2, 1, 1, 1, 1, 1]
    assert len(group.trials) == 2  # what was tried in vain is not recorded


def test_a_found_demonstration_takes_the_last_place_that_nobody_points_to(items, features):
    vlm = Vlm(25)
    (group,) = record(items, features, vlm)
    assert vlm.searched(0) == [(20,), (25,)]
    *before, last = group.trials
    used = {trial.pointer[0] for trial in before}
    place = max(set(range(6)) - used)
    assert last.pointer == (place,)
    assert list(group.pool) == [25 if position == place else 2 + position for position in range(6)]
    assert (last.gen_method, last.correct, last.accuracy) == ("global_search", 1.0, 1.0)
    assert last.record == {
        "gen_method": "global_search",
        "mined": True,
        "shows_right_answer": True,
        "vqa_raw_generation": " red",
        "vqa_pred_answer": "red",
    }
    assert before == list(record(items, features, Vlm(), search_positives=0)[0].trials)


def test_an_item_of_the_pool_keeps_its_place(items, features):
    (plain,) = record(items, features, Vlm(), search_positives=0)
    nearest = min(set(plain.pool) - {plain.pool[trial.pointer[0]] for trial in plain.trials})
    (group,) = record(items, features, Vlm(nearest))
    assert group.pool == plain.pool
    assert group.trials[-1].pointer == (plain.pool.index(nearest),)
    assert group.trials[-1].record["shows_right_answer"] is False


def test_pointers_of_two_take_the_candidates_in_pairs(items, features):
    vlm = Vlm(20, 25)
    (group,) = record(items, features, vlm, shots=2, random_pointers=1, pool_size=8)
    assert vlm.searched(0) == [(20, 25)]
    free = sorted(set(range(8)) - set(group.trials[0].pointer))
    assert group.trials[1].pointer == (free[-1], free[-2])
    assert [group.pool[position] for position in group.trials[1].pointer] == [20, 25]
    assert sorted(set(group.pool) - {20, 25}) == sorted({*range(2, 10)} - {2 + free[-1], 2 + free[-2]})
    vlm = Vlm()
    record(items, features, vlm, shots=2, random_pointers=1, pool_size=8, search_positives=3)
    assert vlm.searched(0) == [(20, 25), (2, 3), (4, 5)]


def test_no_demonstration_of_a_pointer_takes_the_place_of_another(items, features):
    items[25] = replace(items[25], answers=("blue",) * 10)
    n_searched = 0
    for seed in range(12):  # with some of them, item 2 has the only place of the pool that is free
        vlm = Vlm(2, 20)
        (group,) = record(items, features, vlm, seed=seed, shots=2, random_pointers=1, pool_size=3)
        assert len(set(group.pool)) == 3
        for trial in group.trials:
            assert len(set(trial.pointer)) == 2
        if group.trials[-1].gen_method == "global_search":
            assert [group.pool[position] for position in group.trials[-1].pointer] == [20, 2]
            n_searched += 1
    assert 0 < n_searched < 12


def test_pointers_that_were_tried_do_not_count(items, features):
    items[20], items[25] = (replace(items[i], answers=("blue",) * 10) for i in (20, 25))
    vlm = Vlm()
    record(items, features, vlm, retrieval_per_feature=1, random_pointers=0, search_positives=2)
    assert vlm.rounds == [[(0, (2,))], [(0, (3,))], [(0, (4,))]]


def test_a_pool_in_which_every_place_is_taken_stays_as_it_is(items, features):
    vlm = Vlm(20, 25)
    (group,) = record(items, features, vlm, pool_size=2, random_pointers=50)
    assert {trial.pointer for trial in group.trials} == {(0,), (1,)}
    assert (group.pool, vlm.searched(0)) == ((2, 3), [])


def test_the_search_ends_with_the_training_set(items, features):
    vlm = Vlm()
    record(items, features, vlm, search_positives=500)
    searched = vlm.searched(0)
    assert len(searched) == len(set(searched)) == 28 - 2  # all but the two items on the query's image and the two tried before


def test_only_queries_without_a_positive_trial_are_searched_and_all_at_once(items, features):
    helpful = {4, 9, 14, 20, 25}
    vlm = Vlm(*helpful)
    queries = list(range(0, 30, 2))
    groups = record(items, features, vlm, queries)
    before = record(items, features, Vlm(*helpful), queries, search_positives=0)
    for old, new in zip(before, groups, strict=True):
        new_trials = new.trials[len(old.trials) :]
        assert new.trials[: len(old.trials)] == old.trials
        assert [new.pool[t.pointer[0]] for t in old.trials] == [old.pool[t.pointer[0]] for t in old.trials]
        assert len(new.pool) == len(set(new.pool)) == 6
        if any(trial.correct for trial in old.trials):
            assert not vlm.searched(old.query_id)
            assert (new_trials, new.pool) == ((), old.pool)
        assert len(new_trials) <= 1
        assert all(is_mined(trial) and new.pool[trial.pointer[0]] in helpful for trial in new_trials)
    assert all(len(set(prompts)) == len({query for query, _ in prompts}) == len(prompts) for prompts in vlm.rounds[1:])
    assert all({q for q, _ in later} <= {q for q, _ in sooner} for sooner, later in pairwise(vlm.rounds))
    rates = positive_query_rate(before), positive_query_rate(groups, mined=False), positive_query_rate(groups)
    assert rates[0] == rates[1] < rates[2]
    alone = [record(items, features, Vlm(*helpful), [query])[0] for query in queries]
    assert groups == alone


def test_the_search_comes_after_mining_and_its_trials_are_scored_and_kept(items, features, tmp_path):
    vlm = Vlm(25)
    torch.manual_seed(0)
    selector = PointerSelector(feature_dim=2, hidden_dim=8).eval()
    settings = replace(SETTINGS, mine_positives=3, gt_prob=True)

    def score(prompts):
        return [0.01 * sum(d.index for d in p.demonstrations) for p in prompts]

    groups = rollout([items[0]], items, features, selector, vlm, settings, seed=0, score=score)
    assert [is_mined(trial) for trial in groups[0].trials] == [False] * 2 + [True] * 4
    assert [trial.gen_method for trial in groups[0].trials][-1] == "global_search"
    assert groups[0].trials[-1].gt_prob == pytest.approx(0.25)  # behind item 25, in the pool as it is recorded
    save_rl_data(tmp_path / "rl.json", groups, {})
    read = load_rl_data(tmp_path / "rl.json", keep_records=True).groups
    assert read[0].pool == groups[0].pool
    assert read[0].trials == groups[0].trials
    assert most_prompts(replace(settings, n_queries=10)) == 10 * 2 * (2 + 3 + 5)
