"""Says in words what a training run did, by stated rules over its metrics."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["diagnose"]

_NO_SIGNAL_FROM = 0.95  # share of groups without reward spread: one in twenty teaches
_DIVERGED_FROM = 1.0  # exact KL in nats: the policy gives its own picks e times the start's probability, or more
_LEAST_GAIN = 1e-3  # of expected reward, in units of the reward


def diagnose(history: Sequence[dict[str, float]], n_validation: int, best_epoch: int) -> str:
    """Returns one line that says what a training run did, by the first rule that holds.

    * ``no signal``: 95 % of the training groups or more have equal rewards;
    * ``diverging``: the exact KL from the start, on validation queries after the last epoch, is 1 nat or more (GRPO only);
    * ``policy did not move``: after the last epoch, no validation query has other greedy picks than the start's (GRPO only);
    * ``learning``: the best epoch's expected reward exceeds that of the start (of RCE the untrained selector) by 0.001 or more;
    * ``not learning`` otherwise.

    Args:
        history: the metrics of each epoch, at least one.
        n_validation: number of validation queries.
        best_epoch: 1-based.
    """
    last, best = history[-1], history[best_epoch - 1]
    if last["frac_reward_zero_std"] >= _NO_SIGNAL_FROM:
        return (
            f"no signal: {last['frac_reward_zero_std']:.0%} of groups have equal rewards (rule: {_NO_SIGNAL_FROM:.0%} or more)"
        )
    if last.get("val_kl_exact", 0.0) >= _DIVERGED_FROM:
        return f"diverging: KL {last['val_kl_exact']:.1f} from the start (rule: {_DIVERGED_FROM:g} or more)"
    changed = last.get("picks_changed")
    if changed == 0:
        return f"policy did not move: 0 of {n_validation} queries changed their picks (rule: none)"
    before = last["expected_reward_start"]
    gain = best["expected_reward"] - before
    moved = "" if changed is None else f"; {round(changed * n_validation)} of {n_validation} queries changed their picks"
    where = f"expected reward {before:.4f} to {best['expected_reward']:.4f} at epoch {best_epoch}{moved}"
    if gain >= _LEAST_GAIN:
        return f"learning: {where} (rule: a gain of {_LEAST_GAIN:g} or more)"
    return f"not learning: {where} (rule: a gain below {_LEAST_GAIN:g})"
