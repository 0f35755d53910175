"""Names the streams of random numbers, so that it is known which draws of a seed are which.

The numbers are part of every result and must not change. These draws have no name here: the candidates of a random pool are
drawn by ``[seed, question id]``; the order of the queries in a training epoch, and its dropout, by ``[seed, epoch]``; and
bootstrap resamples by ``[seed, number of questions]``. Where their second number equals that of a named stream, both use
the same random numbers, which does no harm, because they use them for different things.
"""

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
    """Names the streams that are seeded by ``[seed, question id, stream]``: draws of one query, whatever the others are."""

    RANDOM_POINTERS = 2  # of a rollout
    RANDOM_POLICY = 3  # demonstrations of the random baseline
    SAMPLED_POINTERS = 4  # of a rollout's starting policy
    MINED_SAMPLES = 5  # further pointers of the starting policy, in mining
    MINED_RANDOM = 6  # further random pointers, in mining
