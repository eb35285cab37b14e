"""Rows of sources before they are merged, and where many of them are kept."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.schemas.sql_text import escaped_for_glob, literal
from clipmill.schemas.tables import SOURCES

DUPLICATE_RULE = "sources.duplicate"

_MOST_BYTES_IN_MEMORY = 64 << 20
HELPERS = pa.schema(
    [
        ("seq", pa.int64()),
        ("row_of", pa.int32()),
        ("again", pa.bool_()),
        ("place", pa.string()),
        ("locator", pa.string()),
    ]
)
GATHERED_ROWS = pa.schema([*HELPERS, *SOURCES])


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
