"""RL data that stay in their Parquet files: the same groups, digest and matches as when they are held, and what is refused."""

import json
from dataclasses import replace

import pytest

from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import DataError
from lever_mlflow.trials import parquet
from lever_mlflow.trials.columns import as_columns, blocks
from lever_mlflow.trials.converting import convert
from lever_mlflow.trials.item_order import match_items
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.stored import StoredGroups

POOL = [0, 1, 2, 3]


def trial(*pointer, **fields):
    named = [POOL[position] for position in pointer]
    scores = {"vqa_correct": 1, "vqa_acc_score": 0.6}
    return {"pointer": [*pointer], "pointer_global": named, "gen_method": "beam", **scores, **fields}


def query(index, *trials):
    named = {"query": {"question_id": 100 + index, "image_id": index}}
    ids = {"candidate_pool_ids": POOL, "candidate_question_ids": [100, 101, 102, 103]}
    return {**named, **ids, "pointer_candidates": list(trials)}


CONTENT = {
    "_meta": {"seed": 3, "shots": 1},
    "7": query(7, trial(0), trial(2), trial(3)),
    "5": query(5, trial(1), trial(2, eval_failed=True)),
    "6": query(6, trial(2, vqa_eval_mode="fallback"), trial(1, extra=[1]), trial(3)),
}


def sample(index, question_id):
    return Sample(index, question_id, index, "what?", ("a",), None, "a")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The content as one file and as a folder of two, in tables of one query each."""
    monkeypatch.setattr(parquet, "_TABLE_ROWS", 1)

    def write(name, content):
        (tmp_path / "rl.json").write_text(json.dumps(content))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        convert(tmp_path / "rl.json", tmp_path / name)
        return tmp_path / name

    write("folder/b.parquet", {"_meta": {"seed": 3, "shots": 2}, "5": CONTENT["5"]})
    write("folder/a.parquet", {name: CONTENT[name] for name in ("_meta", "7", "6")})
    return write, write("whole.parquet", CONTENT), tmp_path / "folder"


def test_stored_groups_are_those_that_are_held(files):
    _, whole, _ = files
    for fallback, sizes in ((False, [3, 1, 2]), (True, [3, 1, 3])):
        held, stored = (load_rl_data(whole, use_fallback=fallback, held=held) for held in (True, False))
        assert isinstance(stored.groups, StoredGroups)
        assert [len(block) for block in stored.groups.blocks()] == [1, 1, 1]
        assert [(g.query_id, len(g.trials)) for g in stored.groups] == list(zip([7, 5, 6], sizes, strict=True))
        assert (len(stored.groups), stored.groups.n_trials) == (3, sum(sizes))
        assert as_columns(stored.groups) == held.groups  # which are ordered by train index
        assert replace(stored, groups=held.groups) == held
    assert stored.groups[1].query_id == stored.groups[-2].query_id == 5
    assert [group.query_id for group in stored.groups[::-1]] == [6, 5, 7]
    assert len(list(blocks(held.groups))) == 1


def test_a_folder_of_files_is_one_set_of_rl_data(files):
    _, whole, folder = files
    held, stored = (load_rl_data(folder, held=held) for held in (True, False))
    assert held.digest == stored.digest == load_rl_data(whole).digest
    assert held.groups == load_rl_data(whole).groups == as_columns(stored.groups)
    assert held.meta == stored.meta == {"seed": 3}  # in which the files agree
    assert held.source == str(folder)


def test_queries_in_two_files_and_folders_without_files_are_refused(files, tmp_path):
    write, _, folder = files
    write("folder/c.parquet", {"5": CONTENT["5"]})
    for held in (True, False):
        with pytest.raises(DataError, match=r"c\.parquet: query 5 \(row 0 or later\) stands in another file of the folder"):
            load_rl_data(folder, held=held)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: cannot be read: this folder holds no file whose name ends in"):
        load_rl_data(tmp_path / "empty", held=False)


def test_queries_without_a_pool_stay_in_their_files_too(files):
    write, _, _ = files
    older = {"pointer_candidates": [{"pointer": [9, 4], "vqa_correct": 1, "vqa_acc_score": 1.0}]}
    for content in ({"1": older, "2": older}, {"1": older, "2": query(2, trial(0))}):
        path = write("older.parquet", content)
        held, stored = (load_rl_data(path, held=held) for held in (True, False))
        assert replace(stored, groups=as_columns(stored.groups)) == held
    with pytest.raises(DataError, match=r"query '1': trial 0: pointer is empty"):
        load_rl_data(write("bad.parquet", {"1": {"pointer_candidates": [{"pointer": []}]}}), held=False)


def test_stored_groups_are_matched_with_items_as_held_ones_are(files):
    _, whole, _ = files
    everything = [sample(i, 107 - i) for i in range(8)]  # question id 107 is item 0
    without_102 = [sample(i, question_id) for i, question_id in enumerate([107, 106, 105, 103, 101, 100])]
    for train, lost in ((everything, 0), (without_102, 1)):
        held, stored = (match_items(load_rl_data(whole, held=held), train) for held in (True, False))
        assert replace(stored, groups=as_columns(stored.groups)) == held
        assert held.dropped == {"eval_failed": 1, "fallback": 1, **({"left_out": lost} if lost else {})}
        assert stored.groups.n_trials == held.groups.n_trials == 6 - lost
    with pytest.raises(DataError, match="none of the 3 queries is in the data set"):
        match_items(load_rl_data(whole, held=False), [sample(0, 1)])


def test_one_index_with_two_question_ids_is_refused_across_blocks(files):
    write, _, _ = files
    other = {**query(8, trial(0)), "candidate_question_ids": [100, 101, 102, 999]}
    path = write("mixed.parquet", {"7": CONTENT["7"], "8": other})
    with pytest.raises(DataError, match="query 8: item 3 has the question ids 103 and 999"):
        match_items(load_rl_data(path, held=False), [sample(i, 100 + i) for i in range(9)])
