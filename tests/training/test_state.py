"""Training states: what they hold is enough to go on bit for bit, and nothing but a whole state is read."""

import shutil

import pytest
from helpers.trainings import run_grpo, run_rce

from lever_mlflow.exceptions import CheckpointError
from lever_mlflow.training.state import load_state, save_state


@pytest.mark.parametrize(
    ("train", "settings"),
    [
        (run_grpo, {}),
        (run_grpo, {"adaptive_beta": True, "lr_scheduler": "cosine", "freeze_backbone": True}),
        (run_rce, {}),
        (run_rce, {"dropout": 0.3, "lr_scheduler": "linear", "state_update": True}),
    ],
)
def test_training_that_goes_on_from_a_saved_state_ends_bit_for_bit_the_same(problem, tmp_path, train, settings):
    whole = train(problem, epochs=4, **settings)
    for n_epochs in (1, 3):
        save_state(tmp_path / str(n_epochs), whole[n_epochs - 1].state, {"models": {"1": "m-1"}})
        state, meta = load_state(tmp_path / str(n_epochs))
        assert meta == {"models": {"1": "m-1"}}
        assert [epoch.metrics for epoch in whole[:n_epochs]] == list(state.history)
        rest = train(problem, epochs=4, state=state, **settings)
        assert [epoch.repeatable for epoch in rest] == [epoch.repeatable for epoch in whole[n_epochs:]]


def test_a_state_that_is_not_whole_is_refused(problem, tmp_path):
    save_state(tmp_path / "whole", run_grpo(problem)[0].state, {})
    for name, n_missing in (("state.json", 40), ("state.safetensors", 5000)):
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        (tmp_path / name / name).write_bytes((tmp_path / "whole" / name).read_bytes()[:-n_missing])
        with pytest.raises(CheckpointError, match="no whole training state"):
            load_state(tmp_path / name)
    with pytest.raises(CheckpointError, match="no whole training state"):
        load_state(tmp_path / "nowhere")


def test_the_tensors_of_another_state_are_refused(problem, tmp_path):
    for name, epoch in zip(("first", "second"), run_grpo(problem, epochs=2), strict=True):
        save_state(tmp_path / name, epoch.state, {})
    shutil.copy(tmp_path / "second" / "state.safetensors", tmp_path / "first" / "state.safetensors")
    with pytest.raises(CheckpointError, match=r"state\.json holds another digest than that of state\.safetensors"):
        load_state(tmp_path / "first")


def test_a_state_of_another_selector_is_refused(problem):
    state = run_grpo(problem, freeze_backbone=True)[0].state
    with pytest.raises(CheckpointError, match="of another selector, or of one with other frozen parts"):
        run_grpo(problem, epochs=2, state=state)
