"""Merges the rows of one source: its spans and captions, wherever they are listed.

The rows of a source may be anywhere in lists of any size. They are kept as Arrow tables, on disk
above a certain size, and given by the sources' first rows. Plain rows are merged column-wise, those
of other sources with several rows one by one.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.dataset.shards import shard_name, shard_path
from clipmill.pipeline.ingest.gathered_rows import (
    DUPLICATE_RULE,
    GATHERED_ROWS,
    HELPERS,
    SpooledRows,
)
from clipmill.pipeline.ingest.listed_rows import ListPart, Source
from clipmill.pipeline.ingest.plain_gathering import PlainRowsInOrder, side_by_side, whole_sources
from clipmill.pipeline.ingest.plain_merging import Merging, Origin, split_by_seq
from clipmill.pipeline.ingest.sorted_rows import SortedRows, Sorting
from clipmill.pipeline.ingest.source_lists import clean
from clipmill.pipeline.ingest.source_shards import (
    FAILED,
    REJECTED,
    KnownSources,
    in_order,
    mended,
    sources_table,
    states,
)
from clipmill.pipeline.ingest.text_columns import starts_of
from clipmill.pipeline.ingest.together import SAID, Together, captions_of
from clipmill.schemas.damage import reading
from clipmill.schemas.folders import SOURCES, scratch_folder
from clipmill.schemas.ids import source_key
from clipmill.schemas.step_tables import EXPANDED_RULE, REMOVED_RULE
from clipmill.schemas.tables import SOURCES as SOURCES_SCHEMA
from clipmill.schemas.words import counted

FIXED_RULE = "sources.fixed"
"""A span or caption that a list adds to a source which the dataset already has without it."""

_MEMORY = "512MB"
_BATCH_ROWS = 10_000
_KINDS = 6  # each outcome, of a new source or a known one
_MOST_BYTES_AHEAD = 64 << 20
_WITH_FIRST = pa.schema([*GATHERED_ROWS, ("first", pa.int64())])
_RELISTED = pa.schema([*GATHERED_ROWS, ("shard", pa.int64())])


class Gathering:
    """Collects all rows, then yields each source once, in the order in which it was first named."""

    def __init__(self, dataset: Path, known: KnownSources) -> None:
        self.counts: dict[int | None, Counter[str]] = {}
        """What became of the rows of each list: sources, gathered, rejected, failed, known."""
        self.gathered_rows = 0
        self.known = 0
        self.ended = 0
        self.fixed = 0
        """How many known sources were given spans or captions that they lack."""
        self._folder = dataset / SOURCES
        self._scratch = scratch_folder(dataset, "ingest")
        self._known = known
        self._waiting: list[tuple[int, str, Source]] = []
        self._rows = SpooledRows(self._scratch / "rows.parquet", GATHERED_ROWS)
        self._plain = PlainRowsInOrder(self._scratch)
        self._origins: dict[int, Origin] = {}
        self._seq = 0

    def add(self, key: str, source: Source) -> None:
        self._add(self._seq, key, source)
        self._seq += 1

    def _add(self, seq: int, key: str, source: Source) -> None:
        self._waiting.append((seq, key, source))
        if len(self._waiting) == _BATCH_ROWS:
            self._put_away()

    def add_part(self, part: ListPart, others: Sequence[tuple[int, str, Source]]) -> None:
        """Adds the plain rows of a part of a list, and other rows of it by their numbers."""
        numbers = part.plain["number"].to_numpy()
        others = sorted(others, key=lambda other: other[0])
        among = np.array([number for number, *_ in others], np.int64)
        if len(numbers):
            seq = self._seq + np.arange(len(numbers)) + np.searchsorted(among, numbers)
            self._plain.append(part.plain.set_column(0, "seq", pa.array(seq, pa.int64())))
            self._origins[part.row_of] = Origin(clean(part.start), part.names)
        before = np.searchsorted(numbers, among)
        for place, (at, (_, key, source)) in enumerate(zip(before.tolist(), others, strict=True)):
            self._add(self._seq + at + place, key, source)
        self._seq += len(numbers) + len(others)

    def count(self, row_of: int | None, outcome: str, number: int = 1) -> None:
        if row_of is not None:
            self.counts.setdefault(row_of, Counter())[outcome] += number

    def _put_away(self) -> None:
        rows, self._waiting = self._waiting, []
        helpers = [
            pa.array([seq for seq, *_ in rows], pa.int64()),
            pa.array([source.row_of for *_, source in rows], pa.int32()),
            pa.array([source.again for *_, source in rows], pa.bool_()),
            pa.array([clean(source.place) for *_, source in rows], pa.string()),
            pa.array([clean(source.locator) for *_, source in rows], pa.string()),
        ]
        table = sources_table((key, source) for _, key, source in rows)
        self._rows.append(pa.Table.from_arrays([*helpers, *table.columns], schema=GATHERED_ROWS))

    def __enter__(self) -> Gathering:
        for folder in self._scratch.parent.glob("ingest-*"):
            # left by a killed run: only one works here at a time
            shutil.rmtree(folder, ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._plain.close()
        shutil.rmtree(self._scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._scratch.parent.rmdir()

    def gathered(self, failures: Iterable[str]) -> Iterator[pa.Table]:
        """Tables of new sources, to be written in this order.

        Those of the `failures` that no row names are resolved.
        """
        self._put_away()
        for name in ("rows", "known", "relisted"):
            (self._scratch / name).mkdir(parents=True, exist_ok=True)
        with _database(self._scratch / "rows") as connection:
            yield from self._new(connection, failures)

    def _new(
        self, connection: duckdb.DuckDBPyConnection, failures: Iterable[str]
    ) -> Iterator[pa.Table]:
        self._rows.relation(connection, "listed")
        self._plain.heads(connection)
        known = _Known(self._scratch / "known", self._known)
        connection.execute(
            "CREATE TEMP TABLE firsts AS SELECT source_key, min(seq) AS first, count(*) AS n FROM "
            "(SELECT source_key, seq FROM listed UNION ALL SELECT source_key, seq FROM heads) "
            "GROUP BY source_key"
        )
        by_shard = Sorting(_RELISTED, _by_shard, _by_shard_and_seq)
        with contextlib.closing(SortedRows(self._scratch / "relisted", by_shard)) as relisted:
            for table in self._merged(connection):
                known_states, shards = known.of(table["source_key"])
                became = states(table)
                # A resolved failure has failed again: the newest row counts.
                again = pc.or_(
                    table["again"],
                    pc.fill_null(
                        pc.and_(pc.equal(became, FAILED), pc.equal(known_states, REJECTED)), False
                    ),
                )
                is_new = pc.or_(pc.is_null(known_states), again)
                self._count(table, pc.if_else(is_new, became, known_states), is_new)
                rules = pc.struct_field(table["rejection"], "rule")
                self.ended += pc.sum(pc.equal(rules, EXPANDED_RULE)).as_py() or 0
                if not pc.all(is_new).as_py():
                    says = pc.or_(pc.is_valid(table["spans"]), pc.is_valid(table["caption"]))
                    late = pc.and_(pc.and_(pc.invert(is_new), says), pc.is_valid(shards))
                    found = table.append_column("shard", shards).filter(late)
                    if found.num_rows:
                        relisted.add(found)
                fresh = table.filter(is_new)
                if fresh.num_rows:
                    yield fresh.select(SOURCES_SCHEMA.names)
            yield from self._beyond_known(known, relisted)
        yield from self._ended(connection, failures)

    def _count(self, table: pa.Table, became: pa.ChunkedArray, is_new: pa.ChunkedArray) -> None:
        # As one number each, which `value_counts` takes; grouping would import pyarrow.dataset.
        row_of = pc.fill_null(table["row_of"].cast(pa.int64()), -1)
        is_new = pc.fill_null(is_new, False)
        kind = pc.add(pc.multiply(became.cast(pa.int64()), 2), is_new.cast(pa.int64()))
        found = pc.value_counts(pc.add(pc.multiply(row_of, _KINDS), kind))
        for one in found.to_pylist():
            number, kind_of = divmod(one["values"], _KINDS)
            listed_in = None if number < 0 else number
            outcome = ("sources", "rejected", "failed")[kind_of // 2]
            self.count(listed_in, outcome, one["counts"])
            if kind_of % 2 == 0:
                self.count(listed_in, "known", one["counts"])
                self.known += one["counts"]

    # Sources with several rows

    def _merged(self, connection: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
        """Tables of `GATHERED_ROWS`, with each source once, by `seq`.

        A row that adds nothing is a rejection at its own place, unless too many are ahead of it.
        """
        merging = Merging(self._origins)
        plain = self._plain.tables(connection) if self._plain.rows else iter(())
        ahead = GATHERED_ROWS.empty_table()
        for rows, others, bound in side_by_side(plain, _others(connection)):
            tables = self._of_sources(merging, rows, others)
            ready, ahead = split_by_seq(pa.concat_tables([ahead, *tables]).combine_chunks(), bound)
            yield ready
            if ahead.nbytes > _MOST_BYTES_AHEAD:
                yield ahead
                ahead = GATHERED_ROWS.empty_table()
        yield ahead

    def _of_sources(self, merging: Merging, plain: pa.Table, others: pa.Table) -> list[pa.Table]:
        """What becomes of all rows of some sources."""
        found: list[pa.Table] = []
        slow: list[pa.Table] = []
        in_both = np.intersect1d(plain["first"].to_numpy(), others["first"].to_numpy())
        if plain.num_rows:
            is_shared = np.isin(plain["first"].to_numpy(), in_both)
            left = plain.filter(pa.array(is_shared))
            merged = merging.merge(plain.filter(pa.array(~is_shared)) if len(in_both) else plain)
            found += [merged.sources, merged.repeats]
            for number, count in merged.gathered.items():
                self.count(number, "gathered", count)
                self.gathered_rows += count
            left = pa.concat_tables([left, merged.left]).combine_chunks()
            if left.num_rows:
                slow.append(merging.one_by_one(left).append_column("first", left["first"]))
        if others.num_rows:
            first, rows = np.unique(others["first"].to_numpy(), return_counts=True)
            is_slow = np.isin(others["first"].to_numpy(), np.union1d(first[rows > 1], in_both))
            slow.append(others.filter(pa.array(is_slow)))
            found.append(others.filter(pa.array(~is_slow)).drop_columns("first"))
        if any(table.num_rows for table in slow):
            table = pa.concat_tables(slow)
            order = np.lexsort((table["seq"].to_numpy(), table["first"].to_numpy()))
            table = table.take(pa.array(order))
            out: list[dict[str, Any]] = []
            for _, group in itertools.groupby(table.to_pylist(), lambda row: row["first"]):
                out += self._one(group)
            found.append(pa.Table.from_pylist(out, GATHERED_ROWS))
        return found

    def _one(self, group: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Merges the rows of one source; rows that add nothing are rejected under new keys."""
        rows = iter(group)
        first = next(rows)
        key = first["source_key"]
        together = Together(first)
        found = []
        for number, row in enumerate(rows, 1):
            if first["error"] is None and not _is_removed(first) and together.take(row):
                self.count(row["row_of"], "gathered")
                self.gathered_rows += 1
                continue
            # The repeat has its own key, the same each time the same list is read.
            own_key = source_key(f"{row['locator']}\0repeat {number}")
            if _is_removed(first):  # only its keys remain
                kept = {name: row[name] for name in HELPERS.names}
                kept["rejection"] = first["rejection"]
            else:
                kept = row | {
                    "error": None,
                    "listed_in": None,
                    "rejection": {
                        "rule": DUPLICATE_RULE,
                        "detail": f"{row['place']}: the same as {first['url'] or first['locator']} "
                        f"({first['place']}), key {key}",
                    },
                }
            found.append(kept | {"source_key": own_key})
        return [together.row(), *found]

    # Sources that the dataset already has

    def _beyond_known(self, known: _Known, relisted: SortedRows) -> Iterator[pa.Table]:
        """Rejections of spans and captions that come too late: sources are never changed."""
        said = (
            "list_transform({0}.spans, lambda s: {{'a': s.start_seconds, 'b': s.end_seconds, "
            "'c': s.caption, 'd': s.captions}}), {0}.caption, {0}.captions"
        )
        for table in relisted.tables():
            edges = [*starts_of(table, "shard"), table.num_rows]
            for begin, end in itertools.pairwise(edges):
                path = shard_path(self._folder, shard_name(table["shard"][int(begin)].as_py()))
                with reading(path):
                    stored = pq.read_table(
                        path, schema=SOURCES_SCHEMA, columns=["source_key", *SAID]
                    )
                known.connection.register("stored", stored)
                known.connection.register("relisted", table.slice(begin, end - begin))
                differ = known.connection.sql(
                    "SELECT r.*, {'spans': s.spans, 'caption': s.caption, 'captions': s.captions} "
                    "AS stored FROM relisted AS r JOIN stored AS s USING (source_key) "
                    f"WHERE ({said.format('r')}) IS DISTINCT FROM ({said.format('s')}) ORDER BY seq"
                ).to_arrow_table()
                late = [row for each in differ.to_pylist() if (row := _late(each)) is not None]
                yield from self._not_known(known, late)

    def _not_known(self, known: _Known, rows: list[dict[str, Any]]) -> Iterator[pa.Table]:
        self.fixed += len(rows)
        if not rows:
            return
        by_key = {row["source_key"]: row for row in rows}
        states, _ = known.of(pa.array(list(by_key), pa.string()))
        fresh = [
            row
            for row, state in zip(by_key.values(), states.to_pylist(), strict=True)
            if state is None
        ]
        if fresh:
            yield pa.Table.from_pylist(fresh, SOURCES_SCHEMA)

    def _ended(
        self, connection: duckdb.DuckDBPyConnection, failures: Iterable[str]
    ) -> Iterator[pa.Table]:
        """Rows that resolve earlier failures that are no longer listed."""
        connection.register("failures", pa.table({"key": pa.array(list(failures), pa.string())}))
        found = connection.execute(
            "SELECT key FROM failures ANTI JOIN firsts ON key = source_key"
        ).fetchall()
        self.ended += len(found)
        if found:
            yield sources_table([(key, mended()) for (key,) in found])


class _Known:
    """The sources that a dataset has, in a database of their own: the other's results stay open."""

    def __init__(self, scratch: Path, known: KnownSources) -> None:
        self.connection = _database(scratch)
        self._is_empty = not known.table.num_rows
        numbers = pa.array(np.arange(known.table.num_rows))
        self.connection.register("known_rows", known.table.append_column("number", numbers))
        self.connection.execute(
            "CREATE TABLE known AS SELECT key, arg_max(state, number) AS state, "
            "CAST(arg_min(shard, number) FILTER (state = 0) AS BIGINT) AS shard "
            "FROM known_rows GROUP BY key"
        )

    def of(self, keys: pa.Array | pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """The states and the shards' numbers of some keys; null if they are new, or not kept."""
        if self._is_empty:
            nothing = pa.chunked_array([pa.nulls(len(keys), pa.int64())])
            return nothing.cast(pa.int8()), nothing
        asked = pa.table({"key": keys, "place": pa.array(np.arange(len(keys)))})
        self.connection.register("asked", asked)
        found = self.connection.sql(
            "SELECT state, shard FROM asked LEFT JOIN known USING (key) ORDER BY place"
        ).to_arrow_table()
        return found["state"], found["shard"]


def _database(scratch: Path) -> duckdb.DuckDBPyConnection:
    config: dict[str, Any] = {
        "memory_limit": _MEMORY,
        "temp_directory": str(scratch),
        "autoload_known_extensions": False,
    }
    return duckdb.connect(":memory:", config=config)


def _others(connection: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
    """The rows that are not plain, with their source's first row, in its order."""
    ((several,),) = connection.execute("SELECT count(*) FROM firsts WHERE n > 1").fetchall()
    query = "SELECT *, seq AS first FROM listed"
    if several:
        query = (
            "SELECT l.*, first FROM listed AS l JOIN firsts USING (source_key) ORDER BY first, seq"
        )
    batches = connection.sql(query).to_arrow_reader(_BATCH_ROWS)
    yield from whole_sources(
        pa.Table.from_batches([batch]).select(_WITH_FIRST.names).cast(_WITH_FIRST)
        for batch in batches
        if batch.num_rows
    )


def _by_shard(rows: pa.Table) -> np.ndarray:
    return np.asarray(rows["shard"].to_numpy(), np.uint64)


def _by_shard_and_seq(rows: pa.Table) -> np.ndarray:
    return np.lexsort((rows["seq"].to_numpy(), rows["shard"].to_numpy()))


def _is_removed(row: dict[str, Any]) -> bool:
    return row["rejection"] is not None and row["rejection"]["rule"] == REMOVED_RULE


def _late(row: dict[str, Any]) -> dict[str, Any] | None:
    """The rejection of what a list adds to a stored source; None if it adds nothing."""
    stored = Together(dict.fromkeys(SOURCES_SCHEMA.names) | row["stored"])
    spans, captions = stored.lacking(row)
    if not spans and not captions:
        return None
    what = [
        f"{span['start_seconds']:g} to {span['end_seconds']:g} s"
        + (f": {', '.join(captions_of(span))}" if captions_of(span) else "")
        for span in spans
    ] + captions
    count = " and ".join(
        counted(len(items), word)
        for items, word in ((spans, "span"), (captions, "caption"))
        if items
    )
    shown = "; ".join(what[:3])[:500] + (" …" if len(what) > 3 else "")
    return {
        "source_key": source_key("\0".join([row["locator"], "late", *what])),
        "url": row["url"],
        "path": row["path"],
        "extractor": row["extractor"],
        "platform_id": row["platform_id"],
        "spans": in_order(spans) or None,
        "caption": captions[0] if captions else None,
        "captions": captions if len(captions) > 1 else None,
        "rejection": {
            "rule": FIXED_RULE,
            "detail": f"{row['place']}: {count} more ({shown}) of {row['url']}, key "
            f"{row['source_key']}, which is already known: its spans and captions are "
            "fixed. To use them, make a new dataset from all lists",
        },
    }
