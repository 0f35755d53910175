"""Times an epoch of training against the plain way, and measures how time and memory grow up to 100,000 queries.

The plain way is the predecessor's: each step has one query, and the encoder runs once for every pointer of the group. Both
sides train the same selector from the same weights, on the same queries in the same order, in this process. At batch 1 they
take the same optimiser steps, and the mean losses must agree to 1e-5. There are 640 queries with pools of 64 and 12 pointers
of 2 shots, and 512 feature dimensions.

    python -m benchmarks.training [--queries 640] [--growth 10000,30000,100000] [--device cuda]
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from torch.nn import functional as F

from lever_mlflow.selector.network import PointerSelector
from lever_mlflow.settings import GrpoSettings, RceSettings, preset_of
from lever_mlflow.training.batches import tabulate
from lever_mlflow.training.filters import split_groups
from lever_mlflow.training.grpo import train_grpo
from lever_mlflow.training.objectives import group_advantages, grpo_loss, rce_loss, rce_temperature
from lever_mlflow.training.rce import train_rce
from lever_mlflow.trials.rewards import DEFAULT_REWARD
from lever_mlflow.trials.rl_data import Group, RLData, Trial

POOL_SIZE, POINTERS, SHOTS, DIM, SEED = 64, 12, 2, 512, 0
ITEMS = 9009
VAL_SHARE = 1e-6  # one validation query, so that nearly all of an epoch is training
RCE = RceSettings(epochs=1, val_share=VAL_SHARE)
GRPO = replace(preset_of(GrpoSettings, "predecessor"), epochs=1, val_share=VAL_SHARE)


class EpochTime(NamedTuple):
    """Holds how long an epoch took: the training, the side, its batch size, seconds, times as fast as plain, the mean loss."""

    training: str
    side: str
    batch: int
    seconds: float
    times: float
    loss: float


def make_data(n_queries: int) -> RLData:
    """Makes groups with random pointers and rewards; the queries are the training items in turn, over and over."""
    rng = np.random.default_rng(SEED)
    groups = []
    for query in range(n_queries):
        firsts = rng.choice(POOL_SIZE, POINTERS, replace=False).tolist()
        accuracies = rng.choice([0.0, 0.0, 0.6, 1.0], POINTERS).tolist()
        trials = tuple(
            Trial((first, (first + 1 + i) % POOL_SIZE), float(accuracy > 0), accuracy, "random")
            for i, (first, accuracy) in enumerate(zip(firsts, accuracies, strict=True))
        )
        groups.append(Group(query % ITEMS, tuple(rng.choice(ITEMS, POOL_SIZE, replace=False).tolist()), trials))
    return RLData(tuple(groups), "benchmark", "pools", {}, {}, "benchmark")


def make_features(folder: Path) -> np.ndarray:
    """Makes random unit vectors, memory-mapped, [items, 512]."""
    features_SD = np.random.default_rng(SEED).standard_normal((ITEMS, DIM)).astype(np.float32)
    np.save(folder / "features.npy", features_SD / np.linalg.norm(features_SD, axis=1, keepdims=True))
    return np.asarray(np.load(folder / "features.npy", mmap_mode="r"))


def plain_logprob(
    selector: PointerSelector, query_D: torch.Tensor, candidates_ND: torch.Tensor, pointer: list[int]
) -> torch.Tensor:
    """Returns the log-prob of one pointer, from an encoder pass for it alone."""
    encoding = selector.encode(query_D[None], candidates_ND[None])
    device = query_D.device
    logits_N = selector.pick_logits(encoding, torch.empty(1, 1, 0, dtype=torch.long, device=device))[0, 0]
    total = torch.zeros((), device=device)
    for pick in pointer:
        total = total + F.log_softmax(logits_N, dim=-1)[pick]
        logits_N = logits_N.index_fill(0, torch.tensor([pick], device=device), -100.0)
    return total


def plain_loss(
    selector: PointerSelector, start: PointerSelector | None, group: Group, features_SD: np.ndarray, progress: float
) -> torch.Tensor:
    """Returns the loss of one group: GRPO's against ``start``, or RCE's where there is none."""
    device = next(selector.parameters()).device
    query_D = torch.from_numpy(np.array(features_SD[group.query_id])).to(device)
    candidates_ND = torch.from_numpy(features_SD[list(group.pool)]).to(device)
    rewards_BG = torch.tensor([[trial.correct + trial.accuracy for trial in group.trials]], device=device)
    logprobs_G = [plain_logprob(selector, query_D, candidates_ND, list(trial.pointer)) for trial in group.trials]
    logprobs_BG = torch.stack(logprobs_G)[None]
    if start is None:
        temperature = rce_temperature(progress, RCE.temperature_start, RCE.temperature_end)
        return rce_loss(logprobs_BG, rewards_BG, temperature).loss
    with torch.no_grad():
        start_G = [plain_logprob(start, query_D, candidates_ND, list(trial.pointer)) for trial in group.trials]
    advantages_BG = group_advantages(rewards_BG)
    return grpo_loss(logprobs_BG, torch.stack(start_G)[None], advantages_BG, GRPO.kl_beta, GRPO.epsilon).loss


def plain_epoch(data: RLData, features_SD: np.ndarray, start: PointerSelector | None, device: str) -> tuple[float, list[float]]:
    """Trains one epoch the plain way; returns its seconds and the loss of each step."""
    torch.manual_seed(SEED)
    selector = PointerSelector(feature_dim=DIM).to(device)
    if start is not None:
        selector.load_state_dict(start.state_dict())
        selector.freeze_backbone()
    trainable = [parameter for parameter in selector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=RCE.lr if start is None else GRPO.lr)
    groups, _ = split_groups(data.groups, VAL_SHARE, SEED)
    order = np.random.default_rng([SEED, 1]).permutation(len(groups))  # as in the first epoch of a training
    losses = []
    started = time.perf_counter()
    for i, row in enumerate(order):
        loss = plain_loss(selector, start, groups[row], features_SD, i / (len(groups) - 1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, GRPO.grad_clip)
        optimizer.step()
        losses.append(loss.item())
    return time.perf_counter() - started, losses


def project_epoch(
    data: RLData, features_SD: np.ndarray, start: PointerSelector | None, batch_size: int, device: str
) -> tuple[float, float]:
    """Trains one epoch as this project does; returns its seconds and its mean loss."""
    if start is None:
        epoch = next(train_rce(data, features_SD, replace(RCE, batch_size=batch_size), seed=SEED, device=device))
    else:
        epoch = next(train_grpo(start, data, features_SD, replace(GRPO, batch_size=batch_size), seed=SEED, device=device))
    return epoch.metrics["train/seconds"], epoch.metrics["train/loss"]


def compare_with_plain(data: RLData, features_SD: np.ndarray, device: str) -> Iterator[EpochTime]:
    """Yields how long an epoch takes the plain way and in this project, and its mean loss."""
    torch.manual_seed(SEED)
    for kind, start in (("RCE", None), ("GRPO", PointerSelector(feature_dim=DIM).eval().to(device))):
        plain_seconds, plain_losses = plain_epoch(data, features_SD, start, device)
        yield EpochTime(kind, "plain", 1, plain_seconds, 1.0, float(np.mean(plain_losses)))
        for batch_size in (1, 8, 32):
            seconds, loss = project_epoch(data, features_SD, start, batch_size, device)
            yield EpochTime(kind, "this project", batch_size, seconds, plain_seconds / seconds, loss)


def difference_of_losses(plain: EpochTime, ours: EpochTime) -> float:
    """Returns the difference of the mean losses of both sides of one training at batch 1, where they take the same steps."""
    assert (plain.training, plain.side, ours.batch) == (ours.training, "plain", 1)
    return abs(plain.loss - ours.loss)


def print_comparison(data: RLData, features_SD: np.ndarray, device: str) -> None:
    """Prints the table of ``compare_with_plain``, and checks that the losses agree."""
    print(f"{device}, {torch.get_num_threads()} threads\n")
    print("| training | side | batch | seconds | times as fast | mean loss |\n|---|---|---|---|---|---|")
    rows = []
    for row in compare_with_plain(data, features_SD, device):
        rows.append(row)
        training, side, batch, seconds, times, loss = row
        print(f"| {training} | {side} | {batch} | {seconds:.2f} | {times:.1f} | {loss:.6f} |", flush=True)
    for plain, ours in pairwise(rows):
        assert ours.batch > 1 or ours.side == "plain" or difference_of_losses(plain, ours) <= 1e-5, f"losses differ: {ours}"


def measure_growth(sizes: list[int], features_SD: np.ndarray, device: str) -> None:
    """Prints the time of an RCE epoch, and the peak memory of this process, at growing numbers of queries."""
    print("\n| queries | table, s | epoch at batch 32, s | per 1,000 queries, s | peak memory, GB |")
    print("|---|---|---|---|---|")
    for n_queries in sizes:
        data = make_data(n_queries)
        started = time.perf_counter()
        tabulate(data.groups, features_SD, DEFAULT_REWARD)
        table_seconds = time.perf_counter() - started
        seconds, _ = project_epoch(data, features_SD, None, 32, device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"| {n_queries:,} | {table_seconds:.1f} | {seconds:.1f} | {1000 * seconds / n_queries:.2f} | {peak:.2f} |")


@click.command()
@click.option("--queries", default=640, show_default=True, help="Number of training queries of the comparison.")
@click.option(
    "--growth",
    default="10000,30000,100000",
    show_default=True,
    help="Numbers of queries, separated by commas, at which time and memory are measured. An empty text skips this.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Device to train on.")
def main(queries: int, growth: str, device: str) -> None:
    """Compares an epoch with the plain way, and measures how time and memory grow."""
    with tempfile.TemporaryDirectory() as folder:
        features_SD = make_features(Path(folder))
        print_comparison(make_data(queries + 1), features_SD, device)
        if growth:
            measure_growth([int(size) for size in growth.split(",")], features_SD, device)


if __name__ == "__main__":
    main()
