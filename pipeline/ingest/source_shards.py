"""Reads and writes the shards of the `sources` table."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.dataset.published_scores import note_published, published_in
from clipmill.pipeline.dataset.shards import (
    ShardMetadata,
    ShardWriter,
    committed_shards,
    remove_all_leftovers,
    shard_name,
    shard_path,
)
from clipmill.pipeline.ingest.listed_rows import Source
from clipmill.schemas.damage import reading
from clipmill.schemas.errors import MAX_MESSAGE_CHARACTERS
from clipmill.schemas.step_tables import EXPANDED_RULE, MENDED_RULE, REMOVED_RULE
from clipmill.schemas.tables import SOURCES

_OF_FAILURES = ["source_key", "listed_in", "rejection", "error"]
# Captions, times and scores of clips rarely repeat.
_REPEATED = [
    "spans.list.element.extra.key_value.key",
    "extra.key_value.key",
    "extractor",
    "category",
    "language",
    "query",
    "listed_in",
]
_SHARDS_AHEAD = 4
KEPT, REJECTED, FAILED = range(3)
"""The outcome of a source."""


class NewShards:
    """Appends shards to a dataset's sources, and counts the outcomes of their rows.

    With `writers`, shards are written while the next are prepared, and become visible in order;
    leaving the context waits for all of them, or discards them after an error.
    """

    def __init__(self, folder: Path, writers: ThreadPoolExecutor | None = None) -> None:
        self.names: list[str] = []
        self._writers = writers
        self._written: deque[Future[ShardWriter]] = deque()
        self.totals = {"kept": 0, "rejected": 0, "failed": 0}
        self._folder = folder
        before = committed_shards(folder)
        remove_all_leftovers(folder)
        self._number = int(before[-1]) + 1 if before else 0
        self._position = _last_position(shard_path(folder, before[-1])) + 1 if before else 0

    def commit(self, table: pa.Table) -> None:
        """Commits rows of `sources` as the next shard; their `position` is set here."""
        name = shard_name(self._number)
        positions = pa.array(range(self._position, self._position + table.num_rows), pa.int64())
        place = table.schema.get_field_index("position")
        note_published(self._folder.parent, published_in(table["spans"]))
        table = table.set_column(place, "position", positions)
        if self._writers is None:
            write_sources(self._folder, name, table)
        else:
            self._written.append(self._writers.submit(_written, self._folder, name, table))
            while len(self._written) > _SHARDS_AHEAD:
                self._written.popleft().result().show()
        for outcome, count in _outcomes(table).items():
            self.totals[outcome] += count
        self.names.append(name)
        self._number += 1
        self._position += table.num_rows

    def show(self) -> None:
        """Waits until all shards are visible."""
        while self._written:
            self._written.popleft().result().show()

    def __enter__(self) -> NewShards:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.show()
        finally:
            for written in self._written:
                with contextlib.suppress(Exception):  # the first error is the one to report
                    written.result().discard()
            self._written.clear()


def write_sources(folder: Path, name: str, table: pa.Table) -> None:
    """Commits one shard of sources; an existing one is replaced completely."""
    _written(folder, name, table).show()


def _written(folder: Path, name: str, table: pa.Table) -> ShardWriter:
    """One shard of sources, complete on disk, but not visible yet."""
    counts = _outcomes(table)
    folder.mkdir(parents=True, exist_ok=True)
    path = shard_path(folder, name)
    writer = ShardWriter(path, SOURCES, clean=False, dictionaries=_REPEATED)
    try:
        writer.write(table.select(SOURCES.names))
        writer.seal(
            ShardMetadata(
                "sources",
                "sources",
                name,
                "",
                "",
                inputs=table.num_rows,
                kept=counts["kept"],
                rejected=counts["rejected"],
                failed=counts["failed"],
                outputs=counts["kept"],
            )
        )
    except BaseException:
        writer.discard()
        raise
    return writer


def _outcomes(table: pa.Table) -> dict[str, int]:
    failed = table.num_rows - table["error"].null_count
    rejected = table.num_rows - table["rejection"].null_count
    return {"kept": table.num_rows - failed - rejected, "rejected": rejected, "failed": failed}


def _last_position(shard: Path) -> int:
    with reading(shard):
        return int(pc.max(pq.read_table(shard, columns=["position"])["position"]).as_py())


def sources_table(rows: Iterable[tuple[str, Source]]) -> pa.Table:
    """Sources with their keys as rows of the table; NewShards sets their positions."""
    now = datetime.now(UTC)
    return pa.Table.from_pylist([_row(key, source, now) for key, source in rows], SOURCES)


def _row(key: str, source: Source, now: datetime) -> dict[str, Any]:
    if source.rejection is not None and source.rejection["rule"] == REMOVED_RULE:
        # A removed source keeps only its key.
        return {"source_key": key, "rejection": source.rejection}
    error = None
    if source.problem is not None:
        error = {
            "kind": source.problem.kind,
            "attempts": 1,
            "at": now,
            "message": source.problem.message[:MAX_MESSAGE_CHARACTERS],
        }
    return {
        "source_key": key,
        "position": None,
        "url": source.url,
        "path": source.path,
        "extractor": source.extractor,
        "platform_id": source.platform_id,
        "video_id": source.video_id,
        "spans": in_order(source.spans),
        "title": source.title,
        "category": source.category,
        "language": source.language,
        "query": source.query,
        "caption": source.caption,
        "extra": source.extra,
        "listed_in": None if error is None else source.listed_in,
        "rejection": source.rejection,
        "error": error,
    }


def in_order(spans: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    if spans is None:
        return None
    return sorted(
        spans, key=lambda span: (span["start_seconds"], span["end_seconds"], span["caption"] or "")
    )


@dataclass(frozen=True)
class KnownSources:
    """The sources that a dataset has: `key`, `state` and `shard`, in the order of writing.

    `failures` are the current ones, with the lists that they are in.
    """

    table: pa.Table
    failures: dict[str, str | None]


def known_sources(folder: Path) -> KnownSources:
    """Reads all shards; if a key occurs twice, the later row counts."""
    tables = [
        pa.table(
            {
                "key": pa.array([], pa.string()),
                "state": pa.array([], pa.int8()),
                "shard": pa.array([], pa.string()),
            }
        )
    ]
    failures: dict[str, str | None] = {}
    for shard in committed_shards(folder):
        path = shard_path(folder, shard)
        with reading(path):
            # The schema adds the columns that shards of earlier releases lack.
            table = pq.read_table(path, schema=SOURCES, columns=_OF_FAILURES)
        tables.append(
            pa.table(
                {
                    "key": table["source_key"],
                    "state": states(table),
                    "shard": pa.repeat(shard, table.num_rows),
                }
            )
        )
        _note_failures(table, failures)
    return KnownSources(pa.concat_tables(tables), failures)


def states(table: pa.Table) -> pa.ChunkedArray:
    """The state of each row of sources: KEPT, REJECTED or FAILED."""
    found = pc.if_else(
        pc.is_valid(table["error"]),
        FAILED,
        pc.if_else(pc.is_valid(table["rejection"]), REJECTED, KEPT),
    )
    return found.cast(pa.int8())


def _note_failures(table: pa.Table, failures: dict[str, str | None]) -> None:
    """Updates the current failures with the next shard's rows."""
    ended = pc.is_in(
        pc.struct_field(table["rejection"], "rule"), pa.array([EXPANDED_RULE, MENDED_RULE])
    )
    rows = table.filter(pc.or_(pc.is_valid(table["error"]), ended))
    for row in rows.select(_OF_FAILURES).to_pylist():
        if row["error"] is not None:
            failures[row["source_key"]] = row["listed_in"]
        else:
            failures.pop(row["source_key"], None)


def mended() -> Source:
    """Resolves an earlier failure, under its key: its list no longer has such a row."""
    return Source(
        "",
        again=True,
        rejection={
            "rule": MENDED_RULE,
            "detail": "the list no longer has this row in the same form",
        },
    )
