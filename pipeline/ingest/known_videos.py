"""Finds the rows of videos that a dataset already has, or had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.pipeline.dataset.shards import committed_shards
from clipmill.pipeline.dataset.tombstones import removed_videos
from clipmill.pipeline.ingest.internvid import ROWS
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.folders import SOURCES
from clipmill.schemas.sql_text import escaped_for_glob, literal
from clipmill.schemas.tables import SPAN

REMOVED = "removed"
"""Stands for a shard of removed videos; it sorts after the shards, whose names are digits."""

KNOWN_ROWS = pa.schema(
    [
        *(ROWS.field(name) for name in ROWS.names if name not in ("keys", "values", "problem")),
        SPAN.field("extra"),
        ("shard", pa.string()),
    ]
)
_BATCH_ROWS = 50_000


class KnownVideos:
    """The ids of a dataset's videos with their shards, read along with sorted rows."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, dataset: Path) -> None:
        self._ahead = pa.table(
            {"id": pa.array([], pa.string()), "shard": pa.array([], pa.string())}
        )
        self._batches = _known(connection, dataset)

    def split(self, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Rows of new videos, and those of known ones as `KNOWN_ROWS`.

        All rows of a video come together, and ids only grow from call to call.
        """
        known = self._up_to(rows["id"][rows.num_rows - 1].as_py())
        at = pc.index_in(rows["id"], known["id"].combine_chunks())
        if at.null_count == len(at):
            return rows, KNOWN_ROWS.empty_table()
        found = rows.append_column(
            "shard", known["shard"].combine_chunks().take(at.combine_chunks())
        )
        former = found.filter(pc.is_valid(at)).select(KNOWN_ROWS.names).cast(KNOWN_ROWS)
        return rows.filter(pc.is_null(at)), former

    def _up_to(self, last: str) -> pa.Table:
        """The next known videos, up to an id; no later rows are about them."""
        while not self._ahead.num_rows or self._ahead["id"][-1].as_py() <= last:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._ahead = pa.concat_tables([self._ahead, pa.Table.from_batches([batch])])
        found = self._ahead.filter(pc.less_equal(self._ahead["id"], last))
        self._ahead = self._ahead.slice(found.num_rows)
        return found


def _known(connection: duckdb.DuckDBPyConnection, dataset: Path) -> Iterator[pa.RecordBatch]:
    """The videos in the order of their ids; they are found now, and read when needed."""
    removed = [
        video.removeprefix("youtube-")
        for video in removed_videos(dataset)
        if video.startswith("youtube-")
    ]
    known = []
    if removed:
        connection.register("removed", pa.table({"id": pa.array(removed, pa.string())}))
        known.append(f"SELECT id, {literal(REMOVED)} AS shard FROM removed")
    folder = dataset / SOURCES
    if committed_shards(folder):
        shards = literal(f"{escaped_for_glob(str(folder.absolute()))}/*.parquet")
        known.append(
            r"SELECT platform_id AS id, min(regexp_extract(filename, '(\d+)\.parquet$', 1)) "
            f"AS shard FROM read_parquet({shards}, filename = true, union_by_name = true) "
            "WHERE extractor = 'youtube' AND rejection.rule IS DISTINCT FROM 'sources.duplicate' "
            "GROUP BY platform_id"
        )
    if not known:
        return iter(())
    try:
        connection.execute(
            "CREATE TEMP TABLE known_videos AS SELECT id, max(shard) AS shard "
            f"FROM ({' UNION ALL '.join(known)}) WHERE id IS NOT NULL GROUP BY id"
        )
    except duckdb.Error as error:
        said = str(error).partition("\n")[0]
        raise ClipmillError(f"the sources could not be read: {said}") from error
    query = "SELECT id, shard FROM known_videos ORDER BY id"
    return iter(connection.sql(query).to_arrow_reader(_BATCH_ROWS))
