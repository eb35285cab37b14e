"""Interprets cells that list objects: `[{"segment": [2, 8.5], "label": "run"}, …]`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipmill.pipeline.ingest.column_names import CAPTIONS, ENDS, SPANS, STARTS, is_milliseconds
from clipmill.pipeline.ingest.source_lists import word_of

_TEXTS = (*CAPTIONS, "content")


@dataclass(frozen=True, slots=True)
class Parts:
    """Times of a list's entries, in seconds or as published, and their other fields.

    `captions` is the field with the captions.
    """

    pairs: list[tuple[Any, Any]]
    fields: dict[str, list[Any]]
    captions: str | None


def parts_of(entries: Any) -> Parts | None:
    """The entries of a cell if each is an object with times; None for any other cell."""
    if not isinstance(entries, list) or not entries:
        return None
    pairs = []
    fields: dict[str, list[Any]] = {}
    for at, entry in enumerate(entries):
        found = _times_in(entry) if isinstance(entry, dict) else None
        if found is None:
            return None
        pair, used = found
        pairs.append(pair)
        for name, value in entry.items():
            if name not in used:
                fields.setdefault(str(name), [None] * len(entries))[at] = value
    return Parts(pairs, fields, _first(tuple(fields), CAPTIONS))


def texts_of(entries: Sequence[Any]) -> list[Any] | None:
    """The texts of objects that each have one under a usual name; None for anything else."""
    names = [_first(tuple(entry), _TEXTS) if isinstance(entry, dict) else None for entry in entries]
    if not names or None in names:
        return None
    return [entry[name] for entry, name in zip(entries, names, strict=True)]


def _times_in(entry: Mapping[str, Any]) -> tuple[tuple[Any, Any], tuple[str, ...]] | None:
    names = tuple(entry)
    start, end = _first(names, STARTS), _first(names, ENDS)
    if start is not None and end is not None:
        return (_time(start, entry[start]), _time(end, entry[end])), (start, end)
    both = _first(names, SPANS)
    pair = None if both is None else entry[both]
    if both is not None and isinstance(pair, list | tuple) and len(pair) == 2:
        return (pair[0], pair[1]), (both,)
    return None


def _time(name: str, value: Any) -> Any:
    if is_milliseconds(word_of(name)) and isinstance(value, int | float):
        return value / 1000
    return value


@functools.lru_cache(4096)
def _first(names: tuple[str, ...], words: tuple[str, ...]) -> str | None:
    """The name that is the first of these words; objects of a list mostly have the same names."""
    by_word = {word_of(str(name)): name for name in reversed(names)}
    return next((by_word[word] for word in words if word in by_word), None)
