"""RL data files: the three vintages, what is refused and with which words, digests, saving and the gate's tables."""

import json
import math
import os

import numpy as np
import pytest

from lever_mlflow.exceptions import DataError, ParameterError
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rewards import Reward
from lever_mlflow.trials.rl_data import Group, Trial, check_items, save_rl_data

POOL = [50, 60, 70, 80]
OLD = {"vqa_correct": 1, "vqa_acc_score": 1}


def trial(pointer, correct=0, accuracy=0.0, **fields):
    """Makes a trial of the newest vintage, without ``pointer_global``."""
    return {"pointer": pointer, "vqa_correct": correct, "vqa_acc_score": accuracy, "gen_method": "beam", **fields}


def in_pool(pointer, *scores, **fields):
    return trial(pointer, *scores, **{"pointer_global": [POOL[position] for position in pointer], **fields})


def query(*trials):
    return {"candidate_pool_ids": POOL, "pointer_candidates": list(trials)}


@pytest.fixture
def load(tmp_path):
    """Returns a function that writes content as JSON, or text as it is, and reads the file."""

    def write_and_load(content, **options):
        path = tmp_path / "rl.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return load_rl_data(path, **options)

    return write_and_load


NEWEST = {
    "_meta": {"seed": 3},
    "7": {**query(in_pool([2, 0], 1, 0.6, vqa_gt_prob=0.25), in_pool([1, 3])), "query": {"question": "What?"}},
    "4": query(in_pool([0, 1], 1, 1.0)),
}


def test_newest_vintage(load, tmp_path):
    data = load(NEWEST)
    assert (data.vintage, data.meta, data.dropped, data.source) == ("pools", {"seed": 3}, {}, str(tmp_path / "rl.json"))
    assert [group.query_id for group in data.groups] == [4, 7]
    group = data.groups[1]
    assert group.pool == (50, 60, 70, 80)
    assert group.query == {}  # of the query's record, only its ids
    assert group.trials[0] == Trial((2, 0), 1.0, 0.6, "beam", "vqaEval", False, 0.25)
    np.testing.assert_array_equal(group.pointers_GK, [[2, 0], [1, 3]])
    np.testing.assert_allclose(group.rewards_G(), [1.6, 0.0])
    np.testing.assert_allclose(group.rewards_G(Reward("separated")), [2.6, 0.0])
    with pytest.raises(ParameterError, match="needs vqa_gt_prob on every trial"):
        group.rewards_G(Reward("hard_plus_gtprob"))


@pytest.mark.parametrize(("field", "vintage"), [("pointer", "pointers"), ("pointer_pos", "pointer_pos")])
def test_older_vintages_get_the_sorted_set_of_named_indices_as_pool(load, field, vintage):
    trials = [{field: pointer, "vqa_correct": 1, "vqa_acc_score": 0.9} for pointer in ([90, 20], [20, 55])]
    data = load({"8": {"pointer_candidates": trials}})
    (group,) = data.groups
    assert data.vintage == vintage
    assert group.pool == (20, 55, 90)
    assert [t.pointer for t in group.trials] == [(2, 0), (0, 1)]
    assert group.trials[0].gen_method == "unknown"


def test_a_pointer_that_is_there_as_items_and_as_positions_is_read_once(load):
    """Lever-Plus v4 wrote both; of the pool it recorded nothing but what the pointers name."""
    trials = [{"pointer": [90, 20], "pointer_pos": [6, 36], **OLD}, {"pointer": [20, 55], "pointer_pos": [36, 1], **OLD}]
    data = load({"8": {"pointer_candidates": trials}})
    assert (data.vintage, data.groups[0].pool) == ("pointers", (20, 55, 90))
    assert [t.pointer for t in data.groups[0].trials] == [(2, 0), (0, 1)]
    (group,) = load({"8": query(trial([70, 50], pointer_pos=[2, 0]))}).groups  # and where the pool is recorded
    assert (group.pool, group.trials[0].pointer) == (tuple(POOL), (2, 0))


@pytest.mark.parametrize("first", ["3", "5"])
def test_a_query_without_a_pool_among_others_is_dropped_and_counted(load, first):
    without = {"pointer_candidates": [in_pool([0, 1]), trial([9]), in_pool([1, 0], eval_failed=True)], "_fix_failed": True}
    content = {"3": without, "5": query(in_pool([0, 1], 1, 1.0), in_pool([2, 3], eval_failed=True))}
    data = load({first: content[first], **content})
    assert [group.query_id for group in data.groups] == [5]
    assert (data.vintage, data.dropped) == ("pools", {"eval_failed": 1, "no_pool": 3})


def test_question_ids_of_the_pool_are_read_and_saved(load, tmp_path):
    data = load({"5": {**query(in_pool([0, 1], 1, 1.0)), "candidate_question_ids": [9, 8, 7, 6]}}, keep_records=True)
    assert data.groups[0].pool_question_ids == (9, 8, 7, 6)
    save_rl_data(tmp_path / "new.json", data.groups, {})
    assert load_rl_data(tmp_path / "new.json").groups[0].pool_question_ids == (9, 8, 7, 6)


def test_dropped_trials_may_be_kept_and_saved_as_they_are(load, tmp_path):
    failed = in_pool([0, 2], None, None, vqa_eval_mode="error")
    fallback = in_pool([1, 2], 1, 0.5, vqa_eval_mode="fallback")
    data = load({"1": query(in_pool([0, 1], 1, 1.0), failed, fallback)}, keep_records=True, keep_dropped=True)
    assert [(t.pointer, t.usable) for t in data.groups[0].trials] == [((0, 1), True), ((0, 2), False), ((1, 2), True)]
    save_rl_data(tmp_path / "new.json", data.groups, {})
    again = load_rl_data(tmp_path / "new.json")
    assert again.dropped == data.dropped == {"error": 1, "fallback": 1}
    assert [t.pointer for t in again.groups[0].trials] == [(0, 1)]


def test_equal_numbers_of_other_types_are_kept_apart(load):
    content = {"0": {"candidate_pool_ids": [1, 2], "pointer_candidates": [trial([0, 1], 1, 1.0, pointer_global=[1, 2])]}}
    content["3"] = {"candidate_pool_ids": [0, 1], "pointer_candidates": [trial([1, 0], 0, 0, pointer_global=[1, 0])]}
    groups = load(content).groups
    assert [type(value) for g in groups for value in (*g.pool, *g.trials[0].pointer)] == [int] * 8
    assert [type(value) for g in groups for value in (g.trials[0].correct, g.trials[0].accuracy)] == [float] * 4


def test_failed_and_fallback_trials_are_dropped_and_counted(load):
    content = {
        "1": query(
            in_pool([0, 1], 1, 1.0),
            in_pool([0, 2], 1, 1.0, eval_failed=True),
            in_pool([0, 3], None, None, vqa_eval_mode="error"),  # an evaluation that failed need not have scores
            in_pool([1, 2], 1, 0.5, vqa_eval_mode="fallback"),
            in_pool([1, 3], 1, 0.5, vqa_eval_mode="fallback"),
        )
    }
    data = load(content)
    assert [t.pointer for t in data.groups[0].trials] == [(0, 1)]
    assert data.dropped == {"eval_failed": 1, "error": 1, "fallback": 2}
    data = load(content, use_fallback=True)
    assert [t.pointer for t in data.groups[0].trials] == [(0, 1), (1, 2), (1, 3)]
    assert data.dropped == {"eval_failed": 1, "error": 1}
    assert data.digest != load(content).digest  # other trials are used
    del content["1"]["pointer_candidates"][3:]
    assert load(content, use_fallback=True).digest == load(content).digest


def test_digest_knows_content_not_layout(load):
    digest = load(NEWEST).digest
    assert len(digest) == 32
    assert load(json.dumps(NEWEST, indent=3)).digest == digest
    reordered = {key: dict(reversed(NEWEST[key].items())) for key in reversed(NEWEST)}
    assert load(reordered).digest == digest
    assert [group.query_id for group in load(reordered).groups] == [4, 7]  # the same digest, the same training order
    assert load({**NEWEST, "_meta": {"seed": 4}}).digest == digest


@pytest.mark.parametrize(
    "changes", [{"vqa_acc_score": 0.9}, {"vqa_correct": 0}, {"pointer": [1, 0], "pointer_global": [60, 50]}, {"x": 1}]
)
def test_digest_changes_with_any_trial(load, changes):
    changed = {**NEWEST, "4": query({**in_pool([0, 1], 1, 1.0), **changes})}
    assert load(changed).digest != load(NEWEST).digest


def test_saved_data_are_read_again_unchanged(tmp_path):
    groups = (
        Group(4, (50, 60, 70), (Trial((0, 1), 0.5, 0.3, "beam", gt_prob=0.25), Trial((2, 0), 1.0, 0.6, "random"))),
        Group(9, (50, 60), (), {"question": "Où ?"}),
    )
    path = tmp_path / "new" / "rl.json"
    save_rl_data(path, groups, {"seed": 1})
    data = load_rl_data(path, keep_records=True)
    assert data.groups == groups
    assert (data.groups[1].query, data.meta, data.vintage) == ({"question": "Où ?"}, {"seed": 1}, "pools")
    with pytest.raises(ValueError, match="load the data with keep_records=True"):
        save_rl_data(path, load_rl_data(path).groups, {})
    save_rl_data(path, data.groups, {"seed": 2})
    assert load_rl_data(path).digest == data.digest
    assert [p.name for p in path.parent.iterdir()] == ["rl.json"]


def test_every_vintage_is_saved_as_the_newest_with_fields_kept(load, tmp_path):
    content = {"8": {"pointer_candidates": [{"pointer": [90, 20], "vqa_correct": 1, "vqa_acc_score": 1, "beam_rank": 2}]}}
    data = load(content, keep_records=True)
    save_rl_data(tmp_path / "new.json", data.groups, data.meta)
    assert load_rl_data(tmp_path / "new.json").groups == data.groups
    (record,) = json.loads((tmp_path / "new.json").read_text())["8"]["pointer_candidates"]
    assert (record["pointer"], record["pointer_global"], record["beam_rank"]) == ([1, 0], [90, 20], 2)


def test_a_failed_save_keeps_the_former_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "rl.json"
    save_rl_data(path, [Group(1, (5, 6), ())], {})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        save_rl_data(path, [Group(1, (5, 6), (Trial((0, 1), 1.0, math.nan, "beam"),))], {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["rl.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON at line 1, column 1 "),
        (json.dumps(NEWEST)[:-9], "not valid JSON at line 1, column .*it may be truncated"),
        ("[1]", "holds a JSON list, expected an object; copy it again"),
        ("{}", "no queries; run the rollout step"),
        ('{"_meta": {}}', "no queries; run the rollout step"),
        ('{"_meta": [1], "1": {}}', "_meta holds a JSON list, expected an object"),
        ('{"_meta": {}, "_meta": {}}', "key '_meta' occurs twice in one object"),
        ('{"1": {"pointer_candidates": [], "pointer_candidates": []}}', "key 'pointer_candidates' occurs twice"),
        ('{"1": NaN}', "holds NaN, which is not a JSON number"),
        ('{"1": -Infinity}', "holds -Infinity, which is not a JSON number"),
        ('{"1": %s}' % ("9" * 5000), "holds a number of thousands of digits"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_files_that_are_no_rl_data_are_refused(load, tmp_path, text, message):
    with pytest.raises(DataError, match=message) as error:
        load(text)
    assert str(error.value).startswith(f"{tmp_path / 'rl.json'}: ")


def test_items_outside_the_training_items_are_refused():
    check_items(Group(4, (0, 29), ()), 30)
    for group, item in ((Group(30, (0, 1), ()), 30), (Group(4, (0, -1), ()), -1)):
        with pytest.raises(DataError) as error:
            check_items(group, 30)
        assert str(error.value) == (
            f"query {group.query_id}: item {item} is not among the 30 training items; "
            "give the data set on which the RL data were recorded as dataset=FOLDER"
        )
    with pytest.raises(DataError, match=r"^x\.json: query 4: item 5 is not among the 5 training items"):
        check_items(Group(4, (5,), ()), 5, "x.json")


def test_half_a_surrogate_pair_is_no_text(tmp_path):
    (tmp_path / "x.json").write_text('{"1": {"pointer_candidates": [], "note": "\\ud800"}}')
    with pytest.raises(DataError, match="cannot be read"):
        load_rl_data(tmp_path / "x.json")


def test_unreadable_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file; give rl_data=FILE"):
        load_rl_data(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read: "):
        load_rl_data(tmp_path)
    (tmp_path / "latin.json").write_bytes('{"é": 1}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot be read, as it is not UTF-8 \(byte 0xe9 in line 1\)"):
        load_rl_data(tmp_path / "latin.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"1": []}, "query '1': pointer_candidates is not a list of trials"),
        ({"1": {"pointer_candidates": [3]}}, "query '1': pointer_candidates is not a list of trials"),
        ({"x": query()}, "query 'x': the key is not a train index"),
        ({"01": query()}, "query '01': the key is not a train index"),
        ({"-1": query()}, "query '-1': the key is not a train index"),
        ({"٣": query()}, "the key is not a train index"),
        ({"9" * 5000: query()}, f"query '{'9' * 40}': the key is not a train index"),
        ({"1": {**query(), "query": []}}, "query '1': query is not an object"),
        ({"1": {**query(), "candidate_pool_ids": [1.0]}}, r"candidate_pool_ids is \[1.0\], expected a list of whole"),
        ({"1": {**query(), "candidate_pool_ids": [-5]}}, "the pool holds -5, which is not a train index"),
        ({"1": {"pointer_candidates": [{"pointer": [3, -2], **OLD}]}}, "the pool holds -2, which is not a train index"),
        ({"1": query(in_pool([0]), trial([0]))}, "query '1': trial 1: pointer_global is null"),
        ({"1": query(in_pool([0], pointer_global=[60]))}, r"pointer_global \[60\] does not match pointer \[0\]"),
        (
            {"1": query(trial([10**18]))},
            "trial 0: pointer is .1000000000000000000., which holds a number of more than 18 digits",
        ),
        ({"1": query(trial([True]))}, r"trial 0: pointer is \[true\], expected a list of whole numbers"),
        ({"1": query(in_pool([0], True))}, "trial 0: vqa_correct is true, expected a finite number"),
        ({"1": query(in_pool([0], "1"))}, 'trial 0: vqa_correct is "1", expected a finite number'),
        ({"1": query(in_pool([0], 1, None))}, "trial 0: vqa_acc_score is null, expected a finite number"),
        ({"1": query(in_pool([0], vqa_gt_prob="p"))}, 'trial 0: vqa_gt_prob is "p", expected a finite number'),
        ({"1": query(in_pool([0], 10**400))}, "trial 0: vqa_correct is 1000000.*, expected a finite number"),
        ({"1": query(in_pool([0], eval_failed="false"))}, 'trial 0: eval_failed is "false", expected true or false'),
        ({"1": query(in_pool([0], vqa_eval_mode="exact"))}, 'trial 0: vqa_eval_mode is "exact", expected one of vqaEval'),
        ({"1": {"pointer_candidates": [in_pool([0, 1])]}}, "has pointer_global, but the query has no candidate_pool_ids"),
        (
            {"1": {"pointer_candidates": [{"pointer": [i], "pointer_pos": [0], **OLD} for i in (3, 4)]}},
            r"trial 1: pointer \[4\] and pointer_pos \[0\] do not name the same items of one pool",
        ),
        (
            {"1": {"pointer_candidates": [{"pointer": [3], "pointer_pos": [i], **OLD} for i in (0, 1)]}},
            r"trial 1: pointer \[3\] and pointer_pos \[1\] do not name the same items of one pool",
        ),
        (
            {"1": {"pointer_candidates": [{"pointer": [3], "pointer_pos": [0, 1], **OLD}]}},
            r"pointer \[3\] and pointer_pos \[0, 1\] do not name the same items",
        ),
        (
            {"1": query(trial([70, 60], pointer_pos=[2, 0]))},
            r"trial 0: pointer \[70, 60\] does not match pointer \[2, 0\] in the pool",
        ),
        ({"1": {**query(), "candidate_question_ids": [1, 2]}}, "candidate_question_ids holds 2 ids for 4 candidates"),
        ({"1": {"pointer_candidates": [{"pointer": [3], **OLD}, {"pointer_pos": [3], **OLD}]}}, "trial 1: pointer is null"),
    ],
)
def test_inconsistent_queries_are_refused_by_place(load, content, message):
    with pytest.raises(DataError, match=message) as error:
        load(content)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_score_too_large_for_a_float_is_refused(load):
    with pytest.raises(DataError, match="holds 1e999, which is too large for a number"):
        load(json.dumps({"1": query(in_pool([0], 1, 0.6))}).replace("0.6", "1e999"))
