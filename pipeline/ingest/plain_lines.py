"""Reads lines of JSON that are all written in one way, without parsing them as JSON.

Published files come from one program, so their lines have the same keys in the same order, with the
same spaces. Such a line splits at its quotes into pieces of which every other one is known: it is a
row of a CSV file whose delimiter is the quote, for which there is a fast reader. That takes a tenth
of the time of a JSON parser, and keeps numbers digit for digit. Any other line is for the parser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_IN_PLACE = re.compile(rf"(\s*:\s*){_NUMBER}(.*)", re.S)


@dataclass(frozen=True)
class PlainLines:
    """The pieces of a line: those that are the same in every line, and those that are values.

    `numbers` have what stands before and after a number in its piece, by the piece; `texts` and
    `numbers_of` name the piece of each key.
    """

    fixed: Mapping[int, str]
    texts: Mapping[str, int]
    numbers_of: Mapping[str, int]
    numbers: Mapping[int, tuple[str, str]]
    pieces: int

    @property
    def keys(self) -> list[str]:
        """In the order of a line."""
        places = {**self.texts, **self.numbers_of}
        return sorted(places, key=lambda key: places[key])

    def read(self, lines: pa.StringArray) -> tuple[np.ndarray, dict[str, pa.Array]]:
        """Which lines are plain, and the text of each key in those, never empty and no `nan`."""
        is_plain = ~_has_special(lines)
        split = self._split(lines if is_plain.all() else lines.filter(pa.array(is_plain)), is_plain)
        if not split.num_rows:
            return is_plain, {key: pa.array([], pa.string()) for key in self.keys}
        pieces = [column.combine_chunks() for column in split.columns]
        checks = [pc.equal(pieces[at], text) for at, text in self.fixed.items()]
        values: dict[str, pa.Array] = {}
        for key, at in self.texts.items():
            piece = values[key] = pieces[at]
            checks.append(pc.not_equal(piece, ""))
            # A text that stands for a missing value is left to the parser's path.
            if pc.any(short := pc.equal(pc.binary_length(piece), 3)).as_py():
                checks.append(pc.invert(pc.and_(short, pc.equal(pc.utf8_lower(piece), "nan"))))
        for key, at in self.numbers_of.items():
            before, after = self.numbers[at]
            form = f"^{re.escape(before)}{_NUMBER}{re.escape(after)}$"
            checks.append(pc.match_substring_regex(pieces[at], form))
            inner = pc.binary_slice(
                pieces[at].cast(pa.binary()), len(before), -len(after) if after else None
            )
            values[key] = inner.cast(pa.string())
        found = np.ones(split.num_rows, bool)
        for check in checks:
            found &= check.to_numpy(zero_copy_only=False)
        if not found.all():
            is_plain[np.flatnonzero(is_plain)[~found]] = False
            values = {key: value.filter(pa.array(found)) for key, value in values.items()}
        return is_plain, values

    def _split(self, lines: pa.StringArray, is_plain: np.ndarray) -> pa.Table:
        """The pieces of lines that have the right number of them; the others are noted."""
        names = [str(at) for at in range(self.pieces)]
        wrong: list[int] = []

        def skip(row: pyarrow.csv.InvalidRow) -> str:
            wrong.append(row.number - 1)
            return "skip"

        if not len(lines):
            return pa.table({name: pa.array([], pa.string()) for name in names})
        first, last = _offsets(lines)[[0, -1]]
        text = lines.buffers()[2].slice(first, last - first)
        table = pyarrow.csv.read_csv(
            pa.BufferReader(text),
            # One thread, one block: only then do invalid rows have numbers.
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, block_size=len(text) + 1, column_names=names
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter='"',
                quote_char=False,
                double_quote=False,
                escape_char=False,
                newlines_in_values=False,
                ignore_empty_lines=False,
                invalid_row_handler=skip,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                check_utf8=False,
                strings_can_be_null=False,
            ),
        )
        if wrong:
            is_plain[np.flatnonzero(is_plain)[wrong]] = False
        return table


def _offsets(texts: pa.StringArray) -> np.ndarray:
    found = np.frombuffer(texts.buffers()[1], np.int32)
    return found[texts.offset : texts.offset + len(texts) + 1]


def _has_special(lines: pa.StringArray) -> np.ndarray:
    """Which lines have an escape, or a control character, which JSON allows in no string."""
    offsets = _offsets(lines)
    text = np.frombuffer(lines.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    found = np.zeros(len(lines), bool)
    special = (text < ord(" ")) | (text == ord("\\"))
    if np.count_nonzero(special) > len(lines):  # each line has its end
        at = np.flatnonzero(special)
        at = at[text[at] != ord("\n")] + offsets[0]
        found[np.searchsorted(offsets, at, "right") - 1] = True
    return found


def plain_lines(line: str) -> PlainLines | None:
    """How to read lines that are written like this one; None if it is not an object of texts and
    numbers without escapes."""
    line = line.rstrip("\r\n")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or "\\" in line:
        return None
    pieces = line.split('"')
    if any(pieces.count(key) != 1 for key in value):
        return None
    fixed = {0: pieces[0]}
    texts: dict[str, int] = {}
    numbers_of: dict[str, int] = {}
    numbers: dict[int, tuple[str, str]] = {}
    at = 0
    for key, item in value.items():
        if isinstance(item, str) and item:
            if pieces[at + 1] != key or pieces[at + 3] != item:
                return None
            fixed |= {place: pieces[place] for place in (at + 1, at + 2, at + 4)}
            texts[key] = at + 3
            at += 4
        elif isinstance(item, int | float) and not isinstance(item, bool):
            found = _IN_PLACE.fullmatch(pieces[at + 2])
            if pieces[at + 1] != key or found is None:
                return None
            fixed[at + 1] = pieces[at + 1]
            numbers_of[key] = at + 2
            numbers[at + 2] = (found[1], found[2])
            at += 2
        else:
            return None
    if at != len(pieces) - 1:
        return None
    return PlainLines(fixed, texts, numbers_of, numbers, len(pieces))
