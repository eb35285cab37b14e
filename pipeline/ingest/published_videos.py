"""Turns published rows, sorted by video and time, into rows of `sources`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from clipmill.pipeline.ingest.listed_rows import Source
from clipmill.pipeline.ingest.locators import WATCH_URL
from clipmill.pipeline.ingest.source_shards import sources_table
from clipmill.pipeline.ingest.sources import exclusion
from clipmill.pipeline.ingest.text_columns import starts_of
from clipmill.schemas.ids import source_key
from clipmill.schemas.tables import SOURCES as SOURCES_SCHEMA
from clipmill.schemas.tables import SPAN

OF_SPANS = ["start_seconds", "end_seconds", "caption", "extra"]


class Videos:
    """New rows, sorted by video and time, as rows of `sources`: videos, then repeated spans."""

    def __init__(
        self, rows: pa.Table, places: Sequence[Callable[[int], str]], excluded: set[str]
    ) -> None:
        self._rows = rows
        self._places = places
        self._starts = starts_of(rows, "id")
        ids = rows["id"].take(pa.array(self._starts)).to_pylist()
        self._sources = [_source(name, excluded) for name in ids]
        self.is_kept = np.array([source.rejection is None for source in self._sources], bool)
        is_first = np.zeros(rows.num_rows, bool)
        is_first[starts_of(rows, "id", "start_seconds", "end_seconds")] = True
        self._is_first = is_first
        self._is_gathered, self._captions = _further_captions(rows, is_first)

    def raw_from(self, video: int) -> pa.Table:
        """The unprocessed rows of this video and all later ones."""
        return self._rows.slice(self._edge(video))

    def _edge(self, video: int) -> int:
        return int(self._starts[video]) if video < len(self._starts) else self._rows.num_rows

    def count(self, first: int, last: int) -> tuple[int, int]:
        """How many rows of the videos `[first, last)` are kept, and rejected."""
        owner = self._owners(first, last)
        begin, end = self._edge(first), self._edge(last)
        taken = self._is_first[begin:end] | self._is_gathered[begin:end]
        kept = int((self.is_kept[owner] & taken).sum())
        return kept, len(owner) - kept

    def _within(self, first: int, last: int) -> np.ndarray:
        return self._is_first[self._edge(first) : self._edge(last)]

    def _owners(self, first: int, last: int) -> np.ndarray:
        """The video of each row of the videos `[first, last)`."""
        begin, end = self._edge(first), self._edge(last)
        return np.searchsorted(self._starts, np.arange(begin, end), "right") - 1

    def sources(self, first: int, last: int) -> pa.Table:
        """Rows of `sources` for the videos `[first, last)`."""
        begin = self._edge(first)
        rows = self._rows.slice(begin, self._edge(last) - begin)
        is_first, owner = self._within(first, last), self._owners(first, last)
        keys = [source_key(source.locator) for source in self._sources[first:last]]
        bounds = np.searchsorted(owner[is_first], np.arange(first, last + 1))
        captions = {
            row - begin: said
            for row, said in self._captions.items()
            if begin <= row < begin + rows.num_rows
        }
        videos = _table(keys, self._sources[first:last], _spans(rows, is_first, bounds, captions))
        is_repeat = ~is_first & ~self._is_gathered[begin : begin + rows.num_rows]
        at = np.flatnonzero(is_repeat)
        if not len(at):
            return videos
        repeats = self._repeats(rows, at, is_first, owner[at] - first, keys, first)
        spans = _spans(rows, is_repeat, np.arange(len(at) + 1), {})
        table = _table([key for key, _ in repeats], [source for _, source in repeats], spans)
        return pa.concat_tables([videos, table])

    def _repeats(
        self,
        rows: pa.Table,
        at: np.ndarray,
        is_first: np.ndarray,
        owner: np.ndarray,
        keys: Sequence[str],
        first: int,
    ) -> list[tuple[str, Source]]:
        """Keys and rejections of the rows `at`, whose spans an earlier row has."""
        shown = np.maximum.accumulate(np.where(is_first, np.arange(len(is_first)), 0))[at]
        places = [self._place(rows, row) for row in at]
        firsts = [self._place(rows, row) for row in shown]
        numbers: dict[int, int] = {}
        found = []
        for place, where, video in zip(places, firsts, owner.tolist(), strict=True):
            number = numbers[video] = numbers.get(video, 0) + 1
            source = _source(self._sources[first + video].platform_id, set())
            source.rejection = {
                "rule": "sources.duplicate",
                "detail": f"{place}: the same span as {where}, key {keys[video]}",
            }
            found.append((source_key(f"{source.locator}\0repeat {number}"), source))
        return found

    def _place(self, rows: pa.Table, at: int) -> str:
        place_of = self._places[rows["file"][int(at)].as_py()]
        return str(place_of(rows["row"][int(at)].as_py()))


def _source(youtube_id: str, excluded: set[str]) -> Source:
    # As `identify` would say of its URL.
    source = Source(
        "",
        f"youtube {youtube_id}",
        f"{WATCH_URL}{youtube_id}",
        extractor="youtube",
        platform_id=youtube_id,
    )
    source.rejection = exclusion(source, excluded) if excluded else None
    return source


def _further_captions(
    rows: pa.Table, is_first: np.ndarray
) -> tuple[np.ndarray, dict[int, list[str]]]:
    """Which rows add a caption to a span, and all captions of such spans by their first row."""
    is_gathered = np.zeros(len(is_first), bool)
    found: dict[int, list[str]] = {}
    shown = np.maximum.accumulate(np.where(is_first, np.arange(len(is_first)), 0))
    captions = rows["caption"]
    for row in np.flatnonzero(~is_first).tolist():
        first, text = int(shown[row]), captions[row].as_py()
        if first not in found:
            one = captions[first].as_py()
            found[first] = [] if one is None else [one]
        if text is not None and text not in found[first]:
            found[first].append(text)
            is_gathered[row] = True
    return is_gathered, found


def _spans(
    rows: pa.Table, picked: np.ndarray, bounds: np.ndarray, captions: dict[int, list[str]]
) -> pa.Array:
    """The picked rows as lists of spans; list `i` starts at `bounds[i]`.

    `captions` has all captions of a row's span, if it may have several.
    """
    at = np.flatnonzero(picked)
    table = rows.select(OF_SPANS).take(pa.array(at))
    several: list[list[str] | None] = [None] * len(at)
    if captions:
        first = table["caption"].to_pylist()
        for place, row in enumerate(at.tolist()):
            said = captions.get(row) or ()
            first[place] = said[0] if said else first[place]
            several[place] = list(said) if len(said) > 1 else None
        table = table.set_column(2, "caption", pa.array(first, pa.string()))
    table = table.append_column("captions", pa.array(several, pa.list_(pa.string())))
    table = table.combine_chunks()
    columns = [table[field.name].combine_chunks().cast(field.type) for field in SPAN]
    return pa.ListArray.from_arrays(
        pa.array(bounds, pa.int32()), pa.StructArray.from_arrays(columns, fields=list(SPAN))
    )


def _table(keys: list[str], sources: Sequence[Source], spans: pa.Array) -> pa.Table:
    table = sources_table(zip(keys, sources, strict=True))
    place = SOURCES_SCHEMA.get_field_index("spans")
    return table.set_column(
        place, SOURCES_SCHEMA.field("spans"), spans.cast(SOURCES_SCHEMA.field("spans").type)
    )
