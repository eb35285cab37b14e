"""Merges rows of one source column-wise: their spans, and what they say of the video.

What comes out is what `together.py` makes of the same rows. Sources whose rows add captions to one
another's spans, or have several ids, are left to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.pipeline.ingest.gathered_rows import DUPLICATE_RULE, GATHERED_ROWS
from clipmill.pipeline.ingest.plain_rows import NAMES, PLAIN_ROWS
from clipmill.schemas.ids import source_key
from clipmill.schemas.tables import SPAN

_TEXT = pa.string()
_ONCE = ("title", "category", "language", "query")
GROUPED = PLAIN_ROWS.append(pa.field("first", pa.int64()))
"""Rows with the `seq` of their source's first row."""


@dataclass(frozen=True)
class Origin:
    """A list that rows are from: what their places begin with, and the names of their values."""

    start: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Merged:
    """`sources` and the `repeats` of their spans, as `GATHERED_ROWS`; `left` as they came.

    `gathered` counts by list the rows that were added to the first one of their source.
    """

    sources: pa.Table
    repeats: pa.Table
    left: pa.Table
    gathered: Mapping[int, int]


class Merging:
    """Merges rows of some lists."""

    def __init__(self, origins: Mapping[int, Origin]) -> None:
        self._origins = dict(sorted(origins.items()))
        self._place = np.zeros(max(self._origins, default=0) + 1, np.int64)
        self._place[list(self._origins)] = np.arange(len(self._origins))

    def merge(self, rows: pa.Table) -> Merged:
        """Merges `GROUPED` rows, which come by `first` and `seq`, whole sources at a time."""
        first = rows["first"].to_numpy()
        begins = np.flatnonzero(np.diff(first, prepend=-1))
        group = np.cumsum(np.diff(first, prepend=-1) != 0) - 1
        sizes = np.diff(np.append(begins, len(first)))
        start, end = (rows[name].to_numpy() for name in ("start_seconds", "end_seconds"))
        order = np.lexsort((end, start, group))
        is_left = np.zeros(len(begins), bool)
        is_left[group[np.isnan(end) & (sizes[group] > 1)]] = True
        if rows["video_id"].null_count < len(first):
            ids = rows["video_id"].combine_chunks().dictionary_encode().indices
            codes = ids.fill_null(-1).to_numpy(zero_copy_only=False)
            is_left[group[codes != codes[begins[group]]]] = True
        is_repeat = np.zeros(len(first), bool)
        one, other = order[:-1], order[1:]
        same = (
            (group[one] == group[other]) & (start[one] == start[other]) & (end[one] == end[other])
        )
        if same.any():
            is_repeat[other[same]] = True
            shown = order[
                np.maximum.accumulate(np.where(is_repeat[order], 0, np.arange(len(order))))
            ]
            at, shown = order[is_repeat[order]], shown[is_repeat[order]]
            captions = rows["caption"].combine_chunks()
            text = captions.take(pa.array(at))
            is_same = pc.fill_null(pc.equal(text, captions.take(pa.array(shown))), False)
            adds = pc.and_(pc.is_valid(text), pc.invert(is_same)).to_numpy(zero_copy_only=False)
            is_left[group[at[adds]]] = True
        is_merged = ~is_left[group]
        is_kept = is_merged & ~is_repeat
        begins_merged = begins[~is_left]
        sources = self._sources(rows, begins_merged, order[is_kept[order]], group, is_kept)
        is_added = is_kept.copy()
        is_added[begins_merged] = False
        lists = rows["row_of"].to_numpy()[is_added]
        numbers, counts = np.unique(lists, return_counts=True)
        again = np.flatnonzero(is_merged & is_repeat)
        return Merged(
            sources,
            self._repeats(rows, again, begins[group[again]]),
            rows.filter(pa.array(~is_merged)),
            dict(zip(numbers.tolist(), counts.tolist(), strict=True)),
        )

    def one_by_one(self, rows: pa.Table) -> pa.Table:
        """Rows as `GATHERED_ROWS`, each with its own span."""
        all_rows = np.arange(rows.num_rows)
        return self._sources(rows, all_rows, all_rows, all_rows, np.ones(rows.num_rows, bool))

    def _sources(
        self,
        rows: pa.Table,
        begins: np.ndarray,
        in_order: np.ndarray,
        group: np.ndarray,
        is_kept: np.ndarray,
    ) -> pa.Table:
        """A row for each source, which begins with one of the rows `begins`.

        Its spans are those of the rows `in_order` that have its number in `group`.
        """
        firsts = rows.take(pa.array(begins))
        count = len(begins)
        has_spans = pc.is_valid(firsts["end_seconds"]).to_numpy()
        spans, bounds = self._spans(rows.take(pa.array(in_order)), group[in_order], group[begins])
        columns = {
            "seq": firsts["seq"],
            "row_of": firsts["row_of"],
            "again": pa.repeat(pa.scalar(False), count),
            "place": self._places(firsts),
            **{name: firsts[name] for name in (*NAMES, "video_id")},
            **{
                name: _first_of_each(rows[name], group, is_kept, group[begins], firsts[name])
                for name in _ONCE
            },
            "spans": pa.ListArray.from_arrays(
                pa.array(bounds, pa.int32()), spans, type=pa.list_(SPAN), mask=pa.array(~has_spans)
            ),
        }
        if not has_spans.all():
            columns["caption"] = pc.if_else(pa.array(has_spans), None, firsts["caption"])
            columns["extra"] = self._extra(firsts, unless=has_spans)
        return pa.table(
            [
                columns[field.name] if field.name in columns else pa.nulls(count, field.type)
                for field in GATHERED_ROWS
            ],
            schema=GATHERED_ROWS,
        )

    def _spans(
        self, rows: pa.Table, group: np.ndarray, groups: np.ndarray
    ) -> tuple[pa.StructArray, np.ndarray]:
        """The rows as spans, and where those of each of the groups begin."""
        columns = {
            "start_seconds": rows["start_seconds"].combine_chunks(),
            "end_seconds": rows["end_seconds"].combine_chunks(),
            "caption": rows["caption"].combine_chunks(),
            "extra": self._extra(rows),
            "captions": pa.nulls(rows.num_rows, pa.list_(_TEXT)),
        }
        spans = pa.StructArray.from_arrays(
            [columns[field.name] for field in SPAN], fields=list(SPAN)
        )
        return spans, np.append(np.searchsorted(group, groups), len(group))

    def _extra(self, rows: pa.Table, unless: np.ndarray | None = None) -> pa.Array:
        """The values with their names, without those that are missing; null if none is left."""
        values = rows["values"].combine_chunks()
        flat = values.flatten()
        lengths = pc.list_value_length(values).to_numpy().astype(np.int64)
        names = pa.array(
            [name for origin in self._origins.values() for name in origin.names], _TEXT
        )
        firsts = np.cumsum([0, *(len(origin.names) for origin in self._origins.values())])
        origins = self._place[rows["row_of"].to_numpy()]
        ends = np.cumsum(lengths)
        at = np.repeat(firsts[origins] - (ends - lengths), lengths) + np.arange(lengths.sum())
        is_there = pc.is_valid(flat).to_numpy(zero_copy_only=False)
        if unless is not None:
            is_there = is_there & ~np.repeat(unless, lengths)
        if not is_there.all():
            flat, at = flat.filter(pa.array(is_there)), at[is_there]
        ends = np.concatenate(([0], np.cumsum(is_there)))[ends]
        starts = np.concatenate(([0], ends)).astype(np.int32)
        is_empty = np.append(np.diff(starts) == 0, False)
        offsets = pa.array(starts, mask=is_empty) if is_empty.any() else pa.array(starts)
        found = pa.MapArray.from_arrays(offsets, names.take(pa.array(at)), flat)
        return found.cast(SPAN.field("extra").type)

    def _places(self, rows: pa.Table) -> pa.ChunkedArray:
        starts = pa.array([origin.start for origin in self._origins.values()], _TEXT)
        begins = starts.take(pa.array(self._place[rows["row_of"].to_numpy()]))
        return pc.binary_join_element_wise(begins, rows["number"].cast(_TEXT), "")

    def _repeats(self, rows: pa.Table, at: np.ndarray, firsts: np.ndarray) -> pa.Table:
        """Rejections of the rows `at`, whose spans are repeats; `firsts` begin their sources."""
        if not len(at):
            return GATHERED_ROWS.empty_table()
        found = self.one_by_one(rows.take(pa.array(at)))
        first = rows.take(pa.array(firsts))
        keys, rejections = [], []
        for number, place, locator, shown, shown_at, key in zip(
            (at - firsts).tolist(),
            found["place"].to_pylist(),
            found["locator"].to_pylist(),
            pc.coalesce(first["url"], first["locator"]).to_pylist(),
            self._places(first).to_pylist(),
            first["source_key"].to_pylist(),
            strict=True,
        ):
            keys.append(source_key(f"{locator}\0repeat {number}"))
            rejections.append(
                {
                    "rule": DUPLICATE_RULE,
                    "detail": f"{place}: the same as {shown} ({shown_at}), key {key}",
                }
            )
        for name, values in (("source_key", keys), ("rejection", rejections)):
            field = GATHERED_ROWS.field(name)
            found = found.set_column(
                GATHERED_ROWS.get_field_index(name), field, pa.array(values, field.type)
            )
        return found


def _first_of_each(
    values: pa.ChunkedArray,
    group: np.ndarray,
    is_kept: np.ndarray,
    groups: np.ndarray,
    firsts: pa.ChunkedArray,
) -> pa.ChunkedArray | pa.Array:
    """The first value of each of the groups among kept rows; `firsts` are of their first rows."""
    if not firsts.null_count or values.null_count == len(values):
        return firsts
    valid = np.flatnonzero(pc.is_valid(values).to_numpy() & is_kept)
    found = np.searchsorted(group[valid], groups)
    there = np.minimum(found, max(len(valid) - 1, 0))
    at = valid[there] if len(valid) else np.zeros(len(groups), np.int64)
    has = (found < len(valid)) & (group[at] == groups)
    return values.take(pa.array(at, mask=~has))


def split_by_seq(rows: pa.Table, bound: int) -> tuple[pa.Table, pa.Table]:
    """`GATHERED_ROWS` in order: those whose `seq` is below a bound, and the others."""
    seq = rows["seq"].to_numpy()
    if len(seq) > 1 and (np.diff(seq) < 0).any():
        order = np.argsort(seq, kind="stable")
        rows, seq = rows.take(pa.array(order)), seq[order]
    count = int(np.searchsorted(seq, bound))
    return rows.slice(0, count), rows.slice(count)
