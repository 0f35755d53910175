"""Fixtures of the tests of trainings."""

import pytest
from helpers.small_data import learnable_groups
from helpers.trainings import Problem


@pytest.fixture(scope="session")
def problem():
    """120 queries from which a policy can learn."""
    return Problem(*learnable_groups(120))
