"""The data gate with real Great Expectations, on generated files; figures of the two 800-query files are the predecessor's."""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lever_mlflow.data.samples import Sample
from lever_mlflow.exceptions import GateError, ParameterError
from lever_mlflow.gate import DEFAULT_PROJECT_DIR, GateResult, check
from lever_mlflow.gate.figures import figures_png
from lever_mlflow.gate.report import format_table, report_html
from lever_mlflow.gate.suites import DATA_SUITES, DRIFT_SUITES
from lever_mlflow.trials.item_order import match_items
from lever_mlflow.trials.reading import load_rl_data
from lever_mlflow.trials.rewards import Reward
from lever_mlflow.trials.rl_data import Group, RLData, Trial, save_rl_data

POOL = tuple(range(10_000, 10_064))
METHODS = ("beam", "sample", "retrieval", "random")


def group(query_id, accuracies, *, pool=POOL):
    """One trial per accuracy, with pointers (0, 1), (0, 2), ...; a trial is correct when its accuracy is above 0."""
    trials = tuple(Trial((0, i + 1), float(accuracy > 0), accuracy, METHODS[i % 4]) for i, accuracy in enumerate(accuracies))
    return Group(query_id, pool, trials)


def data(groups):
    return RLData(tuple(groups), "d" * 32, "pools", {}, {}, "rl.json")


def mixed(n_queries):
    """Half of the queries have 4 of 10 trials right; the rest none."""
    return [group(i, ([1.0] * 4 if i % 2 else [0.0] * 4) + [0.0] * 6) for i in range(n_queries)]


def scored(groups):
    """Right answers have the probability 0.75, and wrong ones 0.25 with a vqa_rel_score of -0.5."""
    return [
        replace(g, trials=tuple(replace(t, gt_prob=0.25 + 0.5 * t.correct, rel_score=t.correct - 0.5) for t in g.trials))
        for g in groups
    ]


def first_file():
    """800 queries, 5 of them positive with 2 trials at 0.6: 10 * 1.6 = 16 in 8,000 trials, a mean reward of 0.0020."""
    return [group(i, [0.6] * 2 + [0.0] * 8 if i < 5 else [0.0] * 10) for i in range(800)]


def second_file():
    """800 queries, 664 positive; 4,264 of 8,000 trials right, 3,472 at 1.0 and 792 at 0.6: 4264 + 3947.2 = 8211.2."""
    accuracies = [1.0] * 3472 + [0.6] * 792
    sizes = [7] * 280 + [6] * 384  # 280 * 7 + 384 * 6 = 4264
    groups, start = [], 0
    for i, size in enumerate(sizes):
        right = [accuracies[(start + j) % len(accuracies)] for j in range(size)]
        groups.append(group(i, right + [0.0] * (10 - size)))
        start += size
    return groups + [group(i, [0.0] * 10) for i in range(664, 800)]


def failed(result, severity=None):
    return {c.name for c in result.checks if not c.passed and severity in (None, c.severity)}


@pytest.fixture
def project(tmp_path):
    """A copy of the suites that a test may edit: project(suite, name, **changes)."""
    shutil.copytree(DEFAULT_PROJECT_DIR, tmp_path / "checks")

    def edit(suite, name, **changes):
        path = tmp_path / "checks/gx/expectations" / f"{suite}.json"
        content = json.loads(path.read_text())
        next(e for e in content["expectations"] if e["meta"]["name"] == name).update(changes)
        path.write_text(json.dumps(content))
        return tmp_path / "checks"

    return edit


def test_first_predecessor_file_is_stopped(tmp_path):
    path = tmp_path / "rl data.json"
    save_rl_data(path, first_file(), {})
    result = check(load_rl_data(path))
    assert result.verdict == "critical"
    assert failed(result, "critical") == {
        "reward_mean",
        "reward_stdev",
        "positive_trial_rate",
        "positive_query_rate",
        "zero_spread_share",
    }
    assert result.metrics["data/positive_query_rate"] == 5 / 800
    assert result.metrics["data/reward_mean"] == pytest.approx(0.0020, abs=1e-12)
    assert result.metrics["data/frac_reward_zero_std"] == 795 / 800
    with pytest.raises(GateError) as error:
        result.raise_if_critical()
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: RL data failed 5 critical expectations: ")
    assert "reward_mean: 0.0020 (required: 0.04 to 1.96); " in message
    assert "positive_query_rate: 0.0063 (required: at least 0.1); " in message
    assert "zero_spread_share: 0.9938 (required: at most 0.9). " in message
    command = re.search(r"To see all expectations, run `(.*?)`\. ", message).group(1)
    words = "mlflow run . --env-manager local -e validate -P".split()
    assert shlex.split(command) == [*words, f"rl_data={path}", "-P", "verbose=true"]
    assert message.endswith("To train on these data all the same, add `-P on_bad_data=warn`")


def test_second_predecessor_file_passes(tmp_path):
    path = tmp_path / "rl.json"
    save_rl_data(path, second_file(), {})
    result = check(load_rl_data(path))
    assert failed(result) == set()
    assert result.verdict == "pass"
    result.raise_if_critical()
    assert result.metrics == pytest.approx(
        {
            "data/n_queries": 800,
            "data/n_trials": 8000,
            "data/dropped_trials": 0,
            "data/dropped_share": 0,
            "data/trials_per_query": 10,
            "data/pool_size_min": 64,
            "data/share_beam": 0.3,  # trials 0, 4 and 8 of 10
            "data/share_sample": 0.3,
            "data/share_retrieval": 0.2,
            "data/share_random": 0.2,
            "data/share_global_search": 0,
            "data/share_other": 0,
            "data/positive_query_rate": 664 / 800,
            "data/positive_trial_rate": 0.533,
            "data/reward_mean": 1.0264,
            # sum of squares 3472 * 4 + 792 * 2.56 = 15915.52, less 8000 * 1.0264 ** 2 = 8427.97568, leaves 7487.54432
            "data/reward_std": (7487.54432 / 7999) ** 0.5,
            "data/frac_reward_zero_std": 136 / 800,
        },
        abs=1e-6,
    )


def test_all_positive_is_stopped():
    result = check(data(group(i, [1.0] * 10) for i in range(100)))
    assert {"positive_trial_rate", "reward_mean", "reward_stdev", "zero_spread_share"} <= failed(result, "critical")
    assert "positive_query_rate" not in failed(result)


@pytest.mark.parametrize(("n_queries", "warnings"), [(60, set()), (12, {"query_count_warning", "trial_count_warning"})])
def test_small_files_pass(n_queries, warnings):
    result = check(data(mixed(n_queries)))
    assert failed(result) == warnings
    assert result.verdict == ("warning" if warnings else "pass")
    result.raise_if_critical()


def with_defects(*defects):
    """60 good queries, and for each defect one more query whose last trial, or which itself, has these fields instead."""
    groups = mixed(60)
    for changes in defects:
        good = group(len(groups), [1.0, 0.0, 0.0, 0.0])
        if {"pool", "query_id", "trials"} & set(changes):
            groups.append(replace(good, **changes))
        else:
            groups.append(replace(good, trials=(*good.trials[:3], replace(good.trials[3], **changes))))
    return data(groups)


def failures(result):
    """Failed expectation -> number of rows that failed, or the figure observed."""
    return {c.name: float(c.observed.split()[0]) for c in result.checks if not c.passed}


def test_defects_of_trials_are_found_and_counted():
    defects = [
        {"pointer": (0, 64)},
        {"pointer": (-1, 0)},
        {"pointer": (5, 5)},
        {"pointer": ()},
        {"pointer": (5,)},
        {"pointer": (0, 1)},  # as the group's first
        {"correct": 0.5},
        {"correct": math.nan},
        {"accuracy": 1.01},
        {"accuracy": -0.5},
        {"accuracy": 1.5, "correct": 1.0},
        {"accuracy": math.nan},
        {"accuracy": 0.0, "correct": 1.0},
    ]
    assert failures(check(with_defects(*defects))) == {
        "pointer_in_pool": 2,
        "pointer_distinct": 1,
        "shots_range": 1,
        "same_shots": 3,
        "duplicate_pointers_warning": 1,
        "vqa_correct_values": 1,
        "vqa_correct_not_null": 1,
        "vqa_acc_score_range": 3,
        "scores_agree_warning": 2,
        "vqa_acc_score_not_null": 1,
        "reward_range": 2,
        "reward_not_null": 2,
    }


def test_defects_of_queries_are_found_and_counted():
    result = check(with_defects({"query_id": 1}, {"query_id": POOL[7]}, {"pool": (*POOL[:-1], POOL[0])}, {"trials": ()}))
    assert failures(result) == {
        "query_id_unique": 2,
        "query_not_in_pool": 1,
        "pool_distinct": 1,
        "trials_per_query": 1,
        "query_reward_mean_not_null": 1,
    }


@pytest.mark.parametrize(
    ("groups", "critical", "others"),
    [
        (mixed(9), {"query_count"}, {"query_count_warning", "trial_count_warning"}),
        (
            [group(i, [1.0 * (i % 2)]) for i in range(18)],
            {"trial_count", "zero_spread_share"},
            {
                "trial_count_warning",
                "query_count_warning",
                "trials_per_query_warning",
                "zero_spread_share_warning",
                "gen_method_variety",
                "gen_method_beam_share",
            },
        ),
        (
            [replace(g, pool=POOL[:4]) for g in mixed(60)],
            {"pool_size", "pointer_in_pool"},
            {"pool_size_warning"},
        ),
        ([replace(g, pool=POOL[:15]) for g in mixed(60)], set(), {"pool_size_warning"}),
        (
            [replace(g, trials=(*g.trials, g.trials[0])) for g in mixed(60)],
            {"duplicate_pointers"},
            {"duplicate_pointers_warning"},
        ),
        ([group(i, [1.0, 0.0, 0.0] if i % 2 else [0.0] * 3) for i in range(80)], set(), {"trials_per_query_warning"}),
    ],
)
def test_sizes_and_repetitions(groups, critical, others):
    result = check(data(groups))
    assert failed(result, "critical") == critical
    assert failed(result) - critical == others


def test_a_query_in_five_with_one_right_trial_in_ten_only_warns():
    # 20 of 1,000 trials right: exactly the lowest rate that trains; 20 of 100 queries positive; 80 of 100 without spread
    result = check(data(group(i, [1.0] + [0.0] * 9 if i % 5 == 0 else [0.0] * 10) for i in range(100)))
    assert result.verdict == "warning"
    assert failed(result) == {
        "reward_mean_warning",
        "reward_stdev_warning",
        "reward_quantiles_warning",
        "positive_trial_rate_warning",
        "positive_query_rate_warning",
        "zero_spread_share_warning",
    }


def test_one_generation_method_is_only_worth_a_remark():
    groups = [replace(g, trials=tuple(replace(t, gen_method="beam") for t in g.trials)) for g in mixed(60)]
    result = check(data(groups))
    assert (failed(result), result.verdict) == ({"gen_method_variety", "gen_method_beam_share"}, "pass")


@pytest.mark.parametrize("groups", [[], [group(i, []) for i in range(20)]])
def test_an_empty_table_is_stopped(groups):
    result = check(replace(data(groups), dropped={"eval_failed": 30, "error": 4}))
    assert result.verdict == "critical"
    assert not any(c.passed for c in result.checks if c.suite == "rl_trials")
    assert result.metrics == {
        "data/n_queries": len(groups),
        "data/n_trials": 0,
        "data/dropped_trials": 34,
        "data/dropped_share": 1,
    }
    with pytest.raises(
        GateError, match=rf"^rl.json: there are no usable trials in {len(groups)} queries, and 34 trials were dropped; "
    ):
        result.raise_if_critical()
    assert "Rewards of the trials: none." in report_html(result)


@pytest.mark.parametrize(
    ("reward", "mean", "bounds"),
    [
        # 4 of 10 right with accuracy 1.0 in half of the queries: 0.2 of the largest reward
        (Reward("hard_only"), 0.2, "0.02 to 0.98"),
        (Reward("separated"), 0.6, "0.06 to 2.94"),
        (Reward("hard_plus_soft", {"hard": 2.0, "soft": 3.0}), 1.0, "0.1 to 4.9"),
        (Reward("separated_gtprob"), 0.2 * 2.75 + 0.8 * 0.25, "0.06 to 2.94"),
        # right: 1 + 0.75; wrong: 0.25 - 1 * 0.5; from -1 to 2, so that 0.04 becomes -1 + 0.02 * 3
        (Reward("hard_plus_gtprob_plus_rel", {"rel": 1.0}), 0.2 * 1.75 - 0.8 * 0.25, "-0.94 to 1.94"),
    ],
)
def test_reward_thresholds_follow_mode_and_weights(reward, mean, bounds):
    result = check(data(scored(mixed(60))), reward=reward)
    assert failed(result) == set()
    assert result.reward_mode == reward.label
    assert result.metrics["data/reward_mean"] == pytest.approx(mean)
    assert next(c for c in result.checks if c.name == "reward_mean").required == bounds


def test_negative_rewards_are_in_range_and_in_the_histogram():
    reward = Reward("hard_plus_gtprob_plus_rel", {"rel": 1.0})
    result = check(data(scored(mixed(60))), reward=reward, reference=data(scored(mixed(60))))
    assert failed(result) == set()
    assert next(c for c in result.checks if c.name == "reward_range").required == "-1 to 2"
    assert next(c for c in result.checks if c.name == "drift_reward_mean").required == "-0.3 to 0.3"  # a tenth of the range
    bins = {round(low, 2): share for low, _, share in result.histogram if share}
    assert bins == pytest.approx({-0.25: 0.8, 1.7: 0.2})  # a twentieth of the range is 0.15
    assert b"PNG" in figures_png(result)[:8]
    low, beyond = scored(mixed(60)), replace(mixed(1)[0].trials[0], gt_prob=0.0, rel_score=-1.5)
    low[0] = replace(low[0], trials=(beyond, *low[0].trials[1:]))
    assert "reward_range" in failed(check(data(low), reward=reward), "critical")


def test_trials_without_the_scores_of_a_mode_are_refused_by_name():
    with pytest.raises(ParameterError, match=r"^rl.json: query 0: the trial with pointer \[.*\] has no vqa_gt_prob, but "):
        check(data(mixed(12)), reward=Reward("hard_plus_gtprob"))


def test_an_edited_threshold_counts_and_changes_the_suite_digest(project):
    before = check(data(mixed(60)))
    checks = project("rl_queries", "positive_query_rate", kwargs={"column": "positive", "min_value": 0.6})
    after = check(data(mixed(60)), project_dir=checks)
    assert failed(after, "critical") == {"positive_query_rate"}
    assert len(before.suite_digest) == 32
    assert before.suite_digest != after.suite_digest
    assert before.suite_digest == check(data(mixed(12))).suite_digest


def test_an_exception_inside_an_expectation_counts_as_failed(project):
    checks = project("rl_trials", "reward_mean", kwargs={"column": "rewards", "min_value": 0})
    result = check(data(mixed(60)), project_dir=checks)
    (broken,) = [c for c in result.checks if not c.passed]
    assert (broken.name, broken.severity, result.verdict) == ("reward_mean", "critical", "critical")
    assert broken.observed == 'Error: The column "rewards" in BatchData does not exist.'


RAISED = {"raised_exception": True, "exception_message": "no such\n  metric", "exception_traceback": ""}


def test_a_missing_or_doubtful_result_counts_as_failed(monkeypatch):
    from great_expectations.core import ExpectationSuiteValidationResult

    to_json = ExpectationSuiteValidationResult.to_json_dict
    answers = {
        "reward_stdev": {"success": True, "result": {}, "exception_info": RAISED},
        "positive_trial_rate": {"success": True, "result": {}, "exception_info": {"column.mean": RAISED}},
        "same_shots": {"success": None, "result": {}, "exception_info": {}},
    }

    def altered(self):
        content = to_json(self)
        named = {result["expectation_config"]["meta"]["name"]: result for result in content["results"]}
        named.pop("reward_mean", None)
        return {**content, "results": [{**result, **answers.get(name, {})} for name, result in named.items()]}

    monkeypatch.setattr(ExpectationSuiteValidationResult, "to_json_dict", altered)
    result = check(data(mixed(60)))
    assert {c.name: c.observed for c in result.checks if not c.passed} == {
        "reward_mean": "no result",
        "reward_stdev": "no such metric",
        "positive_trial_rate": "no such metric",
        "same_shots": "None",
    }
    assert result.verdict == "critical"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"severity": "fatal"}, "its severity is 'fatal', expected one of critical, warning, info"),
        ({"type": "expect_nothing"}, "reward_mean: expect_nothing not found"),
        ({"kwargs": {"column": "reward", "min_value": "much"}}, "reward_mean: .*min_value"),
        ({"kwargs": None}, "it has no kwargs"),
        ({"meta": {"name": "reward_stdev"}}, "another expectation has the meta.name reward_stdev too"),
        ({"meta": {}}, "it has no meta.name"),
    ],
)
def test_a_suite_that_cannot_be_used_is_named(project, changes, message):
    with pytest.raises(ParameterError, match=message) as error:
        check(data(mixed(12)), project_dir=project("rl_trials", "reward_mean", **changes))
    assert "rl_trials.json: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"expectations": []}'])
def test_a_damaged_or_emptied_suite_lets_nothing_pass(project, tmp_path, text):
    checks = project("rl_trials", "reward_mean")
    (checks / "gx/expectations/rl_trials.json").write_text(text)
    with pytest.raises(ParameterError, match=r"rl_trials.json: the suite (cannot be read|holds no expectations)"):
        check(data(mixed(12)), project_dir=checks)


def test_a_missing_project_is_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"rl_trials.json: this suite of the data gate does not exist"):
        check(data(mixed(12)), project_dir=tmp_path)


def test_table_and_page_show_the_failed_first_and_escape_text():
    result = replace(check(data(first_file()[4:24])), source="<script>\udcff.json")
    lines = format_table(result).splitlines()
    assert lines[0].startswith(
        "<script>\udcff.json (format pools): critical; 20 queries, 200 usable trials, 0 dropped trials; "
    )
    assert lines[2].split() == ["expectation", "observed", "required", "verdict", "what", "to", "do"]
    assert re.match(r"reward_mean +0\.0160 +0\.04 to 1\.96 +critical +if almost no answer is right", lines[4])
    verdicts = [
        re.search(r"  (critical|warning|info|not checked|pass)\b", line).group(1)
        for line in lines[4 : lines.index("") + 40]
        if "  " in line
    ]
    assert verdicts == sorted(verdicts, key=["critical", "warning", "info", "not checked", "pass"].index)
    assert "21 further expectations on columns, types and missing values passed." in lines
    # the figure is critical, so its warning is not worth a line
    assert not any(line.startswith("zero_spread_share_warning") for line in lines)
    assert any(line.startswith("zero_spread_share: The figure is the share of queries") for line in lines)
    page = report_html(result)
    page.encode("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;?.json" in page
    assert "http" not in page
    assert "Rewards of the trials: 0 to 0.1: 99.0 %, 1.6 to 1.7: 1.0 %." in page  # one query with 2 trials at 1 + 0.6
    assert "Positive trials per query: 0: 19 queries, 2: 1 queries." in page
    listed = [c for c in result.checks if not c.passed and c.name.removesuffix("_warning") not in failed(result) - {c.name}]
    assert page.count("<small>") == len(listed)


def test_json_form_is_strict_json_and_holds_the_raw_results():
    result = check(with_defects({"accuracy": math.nan}))
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["verdict"] == "critical"
    assert set(content["gx_results"]) == {"rl_trials", "rl_queries", "rl_evaluations"}
    assert len(content["checks"]) == sum(len(r["results"]) for r in content["gx_results"].values())


def test_the_json_form_is_read_back():
    result = check(data(mixed(12)), reference=data(first_file()[:20]))
    assert GateResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert list(result.to_json()) == [
        *("source", "vintage", "digest", "reward_mode", "suite_digest", "checks", "metrics", "histogram"),
        *("positives_per_query", "methods", "reference", "comparison", "reference_histogram", "items", "dropped", "gx_results"),
        "verdict",
    ]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["checks", 0, "severity"], "fatal", "checks.0.severity: Input should be 'critical', 'warning' or 'info'"),
        (["metrics"], {"data/n_queries": "many"}, "metrics.data/n_queries: Input should be a valid number"),
        (["histogram"], [[0.0, 0.1]], "histogram.0.2: Field required"),
        (["further"], 1, "further: Unexpected keyword argument"),
    ],
)
def test_a_json_form_that_is_not_a_result_is_refused(path, value, message):
    content = check(data(mixed(12))).to_json()
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=f"^not a result of the data gate: {message}") as error:
        GateResult.from_json(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "message"), [([], "it is no JSON object"), ({}, "source: Field required")])
def test_json_of_another_kind_is_refused(content, message):
    with pytest.raises(ValueError, match=f"^not a result of the data gate: {message}"):
        GateResult.from_json(content)


def test_gate_is_silent_writes_nothing_and_loads_lazily(tmp_path):
    path = tmp_path / "rl.json"
    save_rl_data(path, mixed(12), {})
    code = (
        "import sys; from lever_mlflow import gate\nfrom lever_mlflow.gate import report\n"
        "from lever_mlflow.trials import reading\n"
        "assert 'great_expectations' not in sys.modules\n"
        f"gate.check(reading.load_rl_data({str(path)!r}))\n"
        "assert 'great_expectations' in sys.modules and 'mlflow' not in sys.modules"
    )
    before = sorted(DEFAULT_PROJECT_DIR.rglob("*"))
    root = DEFAULT_PROJECT_DIR.parent
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert sorted(DEFAULT_PROJECT_DIR.rglob("*")) == before
    assert [p.name for p in tmp_path.iterdir()] == ["rl.json"]


def test_great_expectations_opens_the_project_itself(tmp_path):
    import great_expectations as gx

    import lever_mlflow.gate.expectations  # noqa: F401

    shutil.copytree(DEFAULT_PROJECT_DIR, tmp_path / "checks")
    context = gx.get_context(mode="file", project_root_dir=tmp_path / "checks")
    assert {suite.name: len(suite.expectations) for suite in context.suites.all()} == {
        name: len(json.loads((DEFAULT_PROJECT_DIR / f"gx/expectations/{name}.json").read_text())["expectations"])
        for name in (*DATA_SUITES, *DRIFT_SUITES)
    }


@pytest.mark.parametrize(("without", "severities"), [(75, set()), (76, {"no_answer_in_pool_warning"})])
def test_few_right_answers_in_pools_are_a_warning(without, severities):
    """Of 100 queries, so many have a pool without an item that shows their answer; the others share the answer of all items."""
    answers = [f"answer {i}" if i < without else "mars" for i in range(100)] + ["mars"] * 64
    train = [Sample(i, 100 + i, i, "what?", Path("x.jpg"), (answer,) * 10) for i, answer in enumerate(answers)]
    groups = [replace(g, pool=tuple(range(100, 164)), query={"question_id": 100 + g.query_id}) for g in mixed(100)]
    result = check(match_items(data(groups), train), train=train)
    assert failed(result) == severities
    assert result.verdict == ("warning" if severities else "pass")
