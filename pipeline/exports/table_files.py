"""Writes tables: Parquet, and CSV with nested columns as JSON text."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from clipmill.pipeline.exports.export_shards import ShardFile
from clipmill.pipeline.exports.request import ExportRequest
from clipmill.pipeline.exports.selection import Unit
from clipmill.pipeline.exports.units import media_columns, read_unit
from clipmill.pipeline.exports.values import json_text, json_value, readable_numbers

# A shard grows by parts: small ones, so that it ends near its size.
PARTS_A_SHARD = 8
MOST_PART_BYTES = 32 * 2**20
# The size of a row group's metadata in a Parquet file, for each column.
FOOTER_BYTES_A_COLUMN = 400
VIDEO_GROUP_FOOTER_BYTES = 40_000
VIDEO = "video"
VIDEO_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# Readers of single files recognise the video column by this; the card describes all columns.
_VIDEO_METADATA = {
    b"huggingface": json.dumps({"info": {"features": {VIDEO: {"_type": "Video"}}}}).encode()
}
# Content-defined chunking: a hub stores the common pages of two versions only once.
_CHUNKS = {"min_chunk_size": 256 * 1024, "max_chunk_size": 1024 * 1024, "norm_level": 0}
# One row group of videos is in memory at once.
MOST_VIDEO_BYTES_A_GROUP = 64 * 2**20
# Ids are never escaped, even if they begin with a dash, as long as they look like ids.
_IDS = {"clip_id", "video_id", "source_id", "extractor", "sha256", "url", "codec", "media_path"}
_FORMULA = r"^[=+\-@\t\r]"
_ID_FORMULA = r"^(?:[=+@\t\r]|-[A-Za-z0-9_-]*[^A-Za-z0-9_-])"
# Control characters, and marks that change the text direction.
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x{9f}\x{202a}-\x{202e}\x{2066}-\x{2069}]"


def shown_columns(request: ExportRequest, shown: Sequence[str]) -> list[str]:
    return [*shown, *media_columns(request).names]


def parts_of(request: ExportRequest, unit: Unit, columns: Sequence[str]) -> Iterator[pa.Table]:
    """A unit's rows in parts that are small against a shard."""
    table = read_unit(request, unit, columns)
    bound = min(MOST_PART_BYTES, request.shard_bytes // PARTS_A_SHARD)
    rows = max(1, int(bound / max(1, table.nbytes / max(1, table.num_rows))))
    for start in range(0, table.num_rows, rows):
        yield table.slice(start, rows)


class ParquetFile(ShardFile):
    """One Parquet file; a part is a row group."""

    suffix = ".parquet"

    def __init__(self, path: Path, request: ExportRequest) -> None:
        super().__init__(path, request)
        self._file = open(path, "wb")  # noqa: SIM115 - closed with the shard
        self._writer: pq.ParquetWriter | None = None
        self._groups = 0

    def room_for(self, part: pa.Table) -> bool:
        footer = (self._groups + 2) * part.num_columns * FOOTER_BYTES_A_COLUMN
        size: int = self._file.tell() + part.nbytes + footer
        return size <= self.request.shard_bytes

    def add(self, part: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, part.schema, compression="zstd")
        self._writer.write_table(part, row_group_size=part.num_rows)
        self._groups += 1
        self.items += part.num_rows

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._file.close()


class CsvFile(ShardFile):
    """One CSV file in UTF-8; a part is its text."""

    suffix = ".csv"

    def __init__(self, path: Path, request: ExportRequest) -> None:
        super().__init__(path, request)
        self._file = open(path, "wb")  # noqa: SIM115 - closed with the shard

    def room_for(self, part: tuple[pa.Table, bytes]) -> bool:
        return self._file.tell() + len(part[1]) <= self.request.shard_bytes

    def add(self, part: tuple[pa.Table, bytes]) -> None:
        table, text = part
        if not self.items:
            self._file.write(_csv(table.slice(0, 0), header=True))
        self._file.write(text)
        self.items += table.num_rows

    def close(self) -> None:
        self._file.close()


def csv_parts(
    request: ExportRequest, unit: Unit, columns: Sequence[str]
) -> Iterator[tuple[pa.Table, bytes]]:
    """Parts of a unit as flat tables, each with its CSV text."""
    for table in parts_of(request, unit, columns):
        flat = _flat(table)
        yield flat, _csv(flat, header=False)


def _csv(table: pa.Table, *, header: bool) -> bytes:
    sink = pa.BufferOutputStream()
    options = pyarrow.csv.WriteOptions(include_header=header, quoting_style="needed")
    pyarrow.csv.write_csv(table, sink, options)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _flat(table: pa.Table) -> pa.Table:
    """The table without nested columns, and with texts that are safe in a spreadsheet."""
    plain = readable_numbers(table)
    columns = []
    for name, column in zip(plain.column_names, plain.columns, strict=True):
        kind = column.type
        if pa.types.is_nested(kind):
            texts = [
                None if value is None else json_text(json_value(value, kind))
                for value in column.to_pylist()
            ]
            columns.append(pa.array(texts, pa.string()))
        elif pa.types.is_binary(kind):
            columns.append(
                pa.array([value and value.hex() for value in column.to_pylist()], pa.string())
            )
        elif pa.types.is_string(kind):
            columns.append(_harmless(column, _ID_FORMULA if name in _IDS else _FORMULA))
        else:
            columns.append(column)
    return pa.table(columns, names=plain.column_names)


def _harmless(column: pa.ChunkedArray, formula: str) -> pa.ChunkedArray:
    """Text without control characters, and with an apostrophe before anything like a formula."""
    text = pc.replace_substring_regex(column, _CONTROL, " ")
    return pc.if_else(
        pc.fill_null(pc.match_substring_regex(text, formula), False),
        pc.binary_join_element_wise("'", text, ""),
        text,
    )


def fits_with_videos(request: ExportRequest, size: int) -> bool:
    """Whether a Parquet file with rows and videos of this size stays within the shard size."""
    groups = size // MOST_VIDEO_BYTES_A_GROUP + 2
    return size + groups * VIDEO_GROUP_FOOTER_BYTES <= request.shard_bytes


def with_video(schema: pa.Schema) -> pa.Schema:
    """The columns of a table with videos, whose path is the one in the column `video`."""
    fields = [field for field in schema if field.name != "media_path"]
    return pa.schema([fields[0], pa.field(VIDEO, VIDEO_TYPE), *fields[1:]])


@dataclass(frozen=True)
class VideoTable:
    """Writes rows with a column `video` of the clips' files, as `datasets` reads videos."""

    columns: tuple[str, ...]

    def __call__(self, request: ExportRequest, path: Path, tables: Iterable[pa.Table]) -> None:
        with contextlib.ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for table in tables:
                for start, stop in _groups(table["media_bytes"].to_pylist()):
                    part = table.slice(start, stop - start)
                    places = part["media_path"].to_pylist()
                    files = [
                        {
                            "bytes": (request.output / place).read_bytes(),
                            "path": place.rpartition("/")[2],
                        }
                        for place in places
                    ]
                    whole = part.select(self.columns).add_column(
                        1, VIDEO, pa.array(files, VIDEO_TYPE)
                    )
                    if writer is None:
                        writer = stack.enter_context(_video_writer(path, whole.schema))
                    writer.write_table(
                        whole.replace_schema_metadata(_VIDEO_METADATA),
                        row_group_size=whole.num_rows,
                    )


def _video_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer like that of `datasets`: videos are stored uncompressed, so that viewers can seek.

    The page index says where each begins; everything else is compressed.
    """
    leaves = [leaf for field in schema for leaf in _leaves(field.name, field.type)]
    videos = [leaf for leaf in leaves if leaf.startswith(f"{VIDEO}.")]
    others = [leaf for leaf in leaves if leaf not in videos]
    writer = pq.ParquetWriter(
        path,
        schema.with_metadata(_VIDEO_METADATA),
        write_page_index=True,
        use_content_defined_chunking=_CHUNKS,
        use_dictionary=others,
        compression={**dict.fromkeys(others, "zstd"), **dict.fromkeys(videos, "none")},
        column_encoding=dict.fromkeys(videos, "PLAIN"),
    )
    writer.add_key_value_metadata({"content_defined_chunking": json.dumps(_CHUNKS)})
    return writer


def _leaves(path: str, kind: pa.DataType) -> Iterator[str]:
    """The leaf columns that Parquet makes from a column, by its names for them."""
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{path}.{field.name}", field.type)
    elif pa.types.is_map(kind):
        yield from _leaves(f"{path}.key_value.key", kind.key_type)
        yield from _leaves(f"{path}.key_value.value", kind.item_type)
    elif (
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or (pa.types.is_fixed_size_list(kind))
    ):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    else:
        yield path


def _groups(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of files that are in memory together."""
    start, total = 0, 0
    for at, size in enumerate(sizes):
        if at > start and total + size > MOST_VIDEO_BYTES_A_GROUP:
            yield start, at
            start, total = at, 0
        total += size
    if len(sizes) > start:
        yield start, len(sizes)
