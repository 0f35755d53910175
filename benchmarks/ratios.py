"""Runs all benchmarks at a small size, and prints one table of their ratios with a target beside each.

A ratio compares the project with a named baseline that is measured in the same run, so it says the same on a slower machine.
The parts run one after the other, each in its own process. They take about ten minutes on two idle cores together. Other work
on the machine makes ratios of times worse, so run nothing else meanwhile. The targets leave room for the small size: most
ratios are better at the sizes of docs/performance.md, which the scripts of the parts measure.

    python -m benchmarks.ratios [--parts gate,training] [--page docs/performance.md]
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import click

from benchmarks.figures import HEAD, Figure, at_least, at_most, chosen_parts, failed, figures_or_failure, print_table

# Scripts are imported by the part that needs them, as each part has its own process.

START, END = "<!-- made by make bench -->", "<!-- end of what make bench made -->"


def gate() -> Iterator[Figure]:
    """Yields what the data gate costs beside a plain pandas computation of the same figures."""
    from benchmarks.data_gate import compare

    trials, part = 200_000, "data gate"
    results = compare(trials, None)
    pandas = results["pandas, JSON"]
    for side, time, memory in (("gate, JSON", 1.5, 1.0), ("gate, Parquet", 1.0, 1.0), ("gate by SQL, Parquet", 1.7, 0.8)):
        what = f"{side}: time of {trials:,} trials, times that of json.load with pandas"
        yield at_most(part, what, results[side]["seconds"] / pandas["seconds"], time, ".2f")
        what = f"{side}: peak memory of {trials:,} trials, times that of json.load with pandas"
        yield at_most(part, what, results[side]["peak_gb"] / pandas["peak_gb"], memory, ".2f")


def retrieval() -> Iterator[Figure]:
    """Yields how fast similarity search is beside a matrix of all scores and a full sort."""
    from benchmarks.retrieval import compare

    plain, ours = compare(200_000, 128)
    yield at_least("similarity search", "times as fast as a full sort, 200,000 items", plain.seconds / ours.seconds, 4, ".1f")
    yield at_most("similarity search", "memory, share of that of a full sort", ours.peak / plain.peak, 0.25, ".2f")


def evaluation() -> Iterator[Figure]:
    """Yields how fast the evaluation grid is answered beside one prompt at a time."""
    from benchmarks.evaluation_grid import make_grid
    from lever_mlflow import mini
    from lever_mlflow.vlm.profiles import PROFILES
    from lever_mlflow.vlm.qwen import QwenVLM

    profile, grid = PROFILES["mini"], make_grid([5, 10, 20, 40])
    first, *_, batches, last = grid.ways(profile, QwenVLM(mini.VLM_PATH, "digest", profile))
    part = f"evaluation, {len(grid.cells):,} prompts"
    yield at_least(part, "times as fast as one prompt at a time, each cell anew", first.seconds / last.seconds, 15, ".1f")
    yield at_least(part, "times as fast as plain batches of equal prompts once", batches.seconds / last.seconds, 1.2, ".1f")


def generation() -> Iterator[Figure]:
    """Yields how fast the embedded VLM answers beside plain generation, and with one thread."""
    from benchmarks.generation import measurements, model_and_samples

    with tempfile.TemporaryDirectory() as folder:
        vlm, samples = model_and_samples(Path(folder), "embedded", "cpu")
        for row in measurements(vlm, samples, n_prompts=200, n_plain=40, repeats=3):
            part = f"generation, {row.shots} shots"
            yield at_least(part, "times as fast as one prompt at a time", row.ours / row.plain, 4, ".1f")
            if row.alone is not None and (os.cpu_count() or 1) > 1:
                yield at_least(part, "times as fast as with one thread", row.alone, 1.3, ".2f")


def training() -> Iterator[Figure]:
    """Yields how fast an epoch of training is beside one query and one pointer at a time."""
    from benchmarks.training import compare_with_plain, difference_of_losses, make_data, make_features

    queries, plain = 160, None
    with tempfile.TemporaryDirectory() as folder:
        for row in compare_with_plain(make_data(queries + 1), make_features(Path(folder)), "cpu"):
            part = f"{row.training}, {queries} queries"
            if row.side == "plain":
                plain = row
                continue
            target = 3 if row.batch == 1 else 8
            yield at_least(part, f"batch {row.batch}: times as fast as pointer by pointer", row.times, target, ".1f")
            if row.batch == 1 and plain is not None:
                difference = difference_of_losses(plain, row)
                yield at_most(part, "batch 1: difference of the mean losses", difference, 1e-5, ".1e")


def logging() -> Iterator[Figure]:
    """Yields what logging costs beside an epoch of training."""
    from benchmarks.logging_share import measure

    with tempfile.TemporaryDirectory() as folder:
        for epoch, target in zip(measure(Path(folder), queries=640, epochs=3), (0.1, 0.4), strict=True):
            share = sum(epoch.logging.values()) / epoch.training
            yield at_most("logging", f"{epoch.name}: share of an epoch of 640 queries", share, target, ".1%")


def threads() -> Iterator[Figure]:
    """Yields what waiting passively brings to training beside other work."""
    from benchmarks.threads import ACTIVE, PASSIVE, TRAININGS, epoch_seconds

    seconds = epoch_seconds(burners=1, queries=320, repeats=3)
    for name in TRAININGS:
        ratio = statistics.median(seconds[PASSIVE][name]) / statistics.median(seconds[ACTIVE][name])
        yield at_most("threads", f"{name} beside one busy process: time, times that of active waiting", ratio, 0.8, ".2f")


def comparison() -> Iterator[Figure]:
    """Yields how fast the statistics of a comparison are beside scipy's."""
    from benchmarks.comparison import differences, synthetic_results, time_statistics

    _, records = synthetic_results(runs=10, questions=800)
    ours, scipy = time_statistics(differences(records, 800))
    yield at_least("comparison", "interval and p-value, times as fast as scipy cell by cell", scipy / ours, 50, ".0f")


def starting() -> Iterator[Figure]:
    """Yields what commands cost that reuse finished runs."""
    from benchmarks.starting import BASELINE, MLFLOW_RUN, REUSED_MAIN, REUSED_ROLLOUT, measure

    seconds = {name: statistics.median(values) for name, values in measure(repeats=2).items()}
    part, baseline = "starting", seconds[BASELINE]
    for command, target in (("status", 2.2), (REUSED_ROLLOUT, 2.5), (REUSED_MAIN, 3.0)):
        yield at_most(
            part, f"{command}: processor time, times that of import mlflow", seconds[command] / baseline, target, ".1f"
        )
    for command, target in ((REUSED_ROLLOUT, 5.0), (REUSED_MAIN, 6.0)):
        what = f"mlflow run and {command}: seconds of processor time"
        yield at_most(part, what, seconds[MLFLOW_RUN] + seconds[command], target, ".1f")


def serving() -> Iterator[Figure]:
    """Yields what requests cost in their forms, and what many clients get, from a server with one thread of OpenMP."""
    os.environ["OMP_NUM_THREADS"] = "1"  # as docs/serving.md advises for single questions; the server takes it over
    from benchmarks.serving import FEATURES, IMAGES, rows_of
    from benchmarks.serving_forms import AS_TEXT, BASE64, HERE, LISTS, ROOT, ROWS, feature_rows, started, times_by_server
    from benchmarks.serving_load import load_test
    from lever_mlflow.files.cache_dir import default_cache_dir
    from lever_mlflow.pipeline.resources import Resources

    part, resources = "serving", Resources(cache_dir=default_cache_dir())
    rows, kinds = feature_rows(resources.features("val"), ROWS), rows_of(resources, 30)
    with started({HERE: ROOT}) as servers:
        images = [AS_TEXT.body([row]) for row in kinds[IMAGES]]
        one = times_by_server(servers, AS_TEXT, images, keep_alive=True, rounds=5)[HERE]
        yield at_most(part, "one question and image, p50 in ms", float(statistics.median(one.milliseconds)), 6.0, ".1f")
        by_form = {
            form: times_by_server(servers, form, [form.body(rows)], keep_alive=True, rounds=5)[HERE] for form in (LISTS, BASE64)
        }
        for form, times in by_form.items():
            what = f"{ROWS:,} rows of features as {form.name}, p50 in s"
            yield at_most(part, what, statistics.median(times.milliseconds) / 1e3, 0.7, ".2f")
        ratio = by_form[BASE64].processor / by_form[LISTS].processor
        yield at_most(part, f"{ROWS:,} rows as base64: processor time, times that of lists", ratio, 0.4, ".2f")
        for kind in (FEATURES, IMAGES):
            bodies = [AS_TEXT.body([row]) for row in kinds[kind]]
            alone, many = (load_test(servers[HERE], bodies, [], 0, clients, 15) for clients in (1, 64))
            what = f"64 clients, {kind}: requests per second, times those of one client"
            yield at_least(part, what, many.rate / alone.rate, 0.9, ".2f")
            growth = many.memory[-1] / many.memory[-2]
            yield at_most(part, f"64 clients, {kind}: memory at the end, times that of seconds before", growth, 1.02, ".3f")


PARTS: dict[str, Callable[[], Iterator[Figure]]] = {
    function.__name__: function
    for function in (gate, retrieval, evaluation, generation, training, logging, threads, comparison, starting, serving)
}


def measure(part: str) -> list[Figure]:
    """Returns the figures of a part."""
    return list(figures_or_failure(part, PARTS[part]))


def figures_of(parts: Sequence[str]) -> Iterator[Figure]:
    """Yields the figures of these parts, each of which is measured in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for figures in pool.map(measure, parts):
            yield from figures


def machine() -> str:
    """Returns a line that names the machine, the date and the versions."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "mlflow", "great-expectations"))
    return f"{datetime.now(UTC):%Y-%m-%d}, {len(os.sched_getaffinity(0))} cores ({platform.machine()}), {libraries}"


def write_page(page: Path, table: str) -> None:
    """Puts a table between the marks of a page.

    Raises:
        click.ClickException: the page does not have both marks, or has them in the wrong order.
    """
    text = page.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise click.ClickException(f"{page}: the table belongs between the lines {START} and {END}; add them")
    page.write_text(f"{before}{START}\n\n{table}\n\n{END}{after}", encoding="utf-8")


@click.command()
@click.option("--parts", default=",".join(PARTS), show_default=True, help="Names of the parts to run, separated by commas.")
@click.option(
    "--page",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Markdown page whose table is replaced by the new one.",
)
def main(parts: str, page: Path | None) -> None:
    """Runs the benchmarks, and prints the table."""
    names, line = chosen_parts(parts, PARTS), machine()
    print(f"{line}\n")
    figures = print_table(figures_of(names))
    if page:
        write_page(page, "\n".join([f"{line}:", "", HEAD, *(figure.row() for figure in figures)]))
    sys.exit(int(failed(figures)))


if __name__ == "__main__":
    main()
