"""Prints rows in all formats of the command line."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from clipmill.schemas.errors import UsageError, printable
from clipmill.schemas.words import counted

FORMATS = ("table", "csv", "json", "jsonl", "parquet")
MAX_TABLE_ROWS = 1000
_LONGEST_CELL = 200
_NARROWEST_COLUMN = 6
_NARROWEST_TEXT = 12
_NULL = "∅"


def write_rows(rows: pa.RecordBatchReader, format: str, output: Path | None = None) -> None:
    """Writes rows to standard output, or atomically to a file.

    Long text is only shortened in a table on a terminal.
    """
    if format not in FORMATS:
        raise UsageError(f"--format {format}: allowed: {', '.join(FORMATS)}")
    if format == "parquet":
        if output is None and sys.stdout.isatty():
            raise UsageError("Parquet can't be shown on a terminal; add --output FILE")
        with _binary(output) as file:
            _write_parquet(rows, file)
        return
    if format == "table" and output is None:
        _print_table(rows, sys.stdout)
        return
    writers: dict[str, Callable[[pa.RecordBatchReader, IO[str]], None]] = {
        "csv": _write_csv,
        "json": _write_json,
        "jsonl": _write_jsonl,
        "table": _print_table,
    }
    with _text(output) as file:
        writers[format](rows, file)


def plain(value: Any) -> Any:
    """A value for JSON: no NaN, times in ISO 8601, bytes in hexadecimal."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def _records(rows: pa.RecordBatchReader) -> Iterator[list[Any]]:
    """The rows as plain values, column by column (two columns may have one name)."""
    for batch in rows:
        columns = [
            [plain(_maps_as_dicts(value, column.type)) for value in column.to_pylist()]
            for column in batch.columns
        ]
        yield from map(list, zip(*columns, strict=True))


def _maps_as_dicts(value: Any, kind: pa.DataType) -> Any:
    """Converts maps, which Arrow returns as pairs, at any depth."""
    if value is None:
        return None
    if pa.types.is_map(kind):
        return {key: _maps_as_dicts(item, kind.item_type) for key, item in value}
    if pa.types.is_struct(kind):
        return {field.name: _maps_as_dicts(value[field.name], field.type) for field in kind}
    if isinstance(value, list):
        return [_maps_as_dicts(item, kind.value_type) for item in value]
    return value


def _write_csv(rows: pa.RecordBatchReader, file: IO[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(rows.schema.names)
    for record in _records(rows):
        writer.writerow([_nested_as_text(value) for value in record])


def _nested_as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return value


def _write_jsonl(rows: pa.RecordBatchReader, file: IO[str]) -> None:
    names = rows.schema.names
    for record in _records(rows):
        file.write(json.dumps(dict(zip(names, record, strict=True)), ensure_ascii=False) + "\n")


def _write_json(rows: pa.RecordBatchReader, file: IO[str]) -> None:
    names = rows.schema.names
    separator = "[\n"
    for record in _records(rows):
        file.write(
            separator + json.dumps(dict(zip(names, record, strict=True)), ensure_ascii=False)
        )
        separator = ",\n"
    file.write("[]\n" if separator == "[\n" else "\n]\n")


def _write_parquet(rows: pa.RecordBatchReader, file: IO[bytes]) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, rows.schema, compression="zstd") as writer:
        for batch in rows:
            writer.write_batch(batch)


def _print_table(rows: pa.RecordBatchReader, file: IO[str]) -> None:
    from rich.console import Console

    on_terminal = file.isatty()
    console = Console(file=file, highlight=False)
    records: list[list[str]] = []
    more = False
    for record in _records(rows):
        if len(records) == MAX_TABLE_ROWS:
            more = True
            break
        records.append([_cell(value, on_terminal) for value in record])
    names = rows.schema.names
    if not on_terminal:
        _print_lines(file, names, records)
    elif _fits(names, records, console.width):
        _print_grid(console, names, records, rows.schema)
    else:
        _print_blocks(console, names, records)
    said = counted(len(records), "row")
    if more:
        said = f"the first {said}; --format csv or --output FILE gives all of them"
    print(f"({said})", file=sys.stderr)


def _cell(value: Any, shorten: bool) -> str:
    if value is None:
        return _NULL
    if isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, dict | list):
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = str(value)
    # Control characters of a title from the network must not steer the terminal.
    text = "".join(c if c.isprintable() else " " for c in text)
    return text[: _LONGEST_CELL - 1] + "…" if shorten and len(text) > _LONGEST_CELL else text


def _fits(names: list[str], records: list[list[str]], width: int) -> bool:
    """Whether a grid would leave every column wide enough for its words."""
    longest = [
        max([len(name), *(min(len(record[i]), 24) for record in records)])
        for i, name in enumerate(names)
    ]
    return sum(max(_NARROWEST_COLUMN, min(size, 16)) + 2 for size in longest) <= width


def _print_grid(
    console: Any, names: list[str], records: list[list[str]], schema: pa.Schema
) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    numbers = [
        pa.types.is_integer(field.type)
        or pa.types.is_floating(field.type)
        or pa.types.is_decimal(field.type)
        for field in schema
    ]
    narrowed = _narrowed(names, records, numbers, console.width)
    for name, number, width in zip(names, numbers, narrowed, strict=True):
        table.add_column(
            Text(name), justify="right" if number else "left", overflow="fold", max_width=width
        )
    for record in records:
        table.add_row(*map(Text, record))
    console.print(table)


def _narrowed(
    names: list[str], records: list[list[str]], numbers: list[bool], room: int
) -> list[int | None]:
    """The width of texts that keeps ids on one line: an id broken over two can't be copied."""
    widths = [
        max([len(name), *(len(record[i]) for record in records)]) for i, name in enumerate(names)
    ]
    gaps = 2 * (len(names) - 1)
    texts = {i for i, number in enumerate(numbers) if not number and not names[i].endswith("_id")}
    left = room - gaps - sum(width for i, width in enumerate(widths) if i not in texts)
    narrowed: list[int | None] = [None] * len(names)
    if (
        sum(widths) + gaps <= room
        or not any(name.endswith("_id") for name in names)
        or left < _NARROWEST_TEXT * len(texts)
    ):
        return narrowed
    # Short texts take what they need, the others share the rest.
    while texts:
        share = left // len(texts)
        short = {i for i in texts if widths[i] <= share}
        if not short:
            return [share if i in texts else None for i in range(len(names))]
        left -= sum(widths[i] for i in short)
        texts -= short
    return narrowed


def _print_lines(file: IO[str], names: list[str], records: list[list[str]]) -> None:
    """In a pipe, each row stays on one line, however long."""
    lines = [names, *records]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    for line in lines:
        padded = (value.ljust(width) for value, width in zip(line, widths, strict=True))
        file.write("  ".join(padded).rstrip() + "\n")


def _print_blocks(console: Any, names: list[str], records: list[list[str]]) -> None:
    """Each row as lines of `name  value`, for rows too wide for the terminal."""
    from rich.table import Table
    from rich.text import Text

    for number, record in enumerate(records, 1):
        console.print(Text(f"── row {number} ", style="bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in zip(names, record, strict=True):
            table.add_row(Text(name), Text(value))
        console.print(table)


class _Terminal(io.TextIOBase):
    """The text without characters that could control the terminal; unchanged in a pipe."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(printable(text))


@contextmanager
def _text(output: Path | None) -> Iterator[IO[str]]:
    if output is None:
        # Only used for writing, which both support.
        yield cast("IO[str]", _Terminal(sys.stdout)) if sys.stdout.isatty() else sys.stdout
        return
    with _replacing(output) as temporary, open(temporary, "w", encoding="utf-8", newline="") as f:
        yield f


@contextmanager
def _binary(output: Path | None) -> Iterator[IO[bytes]]:
    if output is None:
        yield sys.stdout.buffer
        return
    with _replacing(output) as temporary, open(temporary, "wb") as file:
        yield file


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """A temporary file that replaces `output` if there is no error."""
    if not output.parent.is_dir() or output.is_dir():
        raise UsageError(f"--output {output}: give a file in an existing folder")
    temporary = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
