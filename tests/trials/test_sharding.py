"""Shards of a rollout: which queries each has, and which sets of shards are refused."""

import json
import re

import pytest

from lever_mlflow.exceptions import DataError
from lever_mlflow.trials.converting import convert
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.sharding import Shard, in_order, merge_shards

META = {"seed": 0, "n_queries": 5, "vlm": {"beams": 3}}


def content(queries, shard, **meta):
    trial = {"pointer": [0], "pointer_global": [9], "gen_method": "beam", "vqa_correct": 1, "vqa_acc_score": 1.0}
    entries = {str(query): {"candidate_pool_ids": [9, 8], "pointer_candidates": [trial]} for query in queries}
    return {"_meta": {**META, "shard": shard, **meta}, **entries}


@pytest.fixture
def part(tmp_path):
    def write(name, *arguments, **meta):
        (tmp_path / "rl.json").write_text(json.dumps(content(*arguments, **meta)))
        convert(tmp_path / "rl.json", tmp_path / name)
        return load_rl_data(tmp_path / name, held=False)

    return write


def test_every_query_is_in_one_shard_and_shards_differ_by_one_at_most():
    for n_queries, of in ((5, 2), (7, 7), (1_000_000, 64), (9, 1)):
        shards = [range(n_queries)[Shard(number, of).rows(n_queries)] for number in range(1, of + 1)]
        assert [row for shard in shards for row in shard] == list(range(n_queries))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_shards_are_put_together_in_their_order(part, tmp_path):
    second, first = part("a.parquet", [2, 5, 7], "2/2"), part("b.parquet", [0, 1], "1/2")
    assert in_order([second, first]) == [first, second]
    merge_shards(tmp_path / "whole.parquet", [first, second])
    whole = load_rl_data(tmp_path / "whole.parquet")
    assert [group.query_id for group in whole.groups] == [0, 1, 2, 5, 7]
    (tmp_path / "rl.json").write_text(json.dumps(content([0, 1, 2, 5, 7], None)))
    assert whole.digest == load_rl_data(tmp_path / "rl.json").digest
    assert whole.meta == {**META, "merged": [{"source": p.source, "digest": p.digest} for p in (first, second)]}


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "first.parquet: is shard 1/2, and of these 2 shards 2 is not named"),
        ([("a", [0, 1], "1/2")], "a.parquet: shard 1/2 is there twice, also as .*first.parquet; name it once"),
        ([("a", [2, 5, 7], "2/3")], "a.parquet: _meta: shard is 3, but 2 in .*first.parquet; these are shards of different"),
        ([("a", [2, 5, 7], "2/2", {"seed": 1})], "a.parquet: _meta: seed is 1, but 0 in .*first.parquet"),
        ([("a", [2, 5, 7], "2/2", {"other": 1})], "a.parquet: _meta: other is 1, but null in .*first.parquet"),
        ([("a", [2, 5, 7], None)], "a.parquet: _meta has no shard; name files or runs that rollout recorded"),
        ([("a", [2, 5, 7], "3/2")], 'a.parquet: _meta has the shard "3/2"; name files'),
        ([("a", [2, 5], "2/2")], "a.parquet: shard 2/2 holds 2 queries, expected 3; copy or record it again"),
    ],
)
def test_missing_double_foreign_and_cut_shards_are_refused_in_one_line(part, others, message):
    first = part("first.parquet", [0, 1], "1/2")
    parts = [first, *(part(f"{other[0]}.parquet", *other[1:3], **(other[3] if len(other) > 3 else {})) for other in others)]
    with pytest.raises(DataError, match=message) as error:
        in_order(parts)
    assert "\n" not in str(error.value)


def test_what_is_no_shard_is_refused(part, tmp_path):
    (tmp_path / "rl.json").write_text(json.dumps({"_meta": META, "1": content([1], None)["1"]}))
    with pytest.raises(DataError, match=re.escape("rl.json: _meta has no shard; name files or runs that rollout recorded")):
        in_order([load_rl_data(tmp_path / "rl.json")])
    (tmp_path / "rl.json").write_text(json.dumps(content([1, 2, 3, 4, 5], "1/1")))
    with pytest.raises(DataError, match=re.escape("rl.json: a shard must be Parquet; convert it")):
        merge_shards(tmp_path / "new.parquet", [load_rl_data(tmp_path / "rl.json")])
    assert not (tmp_path / "new.parquet").exists()
