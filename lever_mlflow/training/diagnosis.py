"""Says in words how a training run went, by rules over its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["diagnose", "no_longer_rising", "taught_nothing"]

_NO_SIGNAL_FROM = 0.95  # share of groups with equal rewards: at most one group in twenty teaches anything
_DIVERGED_FROM = 1.0  # exact KL in nats: a pointer of the start is e times less probable under the policy, in geometric mean
_LEAST_GAIN = 1e-3  # of expected reward, in units of the reward
_FLAT, _CHANGED = "train/frac_reward_zero_std", "val/picks_changed"


def diagnose(history: Sequence[dict[str, float]], n_validation: int, best_epoch: int) -> str:
    """Returns one line about a training, by the first of these rules that holds.

    * ``no signal``: 95 % of the training groups or more have equal rewards;
    * ``diverging``: after the last epoch, the exact KL from the start is 1 nat or more on validation queries (GRPO only);
    * ``policy did not move``: after the last epoch, all validation queries have the greedy picks of the start (GRPO only);
    * ``learning``: the expected reward of the best epoch exceeds that of the start by 0.001 or more, where RCE starts from the
      untrained selector;
    * ``not learning`` otherwise.

    Args:
        history: the metrics of each epoch; there is at least one epoch.
        n_validation: number of validation queries.
        best_epoch: number of the best epoch, from 1.
    """
    last, best = history[-1], history[best_epoch - 1]
    if _no_signal(last):
        flat = last[_FLAT]
        return f"no signal: {flat:.0%} of groups have equal rewards (rule: {_NO_SIGNAL_FROM:.0%} or more)"
    if last.get("val/kl_exact", 0.0) >= _DIVERGED_FROM:
        return f"diverging: KL {last['val/kl_exact']:.1f} from the start (rule: {_DIVERGED_FROM:g} or more)"
    changed = last.get(_CHANGED)
    if _did_not_move(last):
        return f"policy did not move: 0 of {n_validation} queries changed their picks (rule: none)"
    start_reward, best_reward = last["val/expected_reward_start"], best["val/expected_reward"]
    picks = "" if changed is None else f"; {round(changed * n_validation)} of {n_validation} queries changed their picks"
    facts = f"expected reward {start_reward:.4f} to {best_reward:.4f} at epoch {best_epoch}{picks}"
    if best_reward - start_reward >= _LEAST_GAIN:
        return f"learning: {facts} (rule: a gain of {_LEAST_GAIN:g} or more)"
    return f"not learning: {facts} (rule: a gain below {_LEAST_GAIN:g})"


def taught_nothing(last: Mapping[str, float]) -> str:
    """Says why a training taught its policy nothing, by the rules ``no signal`` and ``policy did not move``.

    Args:
        last: the metrics of the training's last epoch.

    Returns:
        The reason, or an empty text where neither rule holds.
    """
    if _no_signal(last):
        return f"the training found no signal, as {last[_FLAT]:.0%} of its groups have equal rewards"
    return "the training changed no picks on its validation queries" if _did_not_move(last) else ""


def no_longer_rising(values: Sequence[float], patience: int) -> bool:
    """Tells whether the last ``patience`` values are none of them higher than all before; never if ``patience`` is 0."""
    return bool(patience) and len(values) > patience and max(values[-patience:]) <= max(values[:-patience])


def _no_signal(last: Mapping[str, float]) -> bool:
    return last.get(_FLAT, 0.0) >= _NO_SIGNAL_FROM


def _did_not_move(last: Mapping[str, float]) -> bool:
    return last.get(_CHANGED) == 0
