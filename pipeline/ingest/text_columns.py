"""Reads whole columns of published texts at once: ids, times, lists of values."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ID_LENGTH = 11
_ALPHABET = "".join(sorted(f"{string.ascii_letters}{string.digits}-_"))
_IN_ID = np.zeros(256, bool)
_IN_ID[np.frombuffer(_ALPHABET.encode(), np.uint8)] = True
_CODE = np.zeros(256, np.uint64)
_CODE[np.frombuffer(_ALPHABET.encode(), np.uint8)] = np.arange(len(_ALPHABET))

_CLOCK = 12  # HH:MM:SS.mmm
_DIGITS_OF_CLOCK = [0, 1, 3, 4, 6, 7, 9, 10, 11]
# As texts, so that they are rounded as such.
_THOUSANDTHS = np.array([float(f"0.{number:03d}") for number in range(1000)])
_ANY_CLOCK = (
    r"^(?:(?P<hours>[0-9]{1,9}):)?(?P<minutes>[0-9]{1,4}):"
    r"(?P<seconds>[0-9]{1,2})(?:[.,](?P<fraction>[0-9]{1,17}))?$"
)
_ANY_DECIMAL = r"^[0-9]{1,15}(\.[0-9]{1,20})?$"
_DECIMAL = r"^[0-9]{1,9}(\.[0-9]{1,9})?$"


def starts_of(table: pa.Table, *columns: str) -> np.ndarray:
    """Indexes of the rows that differ from the previous one in some of the columns."""
    if not table.num_rows:
        return np.zeros(0, np.int64)
    differs = np.zeros(table.num_rows, bool)
    differs[0] = True
    for name in columns:
        values = table[name].combine_chunks()
        changed = pc.not_equal(values.slice(1), values.slice(0, len(values) - 1))
        differs[1:] |= pc.fill_null(changed, False).to_numpy(zero_copy_only=False)
    return np.flatnonzero(differs)


def are_video_ids(texts: pa.StringArray) -> np.ndarray:
    """Which texts are ids of YouTube's videos."""
    has_length = _have_length(texts, ID_LENGTH)
    if has_length.all():
        return np.asarray(_IN_ID[_square(texts, ID_LENGTH)].all(axis=1))
    found = np.zeros(len(texts), bool)
    found[has_length] = are_video_ids(texts.filter(pa.array(has_length)))
    return found


def id_keys(ids: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers that sort ids as their texts do: 64 bits, and the last two."""
    codes = _CODE[_square(ids, ID_LENGTH)]
    keys = np.zeros(len(codes), np.uint64)
    for at in range(ID_LENGTH - 1):
        keys |= codes[:, at] << np.uint64(58 - 6 * at)
    last = codes[:, ID_LENGTH - 1]
    return keys | last >> np.uint64(2), last & np.uint64(3)


def seconds_in(texts: pa.StringArray) -> np.ndarray:
    """The seconds of times like 00:01:02.345 or 62.345; not a number for all others."""
    is_clock = _have_length(texts, _CLOCK)
    if is_clock.all():
        return _clock_seconds(_square(texts, _CLOCK))
    found = np.full(len(texts), np.nan)
    if is_clock.any():
        found[is_clock] = _clock_seconds(_square(texts.filter(pa.array(is_clock)), _CLOCK))
    is_decimal = pc.match_substring_regex(texts, _DECIMAL)
    picked = is_decimal.to_numpy(zero_copy_only=False)
    if picked.any():
        found[picked] = texts.filter(is_decimal).cast(pa.float64()).to_numpy()
    return found


def times_in(texts: pa.StringArray) -> np.ndarray:
    """The seconds of times like 0:01:02.5, 01:02 or 62.345; not a number for all others."""
    found = np.full(len(texts), np.nan)
    if texts.null_count:
        is_there = pc.is_valid(texts).to_numpy(zero_copy_only=False)
        found[is_there] = times_in(texts.filter(pa.array(is_there)))
        return found
    is_clock = _have_length(texts, _CLOCK)
    if is_clock.any():
        found[is_clock] = _clock_seconds(_square(texts.filter(pa.array(is_clock)), _CLOCK))
    for read in (_any_clock, _any_decimal):
        at = np.flatnonzero(np.isnan(found))
        if not len(at):
            break
        found[at] = read(texts.take(pa.array(at)))
    return found


def _any_clock(texts: pa.StringArray) -> np.ndarray:
    parts = pc.extract_regex(texts, _ANY_CLOCK)
    found = np.full(len(texts), np.nan)
    is_clock = pc.is_valid(parts).to_numpy(zero_copy_only=False)
    if is_clock.any():
        parts = parts.filter(pa.array(is_clock))
        hours, minutes, seconds, fraction = (
            pc.struct_field(parts, name) for name in ("hours", "minutes", "seconds", "fraction")
        )
        hours, minutes, seconds = (
            pc.if_else(pc.equal(part, ""), "0", part).cast(pa.int64()).to_numpy()
            for part in (hours, minutes, seconds)
        )
        rest = pc.binary_join_element_wise("0.", fraction, "0", "").cast(pa.float64())
        whole = hours * 3600 + minutes * 60 + seconds
        found[is_clock] = whole.astype(np.float64) + rest.to_numpy()
    return found


def _any_decimal(texts: pa.StringArray) -> np.ndarray:
    found = np.full(len(texts), np.nan)
    is_decimal = pc.match_substring_regex(texts, _ANY_DECIMAL)
    picked = is_decimal.to_numpy(zero_copy_only=False)
    if picked.any():
        found[picked] = texts.filter(is_decimal).cast(pa.float64()).to_numpy()
    return found


def interleaved(columns: Sequence[pa.Array], rows: int) -> pa.ListArray:
    """Columns as one list per row."""
    n = len(columns)
    starts = pa.array(np.arange(0, n * rows + 1, max(n, 1), dtype=np.int32)[: rows + 1])
    if not n or not rows:
        starts = pa.array(np.zeros(rows + 1, np.int32))
        return pa.ListArray.from_arrays(starts, pa.array([], pa.string()))
    order = (np.arange(rows, dtype=np.int32)[:, None] + np.arange(n, dtype=np.int32) * rows).ravel()
    return pa.ListArray.from_arrays(starts, pa.concat_arrays(columns).take(pa.array(order)))


def _clock_seconds(text: np.ndarray) -> np.ndarray:
    digits = text - np.uint8(ord("0"))
    is_clock = (digits[:, _DIGITS_OF_CLOCK] <= 9).all(axis=1)
    is_clock &= (text[:, 2] == ord(":")) & (text[:, 5] == ord(":")) & (text[:, 8] == ord("."))
    numbers = digits.astype(np.int64)
    hours, minutes, seconds = (10 * numbers[:, at] + numbers[:, at + 1] for at in (0, 3, 6))
    rest = 100 * numbers[:, 9] + 10 * numbers[:, 10] + numbers[:, 11]
    whole = (3600 * hours + 60 * minutes + seconds).astype(np.float64)
    return np.where(is_clock, whole + _THOUSANDTHS[np.where(is_clock, rest, 0)], np.nan)


def _offsets(texts: pa.StringArray) -> np.ndarray:
    found = np.frombuffer(texts.buffers()[1], np.int32)
    return found[texts.offset : texts.offset + len(texts) + 1]


def _have_length(texts: pa.StringArray, length: int) -> np.ndarray:
    if not len(texts):
        return np.zeros(0, bool)
    return np.asarray(np.diff(_offsets(texts)) == length)


def _square(texts: pa.StringArray, length: int) -> np.ndarray:
    """The bytes of texts of one length, a row for each."""
    if not len(texts):
        return np.zeros((0, length), np.uint8)
    first, last = _offsets(texts)[[0, -1]]
    return np.frombuffer(texts.buffers()[2], np.uint8)[first:last].reshape(-1, length)
