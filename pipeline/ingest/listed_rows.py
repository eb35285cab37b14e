"""What rows of input become: sources, and rows of lists that stay columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from clipmill.pipeline.ingest.source_lists import Reading
from clipmill.schemas.errors import RowFailed


@dataclass(slots=True)
class Source:
    """One interpreted row of input; `problem` if it can't become a source.

    `locator` is what the row names, the same for all spellings. `is_list` marks a playlist or
    channel; `again` a row that is written although the dataset has its key; `listed_in` is the
    list or folder that it is in. `row_of` is the number of the list that counts this row: if a row
    expands to several videos, only the first has it. `captions` has all captions if the row gives
    several; `spans_column` is the column whose cell holds its spans.
    """

    place: str
    locator: str = ""
    url: str | None = None
    path: str | None = None
    extractor: str | None = None
    platform_id: str | None = None
    video_id: str | None = None
    title: str | None = None
    category: str | None = None
    language: str | None = None
    query: str | None = None
    caption: str | None = None
    extra: dict[str, str] | None = None
    spans: list[dict[str, Any]] | None = None
    problem: RowFailed | None = None
    rejection: dict[str, str] | None = None
    is_list: bool = False
    again: bool = False
    listed_in: str | None = None
    captions: list[str] | None = None
    row_of: int | None = None
    spans_column: str | None = None


@dataclass(slots=True)
class ListNote:
    """What was read from one list, and how its columns were interpreted."""

    name: str
    reading: Reading
    said: dict[tuple[str, str], None] = field(default_factory=dict)

    def say_spans(self, column: str | None) -> None:
        """Says that spans were read from a column, if there is one."""
        if column is not None:
            self.said[f"`{column}`", "spans"] = None


@dataclass(frozen=True)
class ListPart:
    """Rows of a list: plain ones as columns, and the sources of the others by their numbers.

    A row's place is `start` followed by its number; `names` are those of the plain rows' values.
    """

    row_of: int
    start: str
    names: tuple[str, ...]
    plain: pa.Table
    sources: list[tuple[int, Source]]

    def source(self, at: int) -> Source:
        """One of the plain rows."""
        [row] = self.plain.slice(at, 1).drop_columns("seq").to_pylist()
        number, values = row.pop("number"), row.pop("values")
        start, end = row.pop("start_seconds"), row.pop("end_seconds")
        del row["source_key"]
        caption = row.pop("caption")
        extra = {
            name: value for name, value in zip(self.names, values, strict=True) if value is not None
        } or None
        source = Source(f"{self.start}{number}", **row)
        if end is None:
            source.caption, source.extra = caption, extra
        else:
            source.spans = [
                {
                    "start_seconds": start,
                    "end_seconds": end,
                    "caption": caption,
                    "extra": extra,
                    "captions": None,
                }
            ]
        return source
