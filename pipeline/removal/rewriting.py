"""Rewrites one shard without the rows of removed videos; the file keeps its name and layout."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.dataset.shards import (
    SHARD_METADATA_KEY,
    ShardMetadata,
    note_outcomes,
    shard_writer,
)
from clipmill.schemas.damage import reading
from clipmill.schemas.ids import is_of
from clipmill.schemas.step_tables import REMOVED_RULE
from clipmill.schemas.tables import REJECTION

_STAYS = frozenset(("source_key", "position", "rejection"))


@dataclass(frozen=True)
class RemovalTargets:
    """What to remove: videos by id, sources by key; `when` is the time stored in the remaining
    rows."""

    videos: frozenset[str]
    source_keys: frozenset[str]
    when: str

    def has_key(self, key: str) -> bool:
        """Whether the key of a source, a video or a clip is to be removed."""
        return is_of(key, self.videos, self.source_keys)


def _mask(table: pa.Table, selection: RemovalTargets) -> pa.ChunkedArray:
    """Which rows are removed or, in a table over sources, emptied."""
    videos = pa.array(selection.videos, pa.string())
    found = pa.chunked_array([pa.nulls(table.num_rows, pa.bool_()).fill_null(False)])
    names = table.column_names
    if "source_key" in names:
        keys = pa.array(selection.source_keys, pa.string())
        found = pc.or_(found, pc.is_in(table["source_key"], keys))
    if "video_id" in names:
        found = pc.or_(found, pc.is_in(table["video_id"], videos))
    elif "clip_id" in names:
        owners = pc.replace_substring_regex(table["clip_id"], r"-m?\d+-m?\d+$", "")
        found = pc.or_(found, pc.is_in(owners, videos))
    return found


def _key_columns(names: list[str]) -> list[str]:
    return [name for name in ("source_key", "video_id", "clip_id") if name in names]


def matching_rows(path: Path, selection: RemovalTargets) -> tuple[int, set[str]]:
    """How many rows of a shard match and are not emptied yet, and the clips among them."""
    with reading(path):
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        columns = _key_columns(names)
        if not columns:
            return 0, set()
        is_source = "source_key" in names
        table = file.read(columns=[*columns, "rejection"] if is_source else columns)
    mask = _mask(table, selection)
    if is_source:
        mask = pc.and_(mask, pc.invert(_is_emptied(table)))
    rows = table.filter(mask)
    clips = rows["clip_id"].drop_null().to_pylist() if "clip_id" in names else []
    return rows.num_rows, set(clips)


def _is_emptied(table: pa.Table) -> pa.ChunkedArray:
    rule = pc.struct_field(table["rejection"], "rule")
    return pc.fill_null(pc.equal(rule, REMOVED_RULE), False)


def rewrite_shard(path: Path, selection: RemovalTargets) -> None:
    """Rewrites a shard, row group by row group, with matching counts in its footer."""
    with reading(path):
        file = pq.ParquetFile(path)
    schema = file.schema_arrow
    metadata = dict(file.metadata.metadata or {})
    metadata.pop(b"ARROW:schema", None)
    # Further tables of a step, such as frames, have no outcomes to count.
    has_outcomes = {"rejection", "error"} <= set(schema.names)
    counted = metadata.pop(SHARD_METADATA_KEY, None) if has_outcomes else None
    key = schema.names[0]
    outcome: dict[str, str] = {}
    outputs = 0
    emptied: set[str] = set()
    with shard_writer(path, schema.with_metadata(metadata or None)) as writer:
        for group in range(file.num_row_groups):
            with reading(path):
                table = file.read_row_group(group)
            mask = _mask(table, selection)
            rest = table.filter(pc.invert(mask))
            if "source_key" in schema.names:
                stubs = _emptied(table.filter(mask), selection.when, emptied)
                rest = _in_order(table, rest, stubs)
            writer.write(rest.replace_schema_metadata(metadata or None))
            if counted is not None:
                outputs += note_outcomes(key, rest, outcome)
        if counted is None:
            writer.finish()
            return
        counts = Counter(outcome.values())
        writer.finish(
            replace(
                ShardMetadata.read(path),
                inputs=len(outcome),
                kept=counts["kept"],
                rejected=counts["rejected"],
                failed=counts["failed"],
                skipped=counts["skipped"],
                outputs=outputs,
            )
        )


def _emptied(rows: pa.Table, when: str, seen: set[str]) -> pa.Table:
    """One row per source, with nothing but its key, its position and the rejection."""
    first = []
    for row, key in enumerate(rows["source_key"].to_pylist()):
        if key not in seen:
            seen.add(key)
            first.append(row)
    rows = rows.take(pa.array(first, pa.int64()))
    rejection = pa.array([{"rule": REMOVED_RULE, "detail": when}] * rows.num_rows, REJECTION)
    columns = []
    for column in rows.schema:
        if column.name == "rejection":
            columns.append(rejection.cast(column.type))
        elif column.name in _STAYS:
            columns.append(rows[column.name])
        else:
            columns.append(pa.nulls(rows.num_rows, column.type))
    return pa.table(columns, schema=rows.schema)


def _in_order(before: pa.Table, kept: pa.Table, stubs: pa.Table) -> pa.Table:
    """Merges the remaining and the emptied rows in their original order."""
    if not stubs.num_rows:
        return kept
    both = pa.concat_tables([kept, stubs])
    places: dict[str, int] = {}
    for place, key in enumerate(before["source_key"].to_pylist()):
        places.setdefault(key, place)
    order = sorted(range(both.num_rows), key=lambda row: places[both["source_key"][row].as_py()])
    return both.take(pa.array(order, pa.int64()))
