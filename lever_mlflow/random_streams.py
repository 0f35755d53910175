"""The streams of random numbers: which draws of a seed are which, so that no two uses share their numbers."""

from __future__ import annotations

from enum import IntEnum, unique

__all__ = ["QueryStream", "SeedStream"]


@unique
class SeedStream(IntEnum):
    """Names the streams that are seeded by ``[seed, stream]``: one draw for a whole run."""

    QUERIES = 1  # which training items are the queries of a rollout
    QUESTIONS = 2  # the order of the evaluation questions
    VALIDATION = 8020  # which queries of the RL data are held out in training


@unique
class QueryStream(IntEnum):
    """Names the streams that are seeded by ``[seed, question id, stream]``: draws of one query, whatever the others are.

    The candidates of a random pool are drawn by ``[seed, question id]`` alone.
    """

    RANDOM_POINTERS = 2  # of a rollout
    RANDOM_POLICY = 3  # demonstrations of the random baseline
    SAMPLED_POINTERS = 4  # of a rollout's starting policy
    MINED_SAMPLES = 5  # further pointers of the starting policy, in mining
    MINED_RANDOM = 6  # further random pointers, in mining
