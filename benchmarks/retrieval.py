"""Compares the similarity search ``candidate_pools.nearest`` with plain search: a matrix of all scores and a full sort.

Both search a memory-mapped file of 1,000,000 items of 512 float32, 2 GB in a temporary folder. The features are small whole
numbers, so that every sum is exact and many scores are equal: both sides must find the same items in the same order. Plain
search takes the queries 32 at a time, or its matrices would not fit. The memory is what NumPy allocates, without the pages of
the mapped file, which the system drops when it needs to.

    python -m benchmarks.retrieval [--items 1000000] [--queries 256]
"""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from lever_mlflow.data.candidate_pools import nearest

DIM, K, SEED, BLOCK = 512, 64, 0, 32


def make_items(path: Path, count: int) -> np.ndarray:
    """Writes items [S, D] of whole numbers from -8 to 8 to a file, slice by slice, and returns them memory-mapped."""
    rng = np.random.default_rng(SEED)
    items_SD = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, DIM))
    for start in range(0, count, 10_000):
        rows = min(10_000, count - start)
        items_SD[start : start + rows] = rng.integers(-8, 9, (rows, DIM), dtype=np.int8)
    items_SD.flush()
    return np.asarray(np.load(path, mmap_mode="r"))


def plain(queries_QD: np.ndarray, items_SD: np.ndarray) -> np.ndarray:
    """Finds the nearest items by a stable sort of all scores of a query, without the query itself."""
    parts = []
    for start in range(0, len(queries_QD), BLOCK):
        scores_BS = queries_QD[start : start + BLOCK] @ items_SD.T
        rows = np.arange(len(scores_BS))
        scores_BS[rows, start + rows] = -np.inf
        parts.append(np.argsort(-scores_BS, axis=1, kind="stable")[:, :K])
    return np.concatenate(parts)


def exact(queries_QD: np.ndarray, items_SD: np.ndarray) -> np.ndarray:
    """Finds the same items by ``nearest``."""
    return nearest(queries_QD, items_SD, K, list(np.arange(len(queries_QD))[:, None]))


class Search(NamedTuple):
    """Holds what a search found, its seconds, and the peak of allocated memory in GB."""

    items_QK: np.ndarray
    seconds: float
    peak: float


def measurement(search: Callable[[np.ndarray, np.ndarray], np.ndarray], *inputs: np.ndarray) -> Search:
    """Runs a search."""
    tracemalloc.start()
    started = time.perf_counter()
    result = search(*inputs)
    seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Search(result, seconds, peak / 1e9)


def compare(items: int, queries: int) -> tuple[Search, Search]:
    """Returns the plain search and ours, which must find the same items."""
    with tempfile.TemporaryDirectory() as folder:
        items_SD = make_items(Path(folder) / "items.npy", items)
        queries_QD = np.array(items_SD[:queries])
        expected, actual = measurement(plain, queries_QD, items_SD), measurement(exact, queries_QD, items_SD)
    assert np.array_equal(actual.items_QK, expected.items_QK), "the sides find different items"
    return expected, actual


@click.command()
@click.option("--items", default=1_000_000, show_default=True, help="Number of items to search.")
@click.option("--queries", default=256, show_default=True, help="Number of queries.")
def main(items: int, queries: int) -> None:
    """Compares time and memory of the plain search and of ours."""
    expected, actual = compare(items, queries)
    print(f"{items:,} items of {DIM}, {queries} queries, {K} nearest each\n")
    print("| side | seconds | times as fast | peak memory, GB |\n|---|---|---|---|")
    for side, search in (("plain", expected), ("nearest", actual)):
        print(f"| {side} | {search.seconds:.1f} | {expected.seconds / search.seconds:.1f} | {search.peak:.2f} |")


if __name__ == "__main__":
    main()
