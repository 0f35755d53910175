"""Reads RL data files, which are JSON or Parquet.

There are four vintages of the format, which the fields of a query and its trials tell apart. All are read, and the newest
is written:

* ``pools``: the query has ``candidate_pool_ids``; a trial's ``pointer`` holds positions in it, and ``pointer_global`` holds
  train indices;
* ``pointers``: the query has no pool; ``pointer`` holds train indices, and so does ``pointer_pos`` where it is there and equal;
* the same with a ``pointer_pos`` that differs, as Lever-Plus v4 wrote it: it holds positions in a pool that is not recorded;
* ``pointer_pos``: the query has no pool; ``pointer_pos`` holds train indices.

A query without a pool gets the sorted set of all indices that its pointers name as its pool.

A file is read query by query, into columns. By default a trial keeps only what training needs.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lever_mlflow.exceptions import DataError
from lever_mlflow.files.strict_json import iterate_object
from lever_mlflow.files.text import looked_for
from lever_mlflow.trials.canonical import CANONICAL
from lever_mlflow.trials.columns import ColumnsBuilder, GroupColumns
from lever_mlflow.trials.digests import QueryDigests
from lever_mlflow.trials.fields import finite_number, positions_in_pool, shown, train_indices, whole_numbers
from lever_mlflow.trials.ordinary import EVAL_MODES, UNKNOWN_METHOD, ordinary_trials
from lever_mlflow.trials.parquet import agreed, entries, is_parquet, parquet_files, read_meta, tables
from lever_mlflow.trials.parquet_columns import OrdinaryTable, ordinary_table
from lever_mlflow.trials.rl_data import POOL_IDS, POOL_QUESTION_IDS, Group, RLData, Trial
from lever_mlflow.trials.stored import StoredGroups

__all__ = ["load_rl_data"]

_TRAIN_INDEX = re.compile("0|[1-9][0-9]{0,17}")  # an index has one spelling and fits 64 bits
_DIGEST_CHARS = 32  # MLflow accepts at most 36
_QUERY_IDS = ("question_id", "image_id")
_NO_QUERIES = "no queries; run the rollout step to make RL data"


def load_rl_data(
    path: str | Path,
    *,
    use_fallback: bool = False,
    keep_records: bool = False,
    keep_dropped: bool = False,
    held: bool = True,
    source: str | None = None,
) -> RLData:
    """Reads one RL data file, or a folder of Parquet files whose queries are different ones.

    Trials whose evaluation failed (``eval_failed``, or mode ``error``) are dropped and counted. So are the trials of queries
    without a pool in a file whose other queries have one.

    Args:
        path: the file or the folder.
        use_fallback: whether trials of mode ``fallback`` are used; they are dropped and counted otherwise.
        keep_records: whether trials and queries keep all fields of the file, so that they can be saved again. This takes
            several times the memory.
        keep_dropped: whether dropped trials, which are counted all the same, stay among the trials of their group.
        held: whether the groups are held in memory. Otherwise those of Parquet files are checked and counted, but stay in the
            files, from which they are read whenever they are gone through; JSON and whole records are always held.
        source: what to call the data where ``path`` is only a local copy of them; the path by default.

    Raises:
        DataError: the file is missing, truncated or not in one of the vintages; the message names the place.
    """
    path = Path(path)
    remedy = {"missing": "give rl_data=FILE or run the rollout step", "damaged": "copy it again or run the rollout step"}
    reader = _Reader(path, use_fallback, keep_records, keep_dropped)
    if is_parquet(path):
        if not path.exists():
            raise DataError(f"{path}: no such file{looked_for(path)}; {remedy['missing']}")
        files = parquet_files(path)
        reader.meta = agreed([read_meta(file) for file in files])
        if not (held or keep_records or keep_dropped):
            return _stored(files, reader, source or str(path))
        for _ in reader.read_tables(files):
            pass
    else:
        for key, entry in iterate_object(path, **remedy):
            reader.read(key, entry)
    groups = reader.finish()
    if not len(groups):
        raise DataError(f"{path}: {_NO_QUERIES}")
    return RLData(groups, reader.digest(), reader.vintage, reader.dropped(), reader.meta, source or str(path))


def _stored(files: Sequence[Path], reader: _Reader, source: str) -> RLData:
    """Reads Parquet files once to check and to count what they hold, and returns RL data that are read from them again."""
    n_trials: Counter[bool] = Counter()  # usable ones, of the queries with and of those without a pool
    for _ in reader.read_tables(files):
        for pooled in (True, False):
            n_trials[pooled] += reader.take(pooled).n_trials
    reader.check()
    pooled, n_queries = reader.has_pools, reader.n_queries

    def blocks() -> Iterator[GroupColumns]:
        again = _Reader(files[0], reader.use_fallback, keep_records=False, keep_dropped=False, known=True)
        columns = (again.take(pooled) for _ in again.read_tables(files))
        return (block for block in columns if len(block))

    if not n_queries:
        raise DataError(f"{source}: {_NO_QUERIES}")
    groups = StoredGroups(files, blocks, n_queries, n_trials[pooled])
    return RLData(groups, reader.digest(), reader.vintage, reader.dropped(), reader.meta, source)


@dataclass
class _Queries:
    """Holds the queries of one kind: those that have a pool, or those that have none.

    Attributes:
        columns: the queries with their trials, those that were not taken yet.
        n_queries: number of queries, those that were taken included.
        n_trials: number of trials, dropped ones included.
        dropped: number of trials that are not used, by reason.
        error: what is wrong with the first query that cannot be read.
    """

    columns: ColumnsBuilder
    n_queries: int = 0
    n_trials: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    error: DataError | None = None


class _Reader:
    """Collects the queries and trials of a JSON file in columns, query by query.

    The trials of an ordinary query are read all at once (``ordinary_trials``). Where anything else is in a query, such as an
    error, its trials are read one by one, which takes several times as long and tells the place.

    The reader keeps the key and the digest of each query. It does not where the files are ``known``, as they were read before.
    """

    def __init__(self, path: Path, use_fallback: bool, keep_records: bool, keep_dropped: bool, *, known: bool = False) -> None:
        self.path, self.use_fallback, self.keep_records, self.keep_dropped = path, use_fallback, keep_records, keep_dropped
        self.known, self._in_folder = known, False
        self.meta: dict[str, Any] = {}
        self._with_pool, self._without_pool = (_Queries(ColumnsBuilder(keep_records)) for _ in range(2))
        self._pointer_field = ""  # of queries without a pool, as the first of them tells it
        self._digests = QueryDigests()
        self._fallback_used = False

    @property
    def has_pools(self) -> bool:
        """Returns whether a query has a pool; those without one are not used then."""
        return self._with_pool.n_queries > 0

    @property
    def n_queries(self) -> int:
        """Returns the number of queries that are used."""
        return (self._with_pool if self.has_pools else self._without_pool).n_queries

    @property
    def vintage(self) -> str:
        """Returns the vintage of the queries that were read."""
        if self.has_pools:
            return "pools"
        return "pointer_pos" if self._pointer_field == "pointer_pos" else "pointers"

    def dropped(self) -> dict[str, int]:
        """Returns the number of trials that are not used, by reason."""
        if not self.has_pools:
            return dict(self._without_pool.dropped)
        without_pool = {"no_pool": self._without_pool.n_trials} if self._without_pool.n_trials else {}
        return {**self._with_pool.dropped, **without_pool}

    def digest(self) -> str:
        """Returns the digest of the canonical JSON of all queries, in the order of their keys."""
        return self._digests.total(b"fallback used" if self._fallback_used else b"")[:_DIGEST_CHARS]

    def read_tables(self, files: Sequence[Path]) -> Iterator[None]:
        """Reads Parquet files, and pauses after some thousand trials; errors as ``read``.

        Ordinary tables are read column by column, unless records or dropped trials are kept.
        """
        columnwise = not (self.keep_records or self.keep_dropped)
        self._in_folder = len(files) > 1
        for self.path in files:
            for first_row, table in tables(self.path):
                ordinary = ordinary_table(table, self.use_fallback, not self.known) if columnwise else None
                if ordinary is not None:
                    self._add_table(ordinary, first_row)
                else:
                    for row, key, entry in entries(self.path, table, first_row):
                        self.read(key, entry, row)
                yield

    def take(self, with_pool: bool) -> GroupColumns:
        """Returns the queries of one kind that were read since they were last taken, which the reader holds no longer."""
        queries = self._with_pool if with_pool else self._without_pool
        columns, queries.columns = queries.columns, ColumnsBuilder(self.keep_records)
        return columns.columns()

    def _add_table(self, table: OrdinaryTable, first_row: int) -> None:
        """Adds the queries of a table, of which the first stands in the given row of the file; errors as ``read``."""
        for query_id, digest in zip(table.columns.query_ids_Q.tolist(), table.digests, strict=not self.known):
            self._check_new(query_id, first_row)
            self._digests.add(query_id, digest)
        self._with_pool.columns.extend(table.columns)
        self._with_pool.n_queries += len(table.columns)
        self._with_pool.n_trials += table.n_trials
        self._with_pool.dropped.update(table.dropped)
        self._fallback_used |= table.fallback_used

    def _check_new(self, key: int, row: int) -> None:
        if key in self._digests:
            if self._in_folder:
                raise DataError(
                    f"{self.path}: query {key} (row {row} or later) stands in another file of the folder too, or in other rows "
                    "of this file; remove one of the two"
                )
            raise DataError(
                f"{self.path}: query {key} has trials in rows that do not stand together (from row {row} on); sort the rows by "
                "train_index"
            )

    def read(self, key: str, entry: Any, row: int | None = None) -> None:
        """Adds one entry of the file. An error in the trials of a query without a pool waits, as such queries may be dropped.

        ``row`` is the row in which the entry begins, in a file that has rows.

        Raises:
            DataError: it is not a query of one of the vintages; the message names the place.
        """
        if key == "_meta":
            if not isinstance(entry, dict):
                kind = type(entry).__name__
                raise DataError(f"{self.path}: _meta holds a JSON {kind}, expected an object; correct or remove it")
            self.meta = entry
            return
        if row is not None:
            self._check_new(int(key), row)
        place = f"{self.path}: {'' if row is None else f'rows from {row} on: '}query {key[:40]!r}"
        try:
            _check_form(key, entry)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        queries = self._with_pool if POOL_IDS in entry else self._without_pool
        queries.n_queries += 1
        queries.n_trials += len(entry["pointer_candidates"])
        try:
            self._add(key, entry, queries)
        except DataError as error:
            located = DataError(f"{place}: {error}")
            if queries is self._with_pool:
                raise located from None
            queries.error = queries.error or located
        if not self.known:
            self._digests.add(int(key), hashlib.sha256(CANONICAL.encode(entry).encode()).digest())

    def check(self) -> None:
        """Checks that the queries can be used, after all were read.

        Raises:
            DataError: no query has a pool, and one of them cannot be read.
        """
        if not self.has_pools and self._without_pool.error:
            raise self._without_pool.error

    def finish(self) -> GroupColumns:
        """Returns the queries with a pool, or where none has one, all queries, ordered by train index; errors as ``check``."""
        self.check()
        return self.take(self.has_pools).in_order()

    def _add(self, key: str, entry: Mapping[str, Any], queries: _Queries) -> None:
        """Adds a query with its usable trials to the columns, and counts the others."""
        records, pool = entry["pointer_candidates"], entry.get(POOL_IDS)
        trials = ordinary_trials(records, pool)
        if pool is None or trials is None:
            queries.columns.add(self._group(key, entry, queries))
            return
        queries.columns.add_query(int(key), pool, self._query(entry), self._pool_question_ids(entry, pool))
        queries.columns.add_trials(trials, records)

    def _group(self, key: str, entry: Mapping[str, Any], queries: _Queries) -> Group:
        """Returns a query with its usable trials, and counts the others."""
        records = entry["pointer_candidates"]
        query = self._query(entry)
        pointers, pool = self._pointers(entry, records)
        if min(pool, default=0) < 0:
            raise DataError(f"the pool holds {min(pool)}, which is not a train index; run the rollout step again")
        trials = []
        for i, (record, pointer) in enumerate(zip(records, pointers, strict=True)):
            try:
                trial = self._trial(record, pointer, queries)
            except DataError as error:
                raise DataError(f"trial {i}: {error}") from None
            if trial is not None:
                trials.append(trial)
        return Group(int(key), pool, tuple(trials), query, self._pool_question_ids(entry, pool))

    def _query(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields that describe the query, or only its ids where the reader drops records."""
        query = entry.get("query", {})
        return query if self.keep_records else {name: query[name] for name in _QUERY_IDS if name in query}

    def _pool_question_ids(self, entry: Mapping[str, Any], pool: Sequence[int]) -> tuple[int, ...] | None:
        if POOL_QUESTION_IDS not in entry:
            return None
        ids = whole_numbers(POOL_QUESTION_IDS, entry[POOL_QUESTION_IDS])
        if len(ids) != len(pool):
            raise DataError(f"{POOL_QUESTION_IDS} holds {len(ids)} ids for {len(pool)} candidates; run the rollout step again")
        return ids

    def _pointers(
        self, entry: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
    ) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
        """Returns the pointers of all trials as positions in the pool, and the pool as train indices."""
        has_pool = POOL_IDS in entry
        pool = whole_numbers(POOL_IDS, entry[POOL_IDS]) if has_pool else ()
        if not has_pool and records:
            self._pointer_field = self._pointer_field or ("pointer" if "pointer" in records[0] else "pointer_pos")
        items: dict[int, int] = {}  # of the unknown pool
        pointers = []
        for i, record in enumerate(records):
            try:
                pointers.append(
                    positions_in_pool(record, pool) if has_pool else train_indices(record, self._pointer_field, items)
                )
            except DataError as error:
                raise DataError(f"trial {i}: {error}") from None
        if not has_pool:
            pool = tuple(sorted({index for pointer in pointers for index in pointer}))
            position = {index: i for i, index in enumerate(pool)}
            pointers = [tuple(position[index] for index in pointer) for pointer in pointers]
        return pointers, pool

    def _trial(self, record: Mapping[str, Any], pointer: tuple[int, ...], queries: _Queries) -> Trial | None:
        """Returns a trial, or None where it is dropped.

        That is decided before its scores are read, because a trial whose evaluation failed need not have any.
        """
        failed, mode = record.get("eval_failed", False), record.get("vqa_eval_mode", "vqaEval")
        if not isinstance(failed, bool):
            raise DataError(f"eval_failed is {shown(failed)}, expected true or false")
        if mode not in EVAL_MODES:
            raise DataError(f"vqa_eval_mode is {shown(mode)}, expected one of {', '.join(EVAL_MODES)}")
        method = record.get("gen_method")
        if not isinstance(method, str | None):
            raise DataError(f"gen_method is {shown(method)}, expected a name")
        if failed or mode == "error" or (mode == "fallback" and not self.use_fallback):
            queries.dropped["eval_failed" if failed else mode] += 1
            if not self.keep_dropped:
                return None
        else:
            self._fallback_used |= mode == "fallback"
        scored = not failed and mode != "error"
        gt_prob, rel_score = record.get("vqa_gt_prob"), record.get("vqa_rel_score")
        return Trial(
            pointer=pointer,
            correct=finite_number("vqa_correct", record.get("vqa_correct") if scored else 0),
            accuracy=finite_number("vqa_acc_score", record.get("vqa_acc_score") if scored else 0),
            gen_method=method or UNKNOWN_METHOD,
            eval_mode=mode,
            eval_failed=failed,
            gt_prob=None if gt_prob is None else finite_number("vqa_gt_prob", gt_prob),
            rel_score=None if rel_score is None else finite_number("vqa_rel_score", rel_score),
            record=record if self.keep_records else None,
        )


def _check_form(key: str, entry: Any) -> None:
    """Checks that an entry has the form of a query, whatever its trials hold."""
    records = entry.get("pointer_candidates") if isinstance(entry, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError("pointer_candidates is not a list of trials; run the rollout step again")
    if not _TRAIN_INDEX.fullmatch(key):
        raise DataError("the key is not a train index; use the item's position in the questions file")
    query = entry.get("query", {})
    if not isinstance(query, dict):
        raise DataError(f"query is not an object but {shown(query)}; run the rollout step again")
    for name in _QUERY_IDS:
        if name in query and type(query[name]) is not int:
            raise DataError(f"{name} is {shown(query[name])}, expected a whole number")
