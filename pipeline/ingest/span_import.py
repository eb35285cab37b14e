"""Imports published rows, one per clip, into a dataset's sources: one per video with its spans.

A video's rows may be anywhere in files of any size, so they are sorted by video, on disk where they
are many, and the shards are written as the sorted rows arrive.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.catalog.damaged_files import damage_named
from clipmill.pipeline.dataset.shards import committed_shards, shard_path, table_folders
from clipmill.pipeline.ingest.gathered_rows import SpooledRows
from clipmill.pipeline.ingest.internvid import ROWS, PublishedRows, open_published
from clipmill.pipeline.ingest.known_videos import KNOWN_ROWS, REMOVED, KnownVideos
from clipmill.pipeline.ingest.line_blocks import ReportBytes
from clipmill.pipeline.ingest.listed_rows import Source
from clipmill.pipeline.ingest.published_videos import OF_SPANS, Videos
from clipmill.pipeline.ingest.sorted_rows import SortedRows
from clipmill.pipeline.ingest.source_lists import clean
from clipmill.pipeline.ingest.source_shards import (
    NewShards,
    known_sources,
    mended,
    sources_table,
    write_sources,
)
from clipmill.pipeline.ingest.sources import excluded_ids
from clipmill.pipeline.ingest.text_columns import starts_of
from clipmill.pipeline.ingest.together import Together
from clipmill.schemas.damage import reading
from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.schemas.folders import SOURCES, scratch_folder
from clipmill.schemas.ids import source_key
from clipmill.schemas.processors import usable_cpus
from clipmill.schemas.tables import SOURCES as SOURCES_SCHEMA
from clipmill.stages.media.fetch.exclusions import write_exclusions

_MEMORY = "256MB"

_BATCH_ROWS = 100_000
_FAILURES_A_SHARD = 1000
_OF_BAD = pa.schema([ROWS.field(name) for name in ("file", "row", "id", "problem")])


@dataclass
class ImportReport:
    """What became of the rows: `rows` = kept + rejected + failed + known + not_taken + removed.

    `known` rows are already in the dataset; `removed` ones belong to removed videos; those
    `not_taken` are further spans of videos that stages have worked on, whose spans are fixed. With
    a `limit`, only rows of the selected videos are counted.
    """

    rows: int = 0
    kept: int = 0
    rejected: int = 0
    failed: int = 0
    known: int = 0
    not_taken: int = 0
    removed: int = 0
    new_videos: int = 0
    grown_videos: int = 0
    shards: list[str] = field(default_factory=list)
    note: str | None = None
    """Set if the dataset has shards of another size, which don't change."""
    index_problem: str | None = None
    """Set if the index of the imported clips could not be built; queries then take longer."""


def import_spans(
    dataset: Path,
    files: Sequence[Path],
    *,
    shard_videos: int,
    limit: int | None = None,
    exclude_ids: Path | None = None,
    report_bytes: ReportBytes | None = None,
) -> ImportReport:
    """Adds the videos that published rows name, and the spans of videos not yet worked on.

    `limit` takes that many videos, the first ones, with all their rows. Raises UsageError if a
    file can't be read, before anything is written.
    """
    scratch = scratch_folder(dataset, "import")
    with contextlib.ExitStack() as stack:
        stack.enter_context(damage_named(dataset))
        published = [open_published(path) for path in files]
        excluded = excluded_ids(exclude_ids)
        if exclude_ids is not None:
            write_exclusions(dataset, excluded)
        _remove_leftovers(scratch)
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        rows = PublishedRows(published, report_bytes)
        wanted = None if limit is None else _first_videos(rows, limit)
        good = stack.enter_context(contextlib.closing(SortedRows(scratch)))
        bad = SpooledRows(scratch / "bad.parquet", _OF_BAD)
        for table in rows.tables():
            _sort_out(table, wanted, good, bad)
        # Two databases: one result stays open while the rows are read along with it.
        held = KnownVideos(stack.enter_context(_database(scratch / "held")), dataset)
        connection = stack.enter_context(_database(scratch / "sorted"))
        known = SpooledRows(scratch / "known.parquet", KNOWN_ROWS)
        writers = stack.enter_context(ThreadPoolExecutor(usable_cpus()))
        shards = stack.enter_context(NewShards(dataset / SOURCES, writers))
        places = [file.place for file in published]
        taken = _Import(dataset, files, places, excluded, shard_videos, shards)
        for table in good.tables():
            new, former = held.split(rows.with_extra(table))
            taken.take_new(new)
            known.append(former)
        taken.end_new()
        for table in _tables(connection, bad.relation(connection, "bad"), "file, row"):
            taken.take_bad(table)
        order = "shard, id, start_seconds, end_seconds, file, row"
        shards.show()
        for table in _tables(connection, known.relation(connection, "known_rows"), order):
            taken.take_known(table)
        return taken.finish()


def _remove_leftovers(scratch: Path) -> None:
    """Removes the sort files of killed imports; only one import runs at a time."""
    for folder in scratch.parent.glob("import-*"):
        shutil.rmtree(folder, ignore_errors=True)
    scratch.mkdir(parents=True)


def _first_videos(rows: PublishedRows, limit: int) -> pa.Array:
    """The ids of the videos that the files name first."""
    first: dict[str, None] = {}
    with contextlib.closing(rows.tables()) as tables:
        for table in tables:
            named = table.select(["row", "id", "problem"])
            good = named.filter(pc.is_null(named["problem"])).sort_by("row")
            for name in pc.unique(good["id"]).to_pylist():
                if len(first) == limit:
                    break
                first[name] = None
            if len(first) == limit:
                break
    return pa.array(list(first), pa.string())


def _sort_out(table: pa.Table, wanted: pa.Array | None, good: SortedRows, bad: SpooledRows) -> None:
    """Puts the rows of wanted videos, or of all, where they belong; bad ones are always kept."""
    if table["problem"].null_count < table.num_rows:
        is_bad = pc.is_valid(table["problem"])
        bad.append(table.filter(is_bad).select(_OF_BAD.names))
        table = table.filter(pc.invert(is_bad))
    if wanted is not None:
        table = table.filter(pc.is_in(table["id"], wanted))
    if table.num_rows:
        good.add(table)


def _database(scratch: Path) -> duckdb.DuckDBPyConnection:
    config: dict[str, Any] = {
        "memory_limit": _MEMORY,
        "temp_directory": str(scratch),
        "autoload_known_extensions": False,
    }
    return duckdb.connect(":memory:", config=config)


def _tables(connection: duckdb.DuckDBPyConnection, relation: str, order: str) -> Iterator[pa.Table]:
    try:
        query = f"SELECT * FROM {relation} ORDER BY {order}"
        for batch in connection.sql(query).to_arrow_reader(_BATCH_ROWS):
            yield pa.Table.from_batches([batch])
    except duckdb.Error as error:
        said = str(error).partition("\n")[0]
        raise ClipmillError(f"the rows could not be read and sorted: {said}") from error


class _Import:
    """Takes sorted rows in tables of any size, and writes shards as soon as they are full."""

    def __init__(
        self,
        dataset: Path,
        files: Sequence[Path],
        places: Sequence[Callable[[int], str]],
        excluded: set[str],
        shard_videos: int,
        shards: NewShards,
    ) -> None:
        self._dataset = dataset
        self._folder = dataset / SOURCES
        self._lists = [clean(str(path.absolute())) for path in files]
        self._places = places
        self._excluded = excluded
        self._shard_videos = shard_videos
        self._report = ImportReport()
        self._shards = shards
        self._known_failures = known_sources(self._folder).failures
        self._bad: set[str] = set()
        self._begun: set[str] | None = None
        self._waiting: pa.Table | None = None
        self._last_grown: str | None = None

    def finish(self) -> ImportReport:
        """Ends failures that the files no longer have; returns what became of all rows."""
        # With any limit, all bad rows of the files have been seen.
        ended = [
            (key, mended())
            for key, listed_in in self._known_failures.items()
            if listed_in in self._lists and key not in self._bad
        ]
        for at in range(0, len(ended), _FAILURES_A_SHARD):
            self._shards.commit(sources_table(ended[at : at + _FAILURES_A_SHARD]))
        self._shards.show()
        self._report.shards = self._shards.names
        return self._report

    # New videos

    def take_new(self, table: pa.Table) -> None:
        """Takes the next rows of new videos. A video may continue in the following table."""
        if table.num_rows:
            self._report.rows += table.num_rows
            self._write_new(table, everything=False)

    def end_new(self) -> None:
        """Writes the rows that don't fill a shard."""
        self._write_new(None, everything=True)

    def _write_new(self, table: pa.Table | None, *, everything: bool) -> None:
        """Writes the shards that are full, or everything; the other rows wait."""
        parts = [part for part in (self._waiting, table) if part is not None]
        self._waiting = None
        if not parts:
            return
        rows = Videos(pa.concat_tables(parts).combine_chunks(), self._places, self._excluded)
        kept = np.cumsum(rows.is_kept)
        # A shard ends before the video that would exceed its size, so the last video always waits.
        first, whole = 0, 0
        while whole + self._shard_videos < (kept[-1] if len(kept) else 0):
            whole += self._shard_videos
            last = int(np.searchsorted(kept, whole, "right"))
            self._commit(rows, first, last)
            first = last
        if everything:
            self._commit(rows, first, len(kept))
        else:
            self._waiting = rows.raw_from(first)

    def _commit(self, rows: Videos, first: int, last: int) -> None:
        self._shards.commit(rows.sources(first, last))
        kept, rejected = rows.count(first, last)
        self._report.kept += kept
        self._report.rejected += rejected
        self._report.new_videos += int(rows.is_kept[first:last].sum())

    # Invalid rows

    def take_bad(self, table: pa.Table) -> None:
        self._report.rows += table.num_rows
        found = []
        for row in table.select(["file", "row", "id", "problem"]).to_pylist():
            place = self._places[row["file"]](row["row"])
            source = Source(place, locator=f"row {place}", listed_in=self._lists[row["file"]])
            source.problem = RowFailed("permanent", f"{place}: {row['problem']}")
            found.append((source_key(source.locator), source))
        self._bad.update(key for key, _ in found)
        new = [(key, source) for key, source in found if key not in self._known_failures]
        self._report.known += len(found) - len(new)
        self._report.failed += len(new)
        for at in range(0, len(new), _FAILURES_A_SHARD):
            self._shards.commit(sources_table(new[at : at + _FAILURES_A_SHARD]))

    # Known videos

    def take_known(self, table: pa.Table) -> None:
        self._report.rows += table.num_rows
        edges = [*starts_of(table, "shard"), table.num_rows]
        for first, last in itertools.pairwise(edges):
            shard = table["shard"][int(first)].as_py()
            if shard == REMOVED:
                self._report.removed += int(last - first)
            else:
                self._grow(shard, table.slice(first, last - first))

    def _grow(self, shard: str, rows: pa.Table) -> None:
        """Adds spans to known videos of a shard, unless a stage has already worked on it."""
        path = shard_path(self._folder, shard)
        with reading(path):
            stored = pq.read_table(
                path, schema=SOURCES_SCHEMA, columns=["platform_id", "spans", "rejection", "error"]
            )
        can_grow = pc.and_(pc.is_null(stored["rejection"]), pc.is_null(stored["error"]))
        held: dict[str, tuple[int, Together]] = {}
        there: dict[str, Together] = {}
        for at, (name, spans, grows) in enumerate(
            zip(
                stored["platform_id"].to_pylist(),
                stored["spans"].to_pylist(),
                can_grow.to_pylist(),
                strict=True,
            )
        ):
            if grows and spans and name is not None and shard not in self._begun_shards():
                held[name] = (at, Together(_said(spans)))
            there.setdefault(name, Together(_said(None))).take(_said(spans))
        grown: dict[str, None] = {}
        for row in rows.select(["id", *OF_SPANS]).to_pylist():
            name = row.pop("id")
            said = _said([row | {"captions": None}])
            if there[name].lacking(said) == ([], []):
                self._report.known += 1
            elif name in held:
                there[name].take(said)
                held[name][1].take(said)
                grown[name] = None
                self._report.kept += 1
            else:
                self._report.not_taken += 1
        if not grown:
            return
        spans = stored["spans"].to_pylist()
        for name in grown:
            at, together = held[name]
            spans[at] = together.row()["spans"]
        with reading(path):
            table = pq.read_table(path, schema=SOURCES_SCHEMA)
        place = SOURCES_SCHEMA.get_field_index("spans")
        column = pa.array(spans, SOURCES_SCHEMA.field("spans").type)
        write_sources(
            self._folder, shard, table.set_column(place, SOURCES_SCHEMA.field("spans"), column)
        )
        # The last video of a batch may be the first one of the next.
        self._report.grown_videos += len(grown) - (self._last_grown in grown)
        self._last_grown = list(grown)[-1]

    def _begun_shards(self) -> set[str]:
        """Shards that some stage has committed: results that depend on their sources exist."""
        if self._begun is None:
            self._begun = {
                shard
                for folder in table_folders(self._dataset)
                for shard in committed_shards(folder)
            }
        return self._begun


def _said(spans: list[dict[str, Any]] | None) -> dict[str, Any]:
    """A row of sources that has nothing but spans."""
    return dict.fromkeys(SOURCES_SCHEMA.names) | {"spans": spans}
