"""Merges the rows of one source: its spans and captions, wherever they are listed.

The rows of a source may be anywhere in lists of any size. They are kept as Arrow tables, on disk
above a certain size, and DuckDB finds the sources with several rows; only those are merged row by
row.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.dataset.shards import shard_path
from clipmill.pipeline.ingest.source_lists import clean
from clipmill.pipeline.ingest.source_rows import Source
from clipmill.pipeline.ingest.source_shards import (
    FAILED,
    REJECTED,
    KnownSources,
    in_order,
    mended,
    sources_table,
    states,
)
from clipmill.pipeline.ingest.together import SAID, Together, captions_of
from clipmill.schemas.damage import reading
from clipmill.schemas.folders import SOURCES, scratch_folder
from clipmill.schemas.ids import source_key
from clipmill.schemas.sql_text import escaped_for_glob, literal
from clipmill.schemas.step_tables import EXPANDED_RULE, REMOVED_RULE
from clipmill.schemas.tables import SOURCES as SOURCES_SCHEMA
from clipmill.schemas.words import counted

DUPLICATE_RULE = "sources.duplicate"
FIXED_RULE = "sources.fixed"
"""A span or caption that a list adds to a source which the dataset already has without it."""

_MEMORY = "512MB"
_BATCH_ROWS = 10_000
_KINDS = 6  # each outcome, of a new source or a known one
_MOST_BYTES_IN_MEMORY = 64 << 20
_HELPERS = pa.schema(
    [
        ("seq", pa.int64()),
        ("row_of", pa.int32()),
        ("again", pa.bool_()),
        ("place", pa.string()),
        ("locator", pa.string()),
    ]
)
_ROWS = pa.schema([*_HELPERS, *SOURCES_SCHEMA])


class SpooledRows:
    """Tables of one schema, in memory while they are small, then in a file."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._schema = schema
        self._tables: list[pa.Table] = []
        self._bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def append(self, table: pa.Table) -> None:
        self._tables.append(table)
        self._bytes += table.nbytes
        if self._bytes > _MOST_BYTES_IN_MEMORY:
            if self._writer is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pq.ParquetWriter(self._path, self._schema, compression="lz4")
            for one in self._tables:
                self._writer.write_table(one)
            self._tables, self._bytes = [], 0

    def relation(self, connection: duckdb.DuckDBPyConnection, name: str) -> str:
        """The name of a view of all rows; no rows are added afterwards."""
        memory = pa.concat_tables([self._schema.empty_table(), *self._tables])
        connection.register(f"{name}_in_memory", memory)
        parts = [f"SELECT * FROM {name}_in_memory"]
        if self._writer is not None:
            self._writer.close()
            place = literal(escaped_for_glob(str(self._path.absolute())))
            parts.insert(0, f"SELECT * FROM read_parquet({place})")
        connection.execute(f"CREATE TEMP VIEW {name} AS {' UNION ALL '.join(parts)}")
        return name


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
        self._waiting: list[tuple[str, Source]] = []
        self._rows = SpooledRows(self._scratch / "rows.parquet", _ROWS)
        self._seq = 0

    def add(self, key: str, source: Source) -> None:
        self._waiting.append((key, source))
        if len(self._waiting) == _BATCH_ROWS:
            self._put_away()

    def count(self, row_of: int | None, outcome: str, number: int = 1) -> None:
        if row_of is not None:
            self.counts.setdefault(row_of, Counter())[outcome] += number

    def _put_away(self) -> None:
        rows, self._waiting = self._waiting, []
        helpers = [
            pa.array(range(self._seq, self._seq + len(rows)), pa.int64()),
            pa.array([source.row_of for _, source in rows], pa.int32()),
            pa.array([source.again for _, source in rows], pa.bool_()),
            pa.array([clean(source.place) for _, source in rows], pa.string()),
            pa.array([clean(source.locator) for _, source in rows], pa.string()),
        ]
        self._seq += len(rows)
        table = sources_table(rows)
        self._rows.append(pa.Table.from_arrays([*helpers, *table.columns], schema=_ROWS))

    def __enter__(self) -> Gathering:
        for folder in self._scratch.parent.glob("ingest-*"):
            # left by a killed run: only one works here at a time
            shutil.rmtree(folder, ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._scratch.parent.rmdir()

    def gathered(self, failures: Iterable[str]) -> Iterator[pa.Table]:
        """Tables of new sources, to be written in this order.

        Those of the `failures` that no row names are resolved.
        """
        self._put_away()
        config: dict[str, Any] = {
            "memory_limit": _MEMORY,
            "temp_directory": str(self._scratch),
            "autoload_known_extensions": False,
        }
        with duckdb.connect(":memory:", config=config) as connection:
            yield from self._new(connection, failures)

    def _new(
        self, connection: duckdb.DuckDBPyConnection, failures: Iterable[str]
    ) -> Iterator[pa.Table]:
        rows = self._rows.relation(connection, "listed")
        known = self._known.table.append_column(
            "number", pa.array(range(self._known.table.num_rows), pa.int64())
        )
        connection.register("known_rows", known)
        connection.execute(
            "CREATE TEMP TABLE known AS SELECT key, arg_max(state, number) AS state, "
            "arg_min(shard, number) FILTER (state = 0) AS shard FROM known_rows GROUP BY key"
        )
        connection.execute(
            f"CREATE TEMP TABLE several AS SELECT source_key AS key FROM {rows} "
            "GROUP BY source_key HAVING count(*) > 1"
        )
        order = ""
        if connection.execute("SELECT 1 FROM several LIMIT 1").fetchall():
            together = SpooledRows(self._scratch / "together.parquet", _ROWS)
            for table in self._put_together(connection, rows):
                together.append(table)
            others = together.relation(connection, "together")
            rows = (
                f"(SELECT * FROM {rows} ANTI JOIN several ON source_key = key "
                f"UNION ALL SELECT * FROM {others})"
            )
            order = "ORDER BY seq"
        relisted = SpooledRows(self._scratch / "relisted.parquet", _ROWS)
        reader = connection.sql(
            f"SELECT r.*, k.state AS known_state FROM {rows} AS r LEFT JOIN known AS k "
            f"ON k.key = r.source_key {order}"
        ).to_arrow_reader(_BATCH_ROWS)
        for batch in reader:
            table = pa.Table.from_batches([batch])
            known_states = table["known_state"]
            table = table.select(_ROWS.names).cast(_ROWS)
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
            self.ended += (
                pc.sum(pc.equal(pc.struct_field(table["rejection"], "rule"), EXPANDED_RULE)).as_py()
                or 0
            )
            if pc.any(pc.invert(is_new)).as_py():
                relisted.append(
                    table.filter(
                        pc.and_(
                            pc.invert(is_new),
                            pc.or_(pc.is_valid(table["spans"]), pc.is_valid(table["caption"])),
                        )
                    )
                )
            fresh = table.filter(is_new)
            if fresh.num_rows:
                yield fresh.select(SOURCES_SCHEMA.names)
        yield from self._beyond_known(connection, relisted)
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

    def _put_together(self, connection: duckdb.DuckDBPyConnection, rows: str) -> Iterator[pa.Table]:
        reader = connection.sql(
            f"SELECT r.* FROM {rows} AS r SEMI JOIN several "
            "ON source_key = key ORDER BY source_key, seq"
        )
        batches = reader.to_arrow_reader(_BATCH_ROWS)
        listed = itertools.chain.from_iterable(
            pa.Table.from_batches([batch]).cast(_ROWS).to_pylist() for batch in batches
        )
        out: list[dict[str, Any]] = []
        for key, group in itertools.groupby(listed, lambda row: row["source_key"]):
            out += self._one(key, group)
            if len(out) >= _BATCH_ROWS:
                yield pa.Table.from_pylist(out, _ROWS)
                out = []
        if out:
            yield pa.Table.from_pylist(out, _ROWS)

    def _one(self, key: str, group: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Merges the rows of one source; rows that add nothing are rejected under new keys."""
        rows = iter(group)
        first = next(rows)
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
                kept = {name: row[name] for name in _HELPERS.names}
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

    def _beyond_known(
        self, connection: duckdb.DuckDBPyConnection, relisted: SpooledRows
    ) -> Iterator[pa.Table]:
        """Rejections of spans and captions that come too late: sources are never changed."""
        rows = relisted.relation(connection, "relisted")
        shards = connection.execute(
            f"SELECT DISTINCT shard FROM {rows} JOIN known ON key = source_key "
            "WHERE shard IS NOT NULL ORDER BY shard"
        ).fetchall()
        said = (
            "list_transform({0}.spans, lambda s: {{'a': s.start_seconds, 'b': s.end_seconds, "
            "'c': s.caption, 'd': s.captions}}), {0}.caption, {0}.captions"
        )
        for (shard,) in shards:
            path = shard_path(self._folder, shard)
            with reading(path):
                stored = pq.read_table(path, schema=SOURCES_SCHEMA, columns=["source_key", *SAID])
            connection.register("stored", stored)
            differ = connection.sql(
                f"SELECT r.*, {{'spans': s.spans, 'caption': s.caption, 'captions': s.captions}} "
                f"AS stored FROM {rows} AS r JOIN stored AS s USING (source_key) JOIN known AS k "
                f"ON k.key = r.source_key AND k.shard = {literal(shard)} "
                f"WHERE ({said.format('r')}) IS DISTINCT FROM ({said.format('s')}) ORDER BY seq"
            )
            reader = differ.to_arrow_reader(_BATCH_ROWS)
            late = [
                row
                for batch in reader
                for each in pa.Table.from_batches([batch]).to_pylist()
                if (row := _late(each)) is not None
            ]
            connection.unregister("stored")
            yield from self._not_known(connection, late)

    def _not_known(
        self, connection: duckdb.DuckDBPyConnection, rows: list[dict[str, Any]]
    ) -> Iterator[pa.Table]:
        self.fixed += len(rows)
        by_key = {row["source_key"]: row for row in rows}
        connection.register("late", pa.table({"key": pa.array(list(by_key), pa.string())}))
        known = connection.execute("SELECT key FROM late SEMI JOIN known USING (key)").fetchall()
        fresh = [row for key, row in by_key.items() if (key,) not in set(known)]
        if fresh:
            yield pa.Table.from_pylist(fresh, SOURCES_SCHEMA)

    def _ended(
        self, connection: duckdb.DuckDBPyConnection, failures: Iterable[str]
    ) -> Iterator[pa.Table]:
        """Rows that resolve earlier failures that are no longer listed."""
        connection.register("failures", pa.table({"key": pa.array(list(failures), pa.string())}))
        found = connection.execute(
            "SELECT key FROM failures ANTI JOIN listed ON key = source_key"
        ).fetchall()
        self.ended += len(found)
        if found:
            yield sources_table([(key, mended()) for (key,) in found])


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
