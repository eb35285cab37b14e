"""Converts rows for text formats: shortest decimals, no NaN, maps as objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def readable_numbers(table: pa.Table) -> pa.Table:
    """The table with floats as doubles that have short texts, and null for NaN and infinity.

    A single-precision 0.3 is 0.30000001192092896 as a double; its shortest text is 0.3.
    """
    columns = [_readable(column.combine_chunks()) for column in table.columns]
    return pa.table(columns, names=table.column_names)


def _readable(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_float16(kind):
        return _readable(array.cast(pa.float32()))
    if pa.types.is_float32(kind):
        return _finite(array.cast(pa.string()).cast(pa.float64()))
    if pa.types.is_float64(kind):
        return _finite(array)
    if pa.types.is_list(kind):
        # `flatten` drops values under nulls, but the offsets still count them.
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        ends = pc.cumulative_sum(lengths).to_pylist()
        offsets = pa.array([0, *ends], pa.int32())
        return pa.ListArray.from_arrays(offsets, _readable(array.flatten()), mask=array.is_null())
    if pa.types.is_struct(kind):
        fields = [_readable(field) for field in array.flatten()]
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return pa.StructArray.from_arrays(fields, names, mask=array.is_null())
    return array


def _finite(array: pa.Array) -> pa.Array:
    return pc.if_else(
        pc.fill_null(pc.is_finite(array), False), array, pa.scalar(None, pa.float64())
    )


def records(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Its rows as values that JSON can hold."""
    plain = readable_numbers(table)
    columns = [
        [json_value(value, column.type) for value in column.to_pylist()] for column in plain.columns
    ]
    for values in zip(*columns, strict=True):
        yield dict(zip(plain.column_names, values, strict=True))


def json_value(value: Any, kind: pa.DataType) -> Any:
    """A value in a form that JSON can hold; Arrow returns maps as pairs, at any depth."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    if pa.types.is_map(kind):
        return {str(key): json_value(item, kind.item_type) for key, item in value}
    if pa.types.is_struct(kind):
        return {field.name: json_value(value[field.name], field.type) for field in kind}
    if isinstance(value, list):
        return [json_value(item, kind.value_type) for item in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value.hex() if isinstance(value, bytes) else str(value)


def json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
