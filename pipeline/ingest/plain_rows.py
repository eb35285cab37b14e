"""Interprets a list's rows as columns: those that name one video and at most one part of it.

What a row means is the same as in `source_rows.py`; rows that need more than is done here (lists
in cells, invalid times, playlists) are left to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipmill.pipeline.ingest.given_spans import Roles
from clipmill.pipeline.ingest.list_pieces import Piece
from clipmill.pipeline.ingest.locators import WATCH_URL
from clipmill.pipeline.ingest.text_columns import interleaved, times_in
from clipmill.schemas.ids import source_key
from clipmill.stages.media.read.suffixes import MEDIA_SUFFIXES

_TEXT = pa.string()
_OF_THE_VIDEO = ("video_id", "title", "category", "language", "query")
NAMES = ("source_key", "locator", "url", "path", "extractor", "platform_id")
PLAIN_ROWS = pa.schema(
    [
        ("seq", pa.int64()),
        ("row_of", pa.int32()),
        ("number", pa.int64()),
        *((name, _TEXT) for name in (*NAMES, *_OF_THE_VIDEO)),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("caption", _TEXT),
        ("values", pa.list_(_TEXT)),
    ]
)
"""Rows by their numbers within lists; `values` are the list's other columns, in their order.

`end_seconds` is null if a row is about the whole video. `seq` is the place among all rows.
"""

_WATCH = r"^https?://(www\.)?youtube\.com/watch\?v=[A-Za-z0-9_-]{11}$"
_ID = r"^[A-Za-z0-9_-]{11}$"
_FILE = (
    r"(?i)^([a-z0-9_-]+/)*[a-z0-9_-][a-z0-9_.-]*\.("
    + "|".join(sorted(re.escape(suffix[1:]) for suffix in MEDIA_SUFFIXES))
    + ")$"
)
_PAIRS = (
    r"^\[\s*'(?P<start>[0-9:.]+)'\s*,\s*'(?P<end>[0-9:.]+)'\s*\]$",
    r'^\[\s*"(?P<start>[0-9:.]+)"\s*,\s*"(?P<end>[0-9:.]+)"\s*\]$',
    r"^\[\s*(?P<start>(?:0|[1-9][0-9]{0,9})(?:\.[0-9]+)?)\s*,\s*"
    r"(?P<end>(?:0|[1-9][0-9]{0,9})(?:\.[0-9]+)?)\s*\]$",
)
_A_LIST = r"^[\[(](?s:.*)[\])]$"

Named = tuple[str, str, str | None, str | None, str | None]
"""What a locator names: locator, url, path, extractor, platform_id."""


@dataclass(frozen=True)
class PlainForm:
    """How to read the rows of one list. `named` is what another locator names, if it is simple."""

    roles: Roles
    row_of: int
    folder: str
    bare_ids: bool
    category: str | None
    language: str | None
    named: Callable[[str], Named | None]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are kept as text."""
        return self.roles.others

    def read(self, piece: Piece) -> tuple[pa.Table, np.ndarray]:
        """The rows as `PLAIN_ROWS`, without `seq`, and which of the piece's rows these are."""
        rows = len(piece.numbers)
        is_plain = np.ones(rows, bool)
        if not rows:
            return PLAIN_ROWS.empty_table(), is_plain
        columns = {name: _text(piece.columns[name]) for name in piece.columns}
        start, end = self._times(columns, is_plain)
        for name in self.roles.parts:
            is_plain &= ~_true(pc.match_substring_regex(columns[name], _A_LIST))
        caption = columns.get(self.roles.captions) if self.roles.captions else None
        if caption is None:
            caption = pa.nulls(rows, _TEXT)
        else:
            is_plain &= ~_true(pc.match_substring_regex(caption, _A_LIST))
        names = self._names(columns[piece.column], is_plain)
        video = {word: columns[name] for name, word in self.roles.of_the_video.items()}
        if (ids := video.get("video_id")) is not None:
            same = pc.fill_null(pc.equal(ids, names["platform_id"]), False)
            video["video_id"] = pc.if_else(same, None, ids)  # no id given by the user
        for word, usual in (("category", self.category), ("language", self.language)):
            if usual is not None:
                video[word] = pc.fill_null(video.get(word, pa.nulls(rows, _TEXT)), usual)
        missing = pa.nulls(rows, _TEXT)
        table = pa.Table.from_arrays(
            [
                pa.nulls(rows, pa.int64()),
                pa.repeat(pa.scalar(self.row_of, pa.int32()), rows),
                pa.array(piece.numbers, pa.int64()),
                *(names[name] for name in NAMES),
                *(video.get(word, missing) for word in _OF_THE_VIDEO),
                _numbers(start),
                _numbers(end),
                caption,
                interleaved([columns[name] for name in self.names], rows),
            ],
            schema=PLAIN_ROWS,
        )
        return (table if is_plain.all() else table.filter(pa.array(is_plain))), is_plain

    def _times(
        self, columns: dict[str, pa.StringArray], is_plain: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends in seconds, not numbers for rows about whole videos."""
        roles = self.roles
        none = np.full(len(is_plain), np.nan)
        if roles.spans is not None:
            start, end = _pairs(columns[roles.spans])
        elif roles.end is not None:
            end = times_in(columns[roles.end])
            start = (
                np.zeros(len(is_plain)) if roles.start is None else times_in(columns[roles.start])
            )
            if roles.milliseconds:
                start, end = start / 1000, end / 1000
        elif roles.start is not None:
            is_plain[:] = False
            return none, none
        else:
            return none, none
        # Comparisons with what is not a number are false.
        is_plain &= (start >= 0) & (end > start) & np.isfinite(end)
        return start, end

    def _names(self, texts: pa.StringArray, is_plain: np.ndarray) -> dict[str, pa.StringArray]:
        """What the locators name, as columns."""
        found = texts.dictionary_encode()
        codes = found.indices.to_numpy(zero_copy_only=False)
        names = self._distinct_names(found.dictionary)
        is_known = pc.is_valid(names["locator"]).to_numpy(zero_copy_only=False)
        if found.null_count:
            has_name = pc.is_valid(texts).to_numpy(zero_copy_only=False)
            is_plain &= has_name
            codes = np.where(has_name, codes, 0).astype(np.int64)
        if len(is_known):
            is_plain &= is_known[codes]
        return {name: values.take(found.indices) for name, values in names.items()}

    def _distinct_names(self, texts: pa.StringArray) -> dict[str, pa.StringArray]:
        missing = pa.nulls(len(texts), _TEXT)
        is_url = pc.match_substring_regex(texts, _WATCH)
        is_video, urls = is_url, texts
        if self.bare_ids:
            is_id = pc.match_substring_regex(texts, _ID)
            urls = pc.if_else(is_id, pc.binary_join_element_wise(WATCH_URL, texts, ""), texts)
            is_video = pc.or_(is_url, is_id)
        ids = pc.if_else(is_video, pc.utf8_slice_codeunits(texts, -11), None)
        is_file = pc.match_substring_regex(texts, _FILE)
        paths = pc.if_else(
            is_file,
            pc.binary_join_element_wise(self.folder, texts, "" if self.folder == "/" else "/"),
            None,
        )
        names = {
            "locator": pc.if_else(
                is_video, pc.binary_join_element_wise("youtube", ids, " "), paths
            ),
            "url": pc.if_else(is_video, urls, paths),
            "path": paths,
            "extractor": pc.if_else(is_video, "youtube", missing),
            "platform_id": ids,
        }
        others = pc.invert(pc.or_(is_video, is_file))
        if pc.any(others).as_py():
            at = np.flatnonzero(others.to_numpy(zero_copy_only=False))
            named = [self.named(texts[place].as_py()) or (None,) * 5 for place in at.tolist()]
            mask = pa.array(others)
            for place, name in enumerate(NAMES[1:]):
                given = pa.array([one[place] for one in named], _TEXT)
                names[name] = pc.replace_with_mask(names[name], mask, given)
        keys = [None if one is None else source_key(one) for one in names["locator"].to_pylist()]
        return {"source_key": pa.array(keys, _TEXT), **names}


def _text(values: pa.StringArray) -> pa.StringArray:
    """Texts without spaces at their ends; null if nothing is left."""
    texts = pc.utf8_trim_whitespace(values)
    lengths = pc.binary_length(texts)
    if pc.min(lengths).as_py() == 0:
        texts = pc.if_else(pc.equal(lengths, 0), None, texts)
    return texts


def _true(values: pa.BooleanArray) -> np.ndarray:
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False))


def _numbers(values: np.ndarray) -> pa.Array:
    return pa.array(values, pa.float64(), mask=np.isnan(values))


def _pairs(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The two times in cells like `['0:00:01.0', '0:00:07.5']`; not numbers for other cells."""
    start, end = np.full(len(texts), np.nan), np.full(len(texts), np.nan)
    left = np.arange(len(texts))
    for form in _PAIRS:
        found = pc.extract_regex(texts, form)
        is_found = _true(pc.is_valid(found))
        if is_found.any():
            picked = found.filter(pa.array(is_found))
            start[left[is_found]] = times_in(pc.struct_field(picked, "start"))
            end[left[is_found]] = times_in(pc.struct_field(picked, "end"))
        if is_found.all():
            break
        left = left[~is_found]
        texts = texts.filter(pa.array(~is_found))
    return start, end
