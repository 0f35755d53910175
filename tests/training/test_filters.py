"""The split into training and validation queries, and the filters of trials."""

from dataclasses import replace

import pytest

from lever_mlflow.exceptions import DataError
from lever_mlflow.settings import GrpoSettings, RceSettings
from lever_mlflow.training.filters import filter_summary, filtered, split_groups
from lever_mlflow.trials.rl_data import Group, RLData, Trial


def test_queries_are_split_once_and_completely(problem):
    train, val = split_groups(problem.groups, 0.2, seed=3)
    assert len(val) == 24
    assert sorted(g.query_id for g in (*train, *val)) == list(range(120))
    assert [g.query_id for g in val] == [g.query_id for g in split_groups(problem.groups, 0.2, seed=3)[1]]


@pytest.mark.parametrize(("share", "n_val"), [(0.0, 1), (0.4, 2), (1.0, 3)])
def test_both_sides_of_the_split_have_a_query(problem, share, n_val):
    untried = replace(problem.groups[4], trials=())
    train, val = split_groups([*problem.groups[:4], untried], share, seed=0)
    assert (len(train), len(val)) == (4 - n_val, n_val)


def test_fewer_than_two_queries_with_trials_are_refused(problem):
    untried = replace(problem.groups[1], trials=())
    with pytest.raises(DataError, match="1 queries have usable trials, but training needs at least 2"):
        split_groups([problem.groups[0], untried], 0.2, seed=0)


def recorded(query_id, *trials):
    """A group whose trials are given as pairs of method and correctness."""
    recorded = tuple(Trial((i, i + 1), float(correct), float(correct), method) for i, (method, correct) in enumerate(trials))
    return Group(query_id, tuple(range(120, 132)), recorded)


SOME = [
    recorded(0, ("beam", 0), ("aug_swap", 1), ("sft_beam_0", 0)),
    recorded(1, ("beam", 1), ("global_search", 0)),
    recorded(2, ("global_search", 1), ("aug_swap", 0)),
    recorded(3, ("beam", 0), ("beam", 0)),
]


@pytest.mark.parametrize(
    ("methods", "positive", "pointers"),
    [
        ((), False, {0: [0, 1, 2], 1: [0, 1], 2: [0, 1], 3: [0, 1]}),
        ((), True, {0: [0, 1, 2], 1: [0, 1], 2: [0, 1]}),
        (("beam",), False, {0: [0], 1: [0], 3: [0, 1]}),
        (("beam",), True, {1: [0]}),  # the positive trial of query 0 is of another method
        (("global_search", "aug_swap"), False, {0: [1], 1: [1], 2: [0, 1]}),
        (("sft_beam_0", "global_search"), True, {2: [0]}),
    ],
)
def test_filters_keep_trials_of_methods_and_positive_queries(methods, positive, pointers):
    settings = RceSettings(filter_gen_methods=methods, require_positive_query=positive)
    groups = filtered(SOME, settings)
    assert {group.query_id: [trial.pointer[0] for trial in group.trials] for group in groups} == pointers


def test_filters_that_leave_nothing_or_name_no_method_are_refused():
    with pytest.raises(DataError, match="gen_method 'aug_swop'; their methods are aug_swap, beam, global_search, sft_beam_0"):
        filtered(SOME, RceSettings(filter_gen_methods=("beam", "aug_swop")))
    with pytest.raises(DataError, match=r"require_positive_query=true leaves no training query; .* or search_positives$"):
        filtered(SOME[3:], RceSettings(require_positive_query=True))
    with pytest.raises(DataError, match="leaves no training query with filter_gen_methods; "):
        filtered(SOME, GrpoSettings(filter_gen_methods=("sft_beam_0",), require_positive_query=True))


def test_what_filters_leave_is_said_of_the_training_queries():
    data = RLData(tuple(SOME), "digest", "pools", {}, {}, "x.json")
    train, _ = split_groups(SOME, 0.2, seed=0)
    assert filter_summary(data, RceSettings(), 0) == ""
    settings = RceSettings(filter_gen_methods=("beam",), val_share=0.2)
    groups, trials = ([g for g in train if g.query_id != 2], sum(t.gen_method == "beam" for g in train for t in g.trials))
    total = sum(len(group.trials) for group in train)
    assert filter_summary(data, settings, 0) == f"{len(groups)} of 3 training queries with {trials} of {total} trials"
    with pytest.raises(DataError, match=r"^x\.json: filter_gen_methods: no trial"):
        filter_summary(data, replace(settings, filter_gen_methods=("odd",)), 0)
