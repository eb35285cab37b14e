"""Splits lines of delimited text into columns at once, where each line is one record by itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_QUOTE, _LINE_FEED = ord('"'), ord("\n")


@dataclass(frozen=True)
class SplitLines:
    """Where the cells of plain lines begin and end.

    A line is plain if it has as many cells as are expected, its first cell is not empty, and each
    quote opens, closes or is doubled inside a quoted cell, as the reader of records demands.
    """

    is_plain: np.ndarray
    """Of each line of the text."""
    has_quotes: np.ndarray
    _data: bytes
    _begins: np.ndarray
    _ends: np.ndarray

    def columns(self, picked: np.ndarray) -> list[pa.StringArray]:
        """The cells of some of the plain lines, by their numbers among these."""
        begins, ends = self._begins[picked], self._ends[picked]
        return [
            _cells(self._data, begins[:, at], ends[:, at], unescape=bool(self.has_quotes.any()))
            for at in range(begins.shape[1])
        ]


def split_lines(data: bytes, delimiter: str, width: int, *, quoted: bool) -> SplitLines:
    """Splits UTF-8 text, whose last line ends too; with `quoted`, cells may be quoted."""
    text = np.frombuffer(data, np.uint8)
    mark = ord(delimiter)
    is_special = (text == mark) | (text == _LINE_FEED)
    if quoted:
        is_special |= text == _QUOTE
    at = np.flatnonzero(is_special)
    kinds = text[at]
    is_end = kinds == _LINE_FEED
    ends_before = np.cumsum(is_end)
    lines = int(ends_before[-1]) if len(at) else 0
    line = ends_before - is_end
    is_plain = np.ones(lines, bool)
    has_quotes = np.zeros(lines, bool)
    is_edge = ~(kinds == _QUOTE) if quoted else np.ones(len(at), bool)
    if quoted and not is_edge.all():
        opened = np.cumsum(~is_edge)
        before_line = np.concatenate(([0], opened[is_end]))
        inside = (opened - before_line[line]) & 1 == 1  # after this character
        quotes = np.flatnonzero(~is_edge)
        places, of_line = at[quotes], line[quotes]
        has_quotes[of_line] = True
        opens = inside[quotes]
        neighbours = np.where(
            opens,
            np.where(places > 0, text[places - 1], _LINE_FEED),
            text[np.minimum(places + 1, len(text) - 1)],
        )
        is_wrong = (neighbours != mark) & (neighbours != _LINE_FEED) & (neighbours != _QUOTE)
        is_plain[of_line[is_wrong]] = False
        is_plain[line[is_end & inside]] = False  # the line ends inside a cell
        is_edge &= ~inside | is_end
    edges, of_edge = at[is_edge], line[is_edge]
    line_ends = at[is_end]
    line_begins = np.concatenate(([0], line_ends[:-1] + 1))[:lines]
    is_plain &= np.bincount(of_edge, minlength=lines) == width
    if lines:
        first = text[line_begins]
        is_plain &= (first != mark) & (first != _LINE_FEED)
    ends = edges[is_plain[of_edge]].reshape(-1, width)
    begins = np.empty_like(ends)
    begins[:, 0] = line_begins[is_plain]
    begins[:, 1:] = ends[:, :-1] + 1
    if quoted and has_quotes.any():
        is_quoted = text[begins] == _QUOTE
        begins, ends = begins + is_quoted, ends - is_quoted
        nothing = is_quoted[:, 0] & (begins[:, 0] == ends[:, 0])
        if nothing.any():
            is_plain[np.flatnonzero(is_plain)[nothing]] = False
            begins, ends = begins[~nothing], ends[~nothing]
    return SplitLines(is_plain, has_quotes, data, begins, ends)


def _cells(data: bytes, begins: np.ndarray, ends: np.ndarray, *, unescape: bool) -> pa.StringArray:
    count = len(begins)
    if not count:
        return pa.array([], pa.string())
    # Every other text of the whole buffer is a cell, those between them are not.
    offsets = np.empty(2 * count, np.int32)
    offsets[0::2], offsets[1::2] = begins, ends
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    texts = pa.Array.from_buffers(pa.string(), 2 * count - 1, buffers)
    cells = texts.take(pa.array(np.arange(0, 2 * count - 1, 2, dtype=np.int32)))
    if unescape and pc.any(pc.match_substring(cells, '""')).as_py():
        cells = pc.replace_substring(cells, '""', '"')
    return cells
