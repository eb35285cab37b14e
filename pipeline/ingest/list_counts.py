"""Counts of each list's lines and rows, kept with the dataset for `status`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipmill.pipeline.dataset.shards import write_json
from clipmill.pipeline.ingest.listed_rows import ListNote
from clipmill.schemas.damage import read_json, reading
from clipmill.schemas.folders import LIST_COUNTS, json_files
from clipmill.schemas.words import counted


@dataclass(frozen=True)
class ListCounts:
    """`lines` = header + blank + comments + row_lines; rows = sources + gathered + rejected +
    failed + left_out.

    `lines` is null for a file without lines (Parquet, one JSON value). `known` counts rows that
    the dataset had before; `left_out` those beyond the limit.
    """

    name: str
    lines: int | None
    header: int
    blank: int
    comments: int
    row_lines: int
    rows: int
    sources: int
    gathered: int
    rejected: int
    failed: int
    left_out: int
    known: int
    said: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, note: ListNote, became: Mapping[str, int]) -> ListCounts:
        """The counts of a list that was read to its end."""
        counts = note.reading.counts
        return cls(
            note.name,
            note.reading.lines,
            counts.header,
            counts.blank,
            counts.comments,
            counts.row_lines,
            counts.rows,
            became.get("sources", 0),
            became.get("gathered", 0),
            became.get("rejected", 0),
            became.get("failed", 0),
            became.get("left out", 0),
            became.get("known", 0),
            tuple(sorted(note.said, key=lambda columns_as: columns_as[1] != "spans")),
        )

    def describe(self) -> str:
        """One readable line."""
        rows = counted(self.rows, "row")
        if self.lines is None:
            text = f"{self.name}: {rows}"
        else:
            lines = counted(self.row_lines, "line")
            row_lines = "" if self.row_lines == self.rows else f" on {lines}"
            parts = [
                f"{count:,} {word}"
                for count, word in (
                    (self.header, "of the header"),
                    (self.blank, "blank"),
                    (self.comments, "of comments"),
                )
                if count
            ]
            lines = counted(self.lines, "line")
            text = f"{self.name}: {lines} = {' + '.join([*parts, rows + row_lines])}"
        parts = [
            f"{count:,} {word}"
            for count, word in (
                (self.gathered, "gathered into them"),
                (self.rejected, "rejected"),
                (self.failed, "failed"),
                (self.left_out, "left out by the limit"),
            )
            if count
        ]
        if self.sources:
            parts.insert(0, counted(self.sources, "source"))
        text += f"; {rows} = {' + '.join(parts) or '0'}"
        said = ", ".join(f"{columns} as {what}" for columns, what in self.said)
        return f"{text}; read {said}." if said else f"{text}."


def keep_counts(dataset: Path, lists: Iterable[ListCounts]) -> None:
    """Stores the counts of each list's last reading."""
    for counts in lists:
        name = hashlib.sha256(counts.name.encode()).hexdigest()[:20]
        write_json(dataset / LIST_COUNTS / f"{name}.json", asdict(counts))


def read_counts(path: Path) -> ListCounts:
    """Reads one note; DamagedFile if it is not one."""
    value: Any = read_json(path)
    with reading(path):
        said = tuple((str(one), str(other)) for one, other in value.pop("said"))
        return ListCounts(**value, said=said)


def kept_counts(dataset: Path) -> list[ListCounts]:
    """The counts of all lists that were ever read, by list name."""
    found = [read_counts(path) for path in json_files(dataset / LIST_COUNTS)]
    return sorted(found, key=lambda counts: counts.name)
