"""Builds the index that `pipeline/catalog/published_index.py` reads, part by part."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.catalog.index import ShardFiles, StoredFile, folder_times
from clipmill.pipeline.catalog.published_index import (
    PublishedManifest,
    PublishedPart,
    PublishedSource,
    made_of,
)
from clipmill.pipeline.catalog.views import CLIPS_VIDEO_COLUMNS
from clipmill.pipeline.dataset.shards import (
    commit,
    shard_name,
    shard_path,
    temporary_beside,
    write_json,
)
from clipmill.schemas.damage import reading
from clipmill.schemas.folders import INDEX_MANIFEST

PART_ROWS = 500_000
PART_GROUPS = 2_000
_GROUP_ROWS = 100_000
# Those with few values, or with one for all clips of a video. A map has them in its keys.
_REPEATED = frozenset(
    (*(name for name, _ in CLIPS_VIDEO_COLUMNS), "video_id", "source_key", "media", "extra")
)
_DICTIONARIES = {"extra": "extra.key_value.key"}
# A folder's time is trusted only after this delay, so that two changes can't share one.
_SETTLED_SECONDS = 0.1


def update_published_index(
    source: PublishedSource,
    connection: duckdb.DuckDBPyConnection,
    *,
    part_rows: int = PART_ROWS,
    keep_former: bool = True,
) -> PublishedManifest:
    """Updates the index of published clips; the caller holds the dataset's lock.

    Files are never changed. Those that the manifest no longer names stay until the next update,
    for readers that have the catalog open, unless `keep_former` is false.
    """
    folder = source.folder
    folder.mkdir(parents=True, exist_ok=True)
    before = PublishedManifest.read(folder)
    files = ShardFiles(source.tables)
    states = files.states
    usable = before.parts if before is not None and before.made_of == made_of(source.scores) else ()
    kept = [
        part
        for part in usable
        if all(states.get(base) == state for base, state in part.bases.items())
        and part.file.is_whole(folder)
    ]
    todo = sorted(set(states).difference(*(part.bases for part in kept)), key=int)
    if todo:
        # Small parts are rebuilt together with new groups, to keep the number of parts low.
        small = [part for part in kept if part.n_clips < part_rows // 2]
        kept = [part for part in kept if part not in small]
        todo = sorted({*todo, *(base for part in small for base in part.bases)}, key=int)
    parts = list(kept)
    numbers = itertools.count(_free_number(folder))
    for bases in _groups(source, files, todo, part_rows):
        path = folder / f"clips-{shard_name(next(numbers))}.parquet"
        _write(source.live(files, bases), connection, path)
        parts.append(
            PublishedPart(
                StoredFile.of(path),
                pq.read_metadata(path).num_rows,
                {base: states[base] for base in bases},
            )
        )
    now = PublishedManifest(made_of(source.scores), tuple(parts), _settled_times(source))
    if now != before:
        write_json(folder / INDEX_MANIFEST, now.record())
    if now != before or not keep_former:
        wanted = {
            part.file.name
            for manifest in (before if keep_former else None, now)
            if manifest is not None
            for part in manifest.parts
        }
        for path in folder.iterdir():
            if path.name not in wanted and path.name != INDEX_MANIFEST:
                path.unlink(missing_ok=True)
    return now


def _groups(
    source: PublishedSource, files: ShardFiles, bases: Sequence[str], part_rows: int
) -> Iterator[list[str]]:
    """Whole base shards in order, about as many as fit one part."""
    folder = Path(source.ingest.folder or "")
    group: list[str] = []
    rows = 0
    for base in bases:
        spans = sum(
            _spans_in(shard_path(folder, name))
            for name in files.by_table[source.ingest.step].get(base, ())
        )
        if group and (rows + spans > part_rows or len(group) >= PART_GROUPS):
            yield group
            group, rows = [], 0
        group.append(base)
        rows += spans
    if group:
        yield group


def _spans_in(path: Path) -> int:
    """How many values a shard's spans have, from its footer."""
    with reading(path):
        metadata = pq.read_metadata(path)
        columns = [metadata.schema.column(n).path for n in range(metadata.num_columns)]
        if "spans.list.element.end_seconds" not in columns:
            return int(metadata.num_rows)
        at = columns.index("spans.list.element.end_seconds")
        return sum(
            metadata.row_group(group).column(at).num_values
            for group in range(metadata.num_row_groups)
        )


def _write(query: str, connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Writes a part as its rows arrive: PyArrow does it in half the time of DuckDB."""
    temporary = temporary_beside(path)
    try:
        with connection.sql(query).to_arrow_reader(_GROUP_ROWS) as reader:
            names = reader.schema.names
            with pq.ParquetWriter(
                temporary,
                reader.schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=[
                    _DICTIONARIES.get(name, name) for name in names if name in _REPEATED
                ],
            ) as writer:
                for table in _row_groups(reader):
                    writer.write_table(table, row_group_size=table.num_rows)
        commit(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _row_groups(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """The rows in tables that are large enough: DuckDB's batches end with the files it reads."""
    waiting: list[pa.RecordBatch] = []
    for batch in reader:
        waiting.append(batch)
        if sum(one.num_rows for one in waiting) >= _GROUP_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _free_number(folder: Path) -> int:
    found = [
        int(path.stem.partition("-")[2])
        for path in folder.glob("clips-[0-9]*.parquet")
        if path.stem.partition("-")[2].isdigit()
    ]
    return max(found, default=-1) + 1


def _settled_times(source: PublishedSource) -> dict[str, int]:
    """The folders' modification times, once a later change would have a different one."""
    times = folder_times(source.dataset, source.tables)
    if not times or all(at % 1_000_000_000 == 0 for at in times.values()):
        return {}  # no times, or whole seconds: too coarse for this
    left = _SETTLED_SECONDS - (time.time() - max(times.values()) / 1e9)
    if 0 < left <= _SETTLED_SECONDS:
        time.sleep(left)
    return times
