"""Interprets a list's columns about parts of a video: times and captions, in published forms.

Lists have one clip per row (`start`, `end`), or all clips of a video in one cell (`[['0:00:02.0',
'0:00:08.5'], …]`, or objects with times). Cells are parsed as data and never executed.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clipmill.pipeline.ingest.column_names import (
    CAPTIONS,
    ENDS,
    PARTS,
    SPANS,
    STARTS,
    is_milliseconds,
)
from clipmill.pipeline.ingest.listed_objects import parts_of, texts_of
from clipmill.pipeline.ingest.source_lists import clean, word_of
from clipmill.pipeline.ingest.source_spec import SourceSpec
from clipmill.schemas.words import counted

_OF_THE_VIDEO = frozenset(("video_id", "title", "category", "language", "query"))
_PROMISED = frozenset(("start_seconds", "end_seconds", "caption"))
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,4}):(\d{1,2}(?:[.,]\d+)?)")
_ONLY_IN_JSON = re.compile("NaN|Infinity|null|true|false")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?\s*(?:s|secs?|seconds?)?", re.I)
_DECIMAL_COMMA = re.compile(r"\d+,\d+")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+")
_BETWEEN = re.compile(r"\s*(?:-->|->|–|—|;|,|\bto\b|(?<=[\d\s])-)\s*")
_JSON = json.JSONEncoder(ensure_ascii=False, default=str)

Span = dict[str, Any]
"""A row of the type SPAN in schemas/tables.py."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The meaning of each column of a list; columns not named here are kept as text."""

    start: str | None = None
    end: str | None = None
    spans: str | None = None
    captions: str | None = None
    of_the_video: Mapping[str, str] = field(default_factory=dict)
    milliseconds: bool = False
    spans_were_named: bool = False
    others: tuple[str, ...] = ()
    of_times: tuple[str, ...] = ()
    captions_were_named: bool = False
    parts: tuple[str, ...] = ()
    """Those of the `others` that hold spans in rows where each entry of the cell has times."""

    def said(self) -> list[tuple[str, str]]:
        """Columns recognised by a usual name, and their meanings, apart from `spans`."""
        found = []
        if self.start or self.end:
            names = [name for name in (self.start, self.end) if name]
            if not {word_of(name) for name in names} <= _PROMISED:
                found.append((" and ".join(f"`{name}`" for name in names), "spans"))
        if self.captions and self.captions.lower() not in _PROMISED:
            found.append((f"`{self.captions}`", "captions"))
        return found


@dataclass(slots=True)
class Given:
    """What a row gives: spans with their captions, or captions of the whole video."""

    spans: list[Span] | None = None
    captions: list[str] = field(default_factory=list)
    extra: dict[str, str] | None = None
    spans_column: str | None = None
    """The column whose cell holds the spans; it may hold something else in other rows."""


def roles_of(names: Sequence[str], spec: SourceSpec, locator: str | None = None) -> Roles:
    """The meaning of a list's columns, by the recipe or by their usual names.

    `names` are the columns without that of the `locator`.
    """
    by_word = {word_of(name): name for name in reversed(names)}
    start = end = spans = None
    if spec.span_columns is not None:
        named = spec.span_columns
        start, end = (named[0] or None, named[1]) if len(named) == 2 else (None, None)
        spans = named[0] if len(named) == 1 else None
    else:
        start, end = (
            next((by_word[word] for word in words if word in by_word), None)
            for words in (STARTS, ENDS)
        )
        if not (start and end) and not {word_of(name or "") for name in (start, end)} & _PROMISED:
            start = end = None  # a column `end` alone may be anything
        if not (start or end):
            spans = next((by_word[word] for word in SPANS if word in by_word), None)
    captions = spec.caption_column or next(
        (by_word[word] for word in CAPTIONS if word in by_word), None
    )
    if captions is None and word_of(locator or "") == "contenturl":
        captions = by_word.get("name")  # in WebVid's lists
    taken = {start, end, spans, captions}
    of_the_video = {
        name: word for word, name in by_word.items() if word in _OF_THE_VIDEO and name not in taken
    }
    return Roles(
        start,
        end,
        spans,
        captions,
        of_the_video,
        is_milliseconds(word_of(start or "")),
        spec.span_columns is not None,
        tuple(name for name in names if name not in taken and name not in of_the_video),
        tuple(name for name in names if name in (start, end, spans)),
        spec.caption_column is not None,
        ()
        if start or end or spans or spec.span_columns is not None
        else tuple(by_word[word] for word in PARTS if by_word.get(word, captions) != captions),
    )


def given(columns: Mapping[str, Any], roles: Roles) -> Given:
    """What a row gives; ValueError if its times or captions are invalid."""
    part_column = next((name for name in roles.parts if _are_parts(columns[name])), None)
    if part_column is not None:
        roles = replace(
            roles,
            spans=part_column,
            others=tuple(name for name in roles.others if name != part_column),
        )
    if roles.spans is not None:
        columns, roles = _spread(columns, roles)
    times, is_list = _times(columns, roles)
    captions = _captions(columns.get(roles.captions) if roles.captions else None)
    names = roles.others if times is not None else (*roles.others, *roles.of_times)
    others = {name: columns[name] for name in names}
    if not times:
        return Given(None, _flat(captions), _texts(others))
    return Given(
        [
            {
                "start_seconds": start,
                "end_seconds": end,
                "caption": said[0] if said else None,
                "extra": extra,
                "captions": said if len(said) > 1 else None,
            }
            for (start, end), said, extra in zip(
                times,
                _shared_out(captions, len(times)),
                _extras(others, len(times), is_list),
                strict=True,
            )
        ],
        spans_column=roles.spans,
    )


def _spread(columns: Mapping[str, Any], roles: Roles) -> tuple[Mapping[str, Any], Roles]:
    """The row with the fields of the objects that its spans are in as columns."""
    assert roles.spans is not None
    cell = columns.get(roles.spans)
    # Most cells have no objects, and are long enough not to be parsed twice.
    parts = None if isinstance(cell, str) and "{" not in cell else parts_of(_listed(cell))
    if parts is None:
        return columns, roles
    names = {name: f"{roles.spans}.{name}" if name in columns else name for name in parts.fields}
    others, captions = [*roles.others, *names.values()], roles.captions
    if parts.captions is not None and not roles.captions_were_named:
        captions = names[parts.captions]
        others.remove(captions)
        others += [roles.captions] if roles.captions else []
    fields = {names[name]: values for name, values in parts.fields.items()}
    return (
        {**columns, **fields, roles.spans: parts.pairs},
        replace(roles, captions=captions, others=tuple(others)),
    )


# Times


def _are_parts(value: Any) -> bool:
    """Whether a cell is a list of spans, in a column that may hold anything."""
    found = _listed(value)
    if not isinstance(found, list) or not found:
        return False
    if all(isinstance(part, list) and len(part) == 2 for part in found):
        return all(_is_time(time) for part in found for time in part)
    return parts_of(found) is not None


def _is_time(value: Any) -> bool:
    try:
        seconds_of("", value)
    except ValueError:
        return False
    return True


def _times(
    columns: Mapping[str, Any], roles: Roles
) -> tuple[list[tuple[float, float]] | None, bool]:
    """The row's spans, None if it has none, and whether a list of them was given."""
    if roles.spans is not None:
        name = roles.spans
        found = _pairs(name, columns.get(name), roles.spans_were_named)
        if found is None:
            return None, False
        pairs, is_list = found
        return [_span(name, start, name, end, 1) for start, end in pairs], is_list
    if not (roles.start or roles.end):
        return None, False
    start, end = (
        None if name is None else _listed(columns.get(name)) for name in (roles.start, roles.end)
    )
    if start is None and end is None:
        return None, False
    first, last = roles.start or "start_seconds", roles.end or "end_seconds"
    scale = 1000 if roles.milliseconds else 1
    if isinstance(start, list) or isinstance(end, list):
        starts, ends = (value if isinstance(value, list) else [value] for value in (start, end))
        if len(starts) != len(ends):
            raise ValueError(f"{counted(len(starts), 'time')} in {first} and {len(ends)} in {last}")
        return [
            _span(first, one, last, other, scale) for one, other in zip(starts, ends, strict=True)
        ], True
    if end is None:
        raise ValueError(f"{first} without {last}")
    return [_span(first, 0 if start is None else start, last, end, scale)], False


def _span(first: str, start: Any, last: str, end: Any, scale: int) -> tuple[float, float]:
    begin, finish = seconds_of(first, start) / scale, seconds_of(last, end) / scale
    if not 0 <= begin < finish:
        raise ValueError(f"the span from {begin:g} to {finish:g} s is empty or negative")
    return begin, finish


def seconds_of(name: str, value: Any) -> float:
    """Seconds from a number or from `[HH:]MM:SS[.mmm]`; otherwise ValueError with the column."""
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        text = value.strip()
        match = _CLOCK.fullmatch(text) if ":" in text else None
        if match is not None:
            hours, minutes, rest = match.groups()
            whole, _, fraction = rest.replace(",", ".").partition(".")
            # Whole seconds plus the fraction, as elsewhere, so that equal times are equal numbers.
            seconds = (
                int(hours or 0) * 3600
                + int(minutes) * 60
                + int(whole)
                + float(f"0.{fraction or 0}")
            )
        elif _DECIMAL_COMMA.fullmatch(text) and not _THOUSANDS.fullmatch(text):
            seconds = float(text.replace(",", "."))
        elif _NUMBER.fullmatch(text):
            seconds = float(text.rstrip("secondSECOND "))
    elif hasattr(value, "total_seconds"):
        seconds = value.total_seconds()
    if not math.isfinite(seconds):
        shown = str(value)[:80]
        if _THOUSANDS.fullmatch(shown.strip()):
            raise ValueError(f"{name} {shown!r}: decimals or thousands? Write a decimal point")
        raise ValueError(f"{name} {shown!r} is neither seconds nor HH:MM:SS.mmm")
    return seconds


def _pairs(name: str, value: Any, must_be: bool) -> tuple[list[tuple[Any, Any]], bool] | None:
    """The pairs of times in a cell; None if it holds something else, such as a date."""
    value = _listed(value)
    if value is None:
        return None
    shown = str(value)[:80]
    if isinstance(value, str):
        if not value.startswith(("[", "(")):
            parts = _BETWEEN.split(value)
            if len(parts) == 2 and all(
                _CLOCK.fullmatch(part) or _NUMBER.fullmatch(part) for part in parts
            ):
                if must_be or seconds_of(name, parts[0]) < seconds_of(name, parts[1]):
                    return [(parts[0], parts[1])], False
                return None
            if not must_be:
                return None
        raise ValueError(f"{name} {shown!r} is not a list of [start, end]")
    if not isinstance(value, list):
        if must_be:
            raise ValueError(f"{name} {shown!r} is not a list of [start, end]")
        return None
    if len(value) == 2 and not any(isinstance(part, list | dict) for part in value):
        return [(value[0], value[1])], False
    pairs = []
    for part in value:
        if not isinstance(part, list) or len(part) != 2:
            raise ValueError(f"{name} {shown!r} is not a list of [start, end]")
        pairs.append((part[0], part[1]))
    return pairs, True


# Cells that hold lists


def _listed(value: Any) -> Any:
    """A cell as a list if it is one or is written as one; None if it is empty."""
    if value is None or value != value:  # data frames write a missing cell as NaN
        return None
    if isinstance(value, tuple):
        return [_listed(part) for part in value]
    if isinstance(value, list):
        return [_listed(part) if isinstance(part, tuple) else part for part in value]
    if isinstance(value, str):
        text = value.strip()
        if text[:1] in ("[", "(") and text[-1:] in ("]", ")"):
            found = _literal(text)
            return text if found is None else found
        return text or None
    return value


def _literal(text: str) -> list[Any] | None:
    """The list written in a text, in JSON or Python notation; None if there is none."""
    # Most lists are Python's, of texts that JSON only quotes in another way.
    like_json = text
    if "'" in text and '"' not in text and "\\" not in text and not _ONLY_IN_JSON.search(text):
        like_json = text.replace("'", '"')
    try:
        value = json.loads(like_json)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return None
    return _listed(value) if isinstance(value, list | tuple) else None


def _captions(value: Any) -> list[list[str]] | str | None:
    """A cell's captions: one text, or a list whose entries are one caption or several."""
    found = _listed(value)
    if isinstance(found, list):
        found = texts_of(found) or found
    if isinstance(found, list) and all(
        isinstance(part, str | list) or part is None for part in found
    ):
        return [
            [
                text
                for each in (part if isinstance(part, list) else [part])
                if (text := text_of(each)) is not None
            ]
            for part in found
        ]
    return text_of(found)


def _flat(captions: list[list[str]] | str | None) -> list[str]:
    if isinstance(captions, list):
        return list(dict.fromkeys(text for part in captions for text in part))
    return [] if captions is None else [captions]


def _shared_out(captions: list[list[str]] | str | None, count: int) -> list[list[str]]:
    """The captions of each of `count` spans."""
    if isinstance(captions, list):
        if len(captions) == count:
            return [list(dict.fromkeys(part)) for part in captions]
        if count == 1 or not captions:
            return [_flat(captions)] * count
        raise ValueError(f"{counted(count, 'span')} and {counted(len(captions), 'caption')}")
    if captions is not None and count > 1 and captions.startswith("["):
        raise ValueError(f"{count} spans, and captions that are not a list: {captions[:80]!r}")
    return [_flat(captions)] * count


def _extras(others: Mapping[str, Any], count: int, is_list: bool) -> Iterator[Any]:
    """The other columns of each span; a list as long as that of the spans gives each its entry."""
    listed: dict[str, list[Any]] = {}
    for name, value in others.items() if is_list else ():
        found = _listed(value) if isinstance(value, list | str) else None
        if isinstance(found, list) and len(found) == count:
            listed[name] = found
    for at in range(count):
        yield _texts(
            {**others} | {name: found[at] for name, found in listed.items()} if listed else others
        )


def _texts(columns: Mapping[str, Any]) -> dict[str, str] | None:
    found = {name: text for name, value in columns.items() if (text := text_of(value)) is not None}
    return found or None


def text_of(value: Any) -> str | None:
    """A cell as text; None if it is empty."""
    if isinstance(value, str):
        return (value if value.isascii() else clean(value)).strip() or None
    if value is None or value != value:
        return None
    if isinstance(value, dict | list):
        return clean(_JSON.encode(value))
    return clean(str(value))
