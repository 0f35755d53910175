"""Mutated RL data files: every outcome is a verdict or a one-line error that names the place, and the right one of the two.

What is right is decided by ``verdict_of``, a plain reading of the format and of the critical thresholds that shares no code
with the package. ``LEVER_FUZZ_EXAMPLES`` sets the number of mutations.
"""

import copy
import json
import os
import re
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from lever_mlflow.exceptions import DataError
from lever_mlflow.gate import check
from lever_mlflow.gate.report import format_table, report_html
from lever_mlflow.trials.converting import convert
from lever_mlflow.trials.reading import load_rl_data

EXAMPLES = int(os.environ.get("LEVER_FUZZ_EXAMPLES", 30))
N_QUERIES, N_TRIALS, POOL_SIZE = 52, 6, 18
ODD_NUMBERS = [-1, 0, 1, 2, 0.5, -0.0, 1.0000001, 10**17, 10**18, 10**400, 2**63, 1e308, 64, 9.99e-320]
ODD_VALUES = st.sampled_from([None, True, False, "", "1", "<b>&\x00é", [], {}, [0], [[0, 1]], {"": 0}, *ODD_NUMBERS])
RAW_TOKENS = ["NaN", "Infinity", "-Infinity", "1e999", "9" * 4400, '"\\ud800"', "[" * 3000, "'x'", "01", "1.", "tru", "//x"]


def good_file(vintage):
    """52 queries, half of them positive, that pass the gate in any vintage."""
    content = {"_meta": {"seed": 0}}
    for query in range(N_QUERIES):
        pool = list(range(1000 + query, 1000 + query + POOL_SIZE))
        trials = []
        for i in range(N_TRIALS):
            positions = [3 * i + query % 2, 3 * i + 1 - query % 2, 3 * i + 2]
            score = 1.0 if query % 2 and i < 2 else 0.3 * (i == 4)
            named = [pool[position] for position in positions]
            pointer = {
                "pools": {"pointer": positions, "pointer_global": named},
                "pointers": {"pointer": named},
                "pointer_pos": {"pointer_pos": named},
            }[vintage]
            trials.append(
                {
                    **pointer,
                    "gen_method": ("beam", "random")[i % 2],
                    "vqa_correct": int(score == 1.0),
                    "vqa_acc_score": score,
                    "vqa_eval_mode": "vqaEval",
                    "eval_failed": False,
                }
            )
        entry = {"query": {"question_id": query, "image_id": query, "question": "what?"}, "pointer_candidates": trials}
        content[str(query)] = {**entry, "candidate_pool_ids": pool} if vintage == "pools" else entry
    return content


GOOD = {vintage: good_file(vintage) for vintage in ("pools", "pointers", "pointer_pos")}


class Refused(Exception):
    """The file is not RL data."""


def need(condition):
    if not condition:
        raise Refused


def whole(value):
    return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def indices(value):
    return whole(value) and all(abs(item) < 10**18 for item in value)


def number(value):
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1.7976931348623157e308


def unique(pairs):
    need(len({key for key, _ in pairs}) == len(pairs))
    return dict(pairs)


def verdict_of(raw):
    """``refused``, or whether a critical expectation fails: the format and the thresholds, read naively and whole."""
    try:
        text = raw.decode("utf-8")
        content = json.loads(text, object_pairs_hook=unique, parse_constant=lambda _: need(False))
        json.dumps(content, ensure_ascii=False).encode()
        need(isinstance(content, dict))
        need(isinstance(content.pop("_meta", {}), dict))
        need(content)
        return "critical" if any(defects(content)) else "not critical"
    except (Refused, ValueError, RecursionError):
        return "refused"


def defects(content):
    """Yields truth values, one per critical rule; raises Refused where the file is not RL data."""
    field = None  # of pointers in queries without a pool
    used, pools, recorded = {}, {}, 0
    pooled = any(isinstance(entry, dict) and "candidate_pool_ids" in entry for entry in content.values())
    for key, entry in content.items():
        need(re.fullmatch("0|[1-9][0-9]{0,17}", key) and isinstance(entry, dict))
        records, query = entry.get("pointer_candidates"), entry.get("query", {})
        need(isinstance(records, list) and all(isinstance(record, dict) for record in records) and isinstance(query, dict))
        need(all(name not in query or whole([query[name]]) for name in ("question_id", "image_id")))
        recorded += len(records)
        if pooled and "candidate_pool_ids" not in entry:
            continue  # such a query is dropped, and its trials count as not usable
        if records and not pooled:
            field = field or ("pointer" if "pointer" in records[0] else "pointer_pos")
        twice = [
            "pointer_pos" in record and record.get("pointer", record["pointer_pos"]) != record["pointer_pos"]
            for record in records
        ]
        names = [("pointer_pos", "pointer") if both else ("pointer", "pointer_global") for both in twice]
        if not pooled:
            names = [(field, "pointer_pos") for _ in records]
        need(all(indices(record.get(name)) and record[name] for record, (name, _) in zip(records, names, strict=True)))
        named = sorted({index for record, (name, _) in zip(records, names, strict=True) for index in record[name]})
        pool = entry["candidate_pool_ids"] if pooled else named
        need(indices(pool) and all(index >= 0 for index in pool))
        trials, places_of_items = [], {}
        for record, (name, other), both in zip(records, names, twice, strict=True):
            positions = record[name]
            if pooled:
                need(indices(record.get(other)))
                if all(0 <= position < len(pool) for position in positions):
                    need([pool[position] for position in positions] == record[other])
            else:
                need("pointer_global" not in record)
                if both and field == "pointer":
                    need(indices(record["pointer_pos"]) and len(record["pointer_pos"]) == len(positions))
                    for place, item in zip(record["pointer_pos"], positions, strict=True):
                        need(places_of_items.setdefault(place, item) == item)
                    need(len(set(places_of_items.values())) == len(places_of_items))
                positions = [pool.index(index) for index in positions]
            failed, mode = record.get("eval_failed", False), record.get("vqa_eval_mode", "vqaEval")
            need(isinstance(failed, bool) and mode in ("vqaEval", "fallback", "error"))
            if failed or mode != "vqaEval":
                continue
            correct, accuracy, gt_prob = (record.get(name) for name in ("vqa_correct", "vqa_acc_score", "vqa_gt_prob"))
            need(number(correct) and number(accuracy) and (gt_prob is None or number(gt_prob)))
            need(isinstance(record.get("gen_method"), str | None))
            trials.append((tuple(positions), correct, accuracy))
        used[int(key)], pools[int(key)] = trials, pool
    images = {int(key): entry["query"]["image_id"] for key, entry in content.items() if "image_id" in entry.get("query", {})}
    flat = list(chain.from_iterable(used.values()))
    n_queries, n_trials = len(used), len(flat)
    rewards = [correct + accuracy for _, correct, accuracy in flat]
    mean = sum(rewards) / max(n_trials, 1)
    yield n_queries < 10 or n_trials < 20 or recorded > 2 * n_trials
    yield any(correct not in (0, 1) or not 0 <= accuracy <= 1 for _, correct, accuracy in flat)
    contradictions = sum((correct == 1 and accuracy <= 0) or (correct == 0 and accuracy >= 1) for _, correct, accuracy in flat)
    yield contradictions > 0.01 * n_trials
    yield not 0.04 <= mean <= 1.96
    yield sum((reward - mean) ** 2 for reward in rewards) < 0.01 * (n_trials - 1)
    yield not 0.02 * n_trials <= sum(correct for _, correct, _ in flat) <= 0.98 * n_trials
    yield sum(any(correct == 1 for _, correct, _ in trials) for trials in used.values()) < 0.1 * n_queries
    yield sum(len({c + a for _, c, a in trials}) < 2 for trials in used.values()) > 0.9 * n_queries
    yield any(not trials for trials in used.values())
    yield len({len(positions) for positions, _, _ in flat}) != 1 or not all(positions for positions, _, _ in flat)
    yield any(len(set(positions)) < len(positions) for positions, _, _ in flat)
    yield any(not 0 <= p < len(pools[query]) for query, trials in used.items() for positions, _, _ in trials for p in positions)
    repeated = sum(len({positions for positions, _, _ in trials}) < len(trials) for trials in used.values())
    yield repeated > 0.1 * n_queries
    yield sum(len(pool) < 5 for pool in pools.values()) > 0.05 * n_queries
    yield any(len(set(pool)) < len(pool) or query in pool for query, pool in pools.items())
    yield any(
        query in images and index != query and images.get(index) == images[query] for query in pools for index in pools[query]
    )


def places(value, path=()):
    """Paths of all values inside JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


PLACES = {vintage: list(places(content)) for vintage, content in GOOD.items()}


def at(content, path):
    for key in path:
        content = content[key]
    return content


@st.composite
def mutated_files(draw):
    """A good file after one to three mutations of its content, one of its text, or both."""
    vintage = draw(st.sampled_from(sorted(GOOD)))
    content = copy.deepcopy(GOOD[vintage])
    for _ in range(draw(st.integers(0, 3))):
        mutate_content(draw, content, PLACES[vintage])
    raw = json.dumps(content, allow_nan=True).encode("utf-8", "surrogatepass")
    return mutate_text(draw, raw) if draw(st.integers(0, 2)) == 0 else raw


def mutate_content(draw, content, known_places):
    kind = draw(st.sampled_from(["replace", "delete", "repeat", "rename", "everywhere", "leak"]))
    path = draw(st.sampled_from(known_places))
    try:
        parent, key = at(content, path[:-1]), path[-1]
        parent[key]
    except (KeyError, IndexError, TypeError):
        return  # an earlier mutation removed it
    if not isinstance(parent, dict | list):
        return
    if kind == "replace":
        parent[key] = draw(ODD_VALUES)
    elif kind == "delete":
        del parent[key]
    elif kind == "repeat" and isinstance(parent, list):
        parent.insert(0, copy.deepcopy(parent[key]))
    elif kind == "rename" and isinstance(parent, dict):
        parent[
            draw(st.sampled_from(["0", "007", "pointer", "pointer_pos", "pointer_global", "candidate_pool_ids", "-1", "²"]))
        ] = parent.pop(key)
    elif kind == "everywhere" and isinstance(key, str):
        value = draw(ODD_VALUES)
        for entry in content.values():
            for trial in entry.get("pointer_candidates") or () if isinstance(entry, dict) else ():
                if isinstance(trial, dict) and key in trial:
                    trial[key] = value
    elif kind == "leak" and isinstance(content.get(path[0]), dict) and path[0].isdecimal():
        other = draw(st.sampled_from([path[0], "0", "1"]))
        pool = content[path[0]].get("candidate_pool_ids")
        if isinstance(pool, list) and pool:
            pool[-1] = int(other)
        if isinstance(query := content[path[0]].get("query"), dict):
            query["image_id"] = 0


def mutate_text(draw, raw):
    start = draw(st.integers(0, len(raw) - 1))
    length = draw(st.integers(1, 40))
    kind = draw(st.sampled_from(["truncate", "delete", "insert", "flip", "double", "token", "twice"]))
    token = draw(st.sampled_from(RAW_TOKENS)).encode()
    if kind == "truncate":
        return raw[:start]
    if kind == "delete":
        return raw[:start] + raw[start + length :]
    if kind == "insert":
        return raw[:start] + draw(st.binary(min_size=1, max_size=8)) + raw[start:]
    if kind == "flip":
        return raw[:start] + bytes([raw[start] ^ draw(st.integers(1, 255))]) + raw[start + 1 :]
    if kind == "double":
        return raw[: start + length] + raw[start:]
    tokens = list(re.finditer(rb": (\d+(\.\d+)?|false|\"beam\")", raw))
    if not tokens:
        return raw
    span = tokens[start % len(tokens)].span(1)
    if kind == "token":
        return raw[: span[0]] + token + raw[span[1] :]
    name = re.search(rb'"\w+": $', raw[: span[0]])
    return raw[: span[1]] + b", " + name.group() + raw[span[0] :] if name else raw


@settings(max_examples=EXAMPLES, deadline=60_000, suppress_health_check=list(HealthCheck))
@given(raw=mutated_files())
def test_every_mutated_file_gets_its_verdict_or_an_error_in_one_line(tmp_path_factory, raw):
    path = tmp_path_factory.getbasetemp() / "mutated.json"
    path.write_bytes(raw)
    right = verdict_of(raw)
    try:
        result = check(load_rl_data(path))
    except DataError as error:
        message = str(error)
        assert message.startswith(f"{path}: ")
        assert len(" ".join(message.split())) < 600
        outcome = "refused"
    else:
        outcome = "critical" if result.verdict == "critical" else "not critical"
        format_table(result)
        json.dumps(result.to_json(), allow_nan=False)
    event(outcome)
    assert outcome == right


@settings(max_examples=EXAMPLES, deadline=60_000, suppress_health_check=list(HealthCheck))
@given(raw=mutated_files())
def test_every_mutated_file_that_is_read_is_the_same_as_parquet(tmp_path_factory, raw):
    path, converted = (tmp_path_factory.getbasetemp() / f"converted.{form}" for form in ("json", "parquet"))
    path.write_bytes(raw)
    try:
        data = load_rl_data(path)
    except DataError:
        return
    try:
        convert(path, converted)
    except DataError as error:
        assert str(error) == f"{path}: inf is not a JSON number; correct the number"  # noqa: PT017  (one of two outcomes)
        return
    assert replace(load_rl_data(converted), source=data.source) == data


@pytest.mark.parametrize("vintage", GOOD)
def test_the_unmutated_files_pass(tmp_path, vintage):
    (tmp_path / "rl.json").write_text(json.dumps(GOOD[vintage]))
    result = check(load_rl_data(tmp_path / "rl.json"))
    assert [c.name for c in result.checks if not c.passed and c.severity != "info"] == []
    assert verdict_of(json.dumps(GOOD[vintage]).encode()) == "not critical"
    assert "Data gate" in report_html(result)
