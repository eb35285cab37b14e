"""Imports published rows, one per clip, into a dataset's sources: one per video with its spans.

A video's rows may be anywhere in files of any size, so DuckDB sorts them by video, spilling to
disk if memory is too small, and the shards are written as the sorted rows arrive.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
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
from clipmill.pipeline.dataset.tombstones import removed_videos
from clipmill.pipeline.ingest.internvid import PublishedRows, ReportBytes, open_published
from clipmill.pipeline.ingest.published_videos import OF_SPANS, Videos, starts_of
from clipmill.pipeline.ingest.source_lists import clean
from clipmill.pipeline.ingest.source_rows import Source
from clipmill.pipeline.ingest.source_shards import (
    NewShards,
    known_sources,
    mended,
    sources_table,
    write_sources,
)
from clipmill.pipeline.ingest.sources import excluded_ids
from clipmill.pipeline.ingest.together import Together
from clipmill.schemas.damage import reading
from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.schemas.folders import SOURCES, scratch_folder
from clipmill.schemas.ids import source_key
from clipmill.schemas.sql_text import escaped_for_glob, literal
from clipmill.schemas.tables import SOURCES as SOURCES_SCHEMA
from clipmill.stages.media.fetch.exclusions import write_exclusions

MEMORY = "1GB"
"""What DuckDB may use before it sorts on disk."""

_BATCH_ROWS = 100_000
_FAILURES_A_SHARD = 1000
_NEW, _BAD, _KNOWN = range(3)
_REMOVED = "removed"


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
        config: dict[str, Any] = {
            "memory_limit": MEMORY,
            "preserve_insertion_order": False,
            "temp_directory": str(scratch),
            "autoload_known_extensions": False,
        }
        connection = stack.enter_context(duckdb.connect(":memory:", config=config))
        published = [open_published(connection, path) for path in files]
        excluded = excluded_ids(exclude_ids)
        if exclude_ids is not None:
            write_exclusions(dataset, excluded)
        _remove_leftovers(scratch)
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        rows = PublishedRows(connection, published, report_bytes)
        if limit is not None:
            _note_first_videos(connection, rows, limit)
        reader = _sorted_rows(connection, rows, dataset / SOURCES, limit)
        taken = _Import(dataset, files, [file.place for file in published], excluded, shard_videos)
        for batch in reader:
            taken.take(pa.Table.from_batches([batch]))
        return taken.finish()


def _remove_leftovers(scratch: Path) -> None:
    """Removes the sort files of killed imports; only one import runs at a time."""
    for folder in scratch.parent.glob("import-*"):
        shutil.rmtree(folder, ignore_errors=True)
    scratch.mkdir(parents=True)


def _note_first_videos(
    connection: duckdb.DuckDBPyConnection, rows: PublishedRows, limit: int
) -> None:
    """Makes the table `wanted` of the videos that the files name first."""
    first: dict[str, None] = {}
    connection.execute("SET threads = 1; SET preserve_insertion_order = true")
    for batch in _stream(connection, rows, f"SELECT id FROM ({rows.sql}) WHERE problem IS NULL"):
        for name in batch["id"].to_pylist():
            first[name] = None
            if len(first) == limit:
                break
        if len(first) == limit:
            break
    connection.execute("RESET threads; SET preserve_insertion_order = false")
    connection.register("wanted", pa.table({"id": pa.array(list(first), pa.string())}))


def _stream(
    connection: duckdb.DuckDBPyConnection, rows: PublishedRows, query: str
) -> Iterator[pa.RecordBatch]:
    """Batches of a query over the published rows, read from the beginning."""
    rows.rewind()
    try:
        yield from connection.sql(query).to_arrow_reader(_BATCH_ROWS)
    except duckdb.Error as error:
        rows.check()
        raise ClipmillError(
            f"the rows could not be read and sorted: {str(error).partition(chr(10))[0]}"
        ) from error


def _sorted_rows(
    connection: duckdb.DuckDBPyConnection, rows: PublishedRows, folder: Path, limit: int | None
) -> Iterator[pa.RecordBatch]:
    """All rows, those of one video together in time order: new ones, bad ones, known ones."""
    known = "SELECT NULL::VARCHAR AS id, NULL::VARCHAR AS shard WHERE false"
    if committed_shards(folder):
        shards = literal(f"{escaped_for_glob(str(folder.absolute()))}/*.parquet")
        known = (
            r"SELECT platform_id AS id, min(regexp_extract(filename, '(\d+)\.parquet$', 1)) "
            f"AS shard FROM read_parquet({shards}, filename = true, union_by_name = true) "
            "WHERE extractor = 'youtube' AND rejection.rule IS DISTINCT FROM 'sources.duplicate' "
            "GROUP BY platform_id"
        )
    # Sorts after the shards, whose names are digits.
    removed = [
        video.removeprefix("youtube-")
        for video in removed_videos(folder.parent)
        if video.startswith("youtube-")
    ]
    connection.register("removed", pa.table({"id": pa.array(removed, pa.string())}))
    known += f" UNION ALL SELECT id, {literal(_REMOVED)} FROM removed"
    only = "" if limit is None else "WHERE problem IS NOT NULL OR id IN (SELECT id FROM wanted)"
    return _stream(
        connection,
        rows,
        f"""
        SELECT r.*, k.shard, CASE WHEN problem IS NOT NULL THEN {_BAD}
            WHEN k.shard IS NULL THEN {_NEW} ELSE {_KNOWN} END AS kind
        FROM (SELECT * FROM ({rows.sql}) {only}) AS r
        LEFT JOIN (SELECT id, max(shard) AS shard FROM ({known}) GROUP BY id) AS k
            ON k.id = r.id AND r.problem IS NULL
        ORDER BY kind, shard, if(problem IS NULL, r.id, NULL),
            if(problem IS NULL, start_seconds, NULL), if(problem IS NULL, end_seconds, NULL),
            file, "row" """,
    )


class _Import:
    """Takes sorted rows in batches of any size, and writes shards as soon as they are full."""

    def __init__(
        self,
        dataset: Path,
        files: Sequence[Path],
        places: Sequence[Callable[[int], str]],
        excluded: set[str],
        shard_videos: int,
    ) -> None:
        self._dataset = dataset
        self._folder = dataset / SOURCES
        self._lists = [clean(str(path.absolute())) for path in files]
        self._places = places
        self._excluded = excluded
        self._shard_videos = shard_videos
        self._report = ImportReport()
        self._shards = NewShards(self._folder)
        self._known_failures = known_sources(self._folder).failures
        self._bad: set[str] = set()
        self._begun: set[str] | None = None
        self._waiting: pa.Table | None = None
        self._last_grown: str | None = None

    def take(self, table: pa.Table) -> None:
        """Takes the next rows. A video may continue in the following batch."""
        self._report.rows += table.num_rows
        kinds = table["kind"].combine_chunks()
        for kind, take in (
            (_NEW, self._take_new),
            (_BAD, self._take_bad),
            (_KNOWN, self._take_known),
        ):
            part = table.filter(pc.equal(kinds, kind))
            if not part.num_rows:
                continue
            if kind != _NEW:
                self._write_new(None, everything=True)  # there are no more new videos
            take(part)

    def finish(self) -> ImportReport:
        """Writes the rows that don't fill a shard; returns what became of all rows."""
        self._write_new(None, everything=True)
        # With any limit, all bad rows of the files have been seen.
        ended = [
            (key, mended())
            for key, listed_in in self._known_failures.items()
            if listed_in in self._lists and key not in self._bad
        ]
        for at in range(0, len(ended), _FAILURES_A_SHARD):
            self._shards.commit(sources_table(ended[at : at + _FAILURES_A_SHARD]))
        self._report.shards = self._shards.names
        return self._report

    # New videos

    def _take_new(self, table: pa.Table) -> None:
        self._write_new(table, everything=False)

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

    def _take_bad(self, table: pa.Table) -> None:
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

    def _take_known(self, table: pa.Table) -> None:
        edges = [*starts_of(table, "shard"), table.num_rows]
        for first, last in itertools.pairwise(edges):
            shard = table["shard"][int(first)].as_py()
            if shard == _REMOVED:
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
