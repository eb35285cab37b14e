"""Reads rows of a list written in JSON: one per line, or all in one value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipmill.pipeline.ingest.list_records import Counts
from clipmill.pipeline.ingest.list_text import TextLines
from clipmill.schemas.errors import UsageError

MOST_JSON_BYTES = 2 << 30
"""A file with one value is held in memory as a whole."""

Value = tuple[str, Any, str | None]
"""The place of a row, its value, and why it can't be read."""


def lines_of_json(path: Path, lines: TextLines, counts: Counts) -> Iterator[Value]:
    """The values of a file with one per line."""
    for number, line, problem in lines:
        place = f"{path}:{number}"
        if not line.strip():
            counts.blank += 1
            continue
        if counts.rows == 0 and line.rstrip() == "[":
            raise UsageError(f"{path} is one JSON array, not JSON lines; rename it to .json")
        counts.rows += 1
        counts.row_lines += 1
        if problem is not None:
            yield place, None, problem
            continue
        try:
            yield place, json.loads(line), None
        except (ValueError, RecursionError) as error:
            yield place, None, f"not valid JSON: {error}"


def rows_of_json(path: Path, text: str, counts: Counts) -> Iterator[Value] | None:
    """The rows of one JSON value; None if the text is JSON lines.

    Accepts an array, an object that contains one array of objects, one with `videos` and
    `sentences` (MSR-VTT), an object of objects keyed by id, one that contains such an object
    (`database` in ActivityNet), and an object that is a row.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        try:
            json.loads(text.lstrip().partition("\n")[0])
        except (ValueError, RecursionError):
            raise UsageError(f"{path} is not valid JSON: {error}") from error
        return None
    if (
        isinstance(value, dict)
        and "\n" not in text.strip()
        and not (_tables(value) or _is_by_id(value) or _by_id_inside(value))
    ):
        return None  # the only line of JSON lines
    return _counted(path, value, counts)


def _counted(path: Path, value: Any, counts: Counts) -> Iterator[Value]:
    for number, row in enumerate(_rows(value), 1):
        counts.rows += 1
        yield f"{path}:row {number}", row, None


def _rows(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        yield from value
    elif isinstance(value, dict):
        tables, inside = _tables(value), _by_id_inside(value)
        if {"videos", "sentences"} <= tables.keys():
            yield from _with_sentences(tables["videos"], tables["sentences"])
        elif inside is not None:
            yield from _rows_by_id(inside)
        elif len(tables) == 1:
            yield from next(iter(tables.values()))
        elif _is_by_id(value):
            yield from _rows_by_id(value)
        else:
            yield value
    else:
        yield value


def _tables(value: dict[str, Any]) -> dict[str, list[Any]]:
    return {
        name: rows
        for name, rows in value.items()
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    }


def _is_by_id(value: dict[str, Any]) -> bool:
    return bool(value) and all(isinstance(row, dict) for row in value.values())


def _by_id_inside(value: dict[str, Any]) -> dict[str, Any] | None:
    """The only object in an object, if it is one of objects keyed by id."""
    objects = [inside for inside in value.values() if isinstance(inside, dict)]
    return objects[0] if len(objects) == 1 and _is_by_id(objects[0]) else None


def _rows_by_id(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, row in value.items():
        yield {"video_id": name, **row}


def _with_sentences(videos: list[Any], sentences: list[Any]) -> Iterator[dict[str, Any]]:
    """Videos with their captions, which are in a separate table."""
    captions: dict[Any, list[Any]] = {}
    for row in sentences:
        captions.setdefault(row.get("video_id"), []).append(row.get("caption"))
    for row in videos:
        yield row | {"captions": captions.pop(row.get("video_id"), None)}
    for name, found in captions.items():
        yield {"video_id": name, "captions": found}
