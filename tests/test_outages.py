"""The stages at which `python -m benchmarks.outages` takes something away."""

import importlib

import pytest

from benchmarks.outage_world import STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_a_function_that_its_module_calls(stage):
    module, name, _ = STAGES[stage]
    code = importlib.import_module(module)
    assert callable(getattr(code, name, None)), f"{module} has no function {name}"
