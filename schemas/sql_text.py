"""Writes names, texts and types in DuckDB's SQL."""

from __future__ import annotations

import re

import pyarrow as pa


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def escaped_for_glob(path: str) -> str:
    return re.sub(r"([\[*?])", r"[\1]", path)


_SIMPLE_TYPES = (
    (pa.types.is_boolean, "BOOLEAN"),
    (pa.types.is_int8, "TINYINT"),
    (pa.types.is_int16, "SMALLINT"),
    (pa.types.is_int32, "INTEGER"),
    (pa.types.is_int64, "BIGINT"),
    (pa.types.is_uint8, "UTINYINT"),
    (pa.types.is_uint16, "USMALLINT"),
    (pa.types.is_uint32, "UINTEGER"),
    (pa.types.is_uint64, "UBIGINT"),
    (pa.types.is_float16, "FLOAT"),
    (pa.types.is_float32, "FLOAT"),
    (pa.types.is_float64, "DOUBLE"),
    (pa.types.is_string, "VARCHAR"),
    (pa.types.is_large_string, "VARCHAR"),
    (pa.types.is_string_view, "VARCHAR"),
    (pa.types.is_binary, "BLOB"),
    (pa.types.is_large_binary, "BLOB"),
    (pa.types.is_fixed_size_binary, "BLOB"),
    (pa.types.is_date, "DATE"),
    (pa.types.is_time, "TIME"),
    (pa.types.is_duration, "INTERVAL"),
    (pa.types.is_null, "VARCHAR"),
)


def duckdb_type(kind: pa.DataType) -> str:
    """DuckDB's type for a Parquet column of this Arrow type."""
    for matches, name in _SIMPLE_TYPES:
        if matches(kind):
            return name
    if pa.types.is_timestamp(kind):
        return "TIMESTAMP WITH TIME ZONE" if kind.tz else "TIMESTAMP"
    if pa.types.is_decimal(kind):
        return f"DECIMAL({kind.precision}, {kind.scale})"
    if pa.types.is_dictionary(kind):
        return duckdb_type(kind.value_type)
    if pa.types.is_map(kind):
        return f"MAP({duckdb_type(kind.key_type)}, {duckdb_type(kind.item_type)})"
    if pa.types.is_struct(kind):
        fields = ", ".join(f"{quoted(field.name)} {duckdb_type(field.type)}" for field in kind)
        return f"STRUCT({fields})"
    if hasattr(kind, "value_type"):
        return f"{duckdb_type(kind.value_type)}[]"
    raise TypeError(f"no DuckDB type is known for the Arrow type {kind}")


def null(kind: pa.DataType) -> str:
    return f"CAST(NULL AS {duckdb_type(kind)})"
