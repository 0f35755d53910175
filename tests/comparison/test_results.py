import json

import pytest
from helpers.comparison_samples import PREDECESSOR

from lever_mlflow.comparison.results import read_results
from lever_mlflow.exceptions import DataError


@pytest.fixture
def results_file(tmp_path):
    """results_file(change) is a results file of two runs after ``change`` was made to its content."""

    def write(change=lambda content: None):
        content = {
            "unit": "percent",
            "runs": [
                {"kl_beta": beta, "config": {"lr": 5e-6}, "epochs": [{"epoch": 1, "kl": 0.1, "accuracy": {"100": {"1": 50.0}}}]}
                for beta in (0.15, 0.12)
            ],
        }
        change(content)
        path = tmp_path / "results.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


def test_the_predecessors_numbers():
    results = read_results(PREDECESSOR)
    first, second = results.runs
    assert (results.dataset, results.vlm, results.sampler) == ("OKVQA", "Qwen2.5-VL-3B-Instruct", "RandSampler")
    assert not results.complete
    assert (first.kl_beta, second.kl_beta) == (0.12, 0.15)
    assert first.rl_data == {"n_queries": 800, "n_positive_queries": 5, "mean_reward": 0.002}
    assert first.config["start_checkpoint"] == "RCE epoch 5"
    assert [epoch.epoch for epoch in first.epochs] == [1, 2, 3]
    assert first.epochs[1].metrics["kl"] == 0.08131
    assert first.epochs[0].accuracy == {200: {1: 57.0, 2: 56.1, 3: 55.1, 4: 55.2}}
    assert len(second.epochs[1].cells) == 16
    assert second.epochs[1].accuracy_at(800, 2) == 48.33


def test_runs_are_sorted_and_written_as_they_are_read(results_file, tmp_path):
    results = read_results(results_file())
    assert [run.kl_beta for run in results.runs] == [0.12, 0.15]
    again = tmp_path / "again.json"
    again.write_text(json.dumps(results.to_json()), encoding="utf-8")
    assert read_results(again) == results


def test_null_is_missing(results_file):
    results = read_results(
        results_file(lambda content: content["runs"][1]["epochs"][0].update(kl=None, accuracy={"100": {"1": None}}))
    )
    assert results.runs[0].epochs[0].metrics == {}
    assert results.runs[0].epochs[0].accuracy == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("unit"), "unit: missing"),
        (lambda c: c.update(unit="fraction"), "unit: 'fraction' should be 'percent'"),
        (lambda c: c.pop("runs"), "runs: missing"),
        (lambda c: c.update(runs=[]), r"runs: \[\] should hold at least one"),
        (
            lambda c: c["runs"][0].update(kl_beta=0.12),
            "runs: two have kl_beta 0.12 and the same config and rl_data; give each a label",
        ),
        (lambda c: c["runs"][0].update(kl_beta="0.15"), r"runs\[0\].kl_beta: '0.15' should be a valid number"),
        (lambda c: c["runs"][0].update(kl_beta=True), r"runs\[0\].kl_beta: True should be a valid number"),
        (lambda c: c["runs"][0].update(kl_beta=-1), r"runs\[0\].kl_beta: -1 should be greater than or equal to 0"),
        (lambda c: c["runs"][1].update(epochs=[]), r"runs\[1\].epochs: \[\] should hold at least one"),
        (
            lambda c: c["runs"][1].update(epochs=[{"epoch": 1}, {"epoch": 1}]),
            r"epochs: should hold each epoch once, holds \[1, 1\]",
        ),
        (
            lambda c: c["runs"][1]["epochs"][0].update(epoch=0),
            r"runs\[1\].epochs\[0\].epoch: 0 should be greater than or equal to 1",
        ),
        (lambda c: c["runs"][1]["epochs"][0].update(kl="low"), r"runs\[1\].epochs\[0\].kl: 'low' should be a valid number"),
        (
            lambda c: c["runs"][0]["epochs"][0].update(accuracy={"100": {"1": 101}}),
            "accuracy.100.1: 101 should be less than or equal to 100",
        ),
        (
            lambda c: c["runs"][0]["epochs"][0].update(accuracy={"01": {"1": 1}}),
            r"accuracy.01: '01' should be a whole number",
        ),
        (lambda c: c["runs"][0]["epochs"][0].update(accuracy={"100": 5}), r"accuracy.100: 5 should be an object"),
        (lambda c: c["runs"][0].update(config={"lr": [1]}), r"runs\[0\].config.lr: \[1\] should be a text, a number"),
        (lambda c: c["runs"][0].update(best_epoch=7), r"runs\[0\].best_epoch: 7 should be one of \[1\]"),
        (lambda c: c["runs"][0].update(registered={"name": "m"}), r"runs\[0\].registered.version: missing"),
        (lambda c: c.update(dataset=5), "dataset: 5 should be a valid string"),
        (lambda c: c.update(dataset="x" * 1001), "dataset: 'xxx.* should be a text of at most 1000 characters"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(results_file, change, message):
    path = results_file(change)
    with pytest.raises(DataError, match=message) as error:
        read_results(path)
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).endswith("see docs/report.md for the shape of a results file")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.json: no such file; give the path of a results file"):
        read_results(tmp_path / "nowhere.json")


@pytest.mark.parametrize(("runs", "epochs"), [(201, 1), (1, 10_001)])
def test_the_number_of_runs_and_epochs_is_bounded(tmp_path, runs, epochs):
    of_run = [{"epoch": 1 + epoch} for epoch in range(epochs)]
    content = {"unit": "percent", "runs": [{"kl_beta": beta, "epochs": of_run} for beta in range(runs)]}
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"at most (200|10000) items"):
        read_results(tmp_path / "r.json")
