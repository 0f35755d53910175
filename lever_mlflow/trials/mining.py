"""Mines positive trials: tries further pointers for each query that has no correct trial yet, until one is correct."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from lever_mlflow.random_streams import QueryStream
from lever_mlflow.trials.generators import (
    PooledQueries,
    Proposal,
    RolloutInputs,
    query_batches,
    random_pointers,
    sampled_pointers,
    without_repeats,
)
from lever_mlflow.trials.recording import try_out
from lever_mlflow.trials.rl_data import Trial, is_positive

__all__ = ["MINING_TEMPERATURE", "is_mined", "mined_trials"]

MINING_TEMPERATURE = 2.0  # higher than in an ordinary rollout, whose pointers were tried already


def mined_trials(inputs: RolloutInputs, queries: PooledQueries, trials: Sequence[Sequence[Trial]]) -> list[list[Trial]]:
    """Returns the trials of each query, extended by those of mining where none of them is positive.

    Each round tries one further pointer of every query that still has no positive trial, and asks the VLM once. Which pointers
    a query gets is decided before the first round, so that it does not depend on the answers of other queries.
    """
    extended = [list(recorded) for recorded in trials]
    open_rows = [row for row, recorded in enumerate(extended) if not is_positive(recorded)]
    further = _further_proposals(inputs, queries.at(open_rows), [extended[row] for row in open_rows])
    proposals = dict(zip(open_rows, further, strict=True))
    for turn in range(inputs.settings.mine_positives):
        open_rows = [row for row in open_rows if turn < len(proposals[row]) and not is_positive(extended[row])]
        if not open_rows:
            break
        answered = try_out(inputs, queries.at(open_rows), [[proposals[row][turn]] for row in open_rows])
        for row, new_trials in zip(open_rows, answered, strict=True):
            extended[row] += new_trials
    return extended


def is_mined(trial: Trial) -> bool:
    """Returns whether mining, or the search in the whole training set, added a trial; False where its record was not read."""
    return trial.record is not None and bool(trial.record.get("mined", False))


def _further_proposals(
    inputs: RolloutInputs, queries: PooledQueries, trials: Sequence[Sequence[Trial]]
) -> list[list[Proposal]]:
    """Returns up to ``mine_positives`` proposals for each query, none of a pointer that was tried before.

    They are by turns sampled from the policy at ``MINING_TEMPERATURE`` and drawn uniformly.
    """
    budget = inputs.settings.mine_positives
    alternating: list[list[Proposal]] = []
    for batch in query_batches(inputs, queries):
        sampled = sampled_pointers(inputs, batch, QueryStream.MINED_SAMPLES, (MINING_TEMPERATURE,), budget)
        uniform = random_pointers(inputs, batch, QueryStream.MINED_RANDOM, budget)
        alternating += [list(chain.from_iterable(zip(*pair, strict=True))) for pair in zip(sampled, uniform, strict=True)]
    return [_untried(proposals, recorded)[:budget] for proposals, recorded in zip(alternating, trials, strict=True)]


def _untried(proposals: Iterable[Proposal], trials: Iterable[Trial]) -> list[Proposal]:
    """Returns the proposals of other pointers than those of the trials, without repeats and marked as mined."""
    tried = {trial.pointer for trial in trials}
    return [
        proposal._replace(record={**proposal.record, "mined": True})
        for proposal in without_repeats(proposals)
        if proposal.pointer not in tried
    ]
