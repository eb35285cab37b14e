"""Reads lines of JSON that are all written in one way, without parsing them as JSON.

Published files come from one program, so their lines have the same keys in the same order, with the
same spaces. Such a line splits at its quotes into pieces of which every other one is known. That
takes a tenth of the time of a JSON parser, and keeps numbers digit for digit. Any other line is for
the parser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from clipmill.schemas.sql_text import literal

_NUMBER = r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?"
_IN_PLACE = re.compile(rf"(\s*:\s*)({_NUMBER})(.*)", re.S)
# An escape, or a control character, which JSON doesn't allow in a string, before the line's end.
_NOT_PLAIN = r"'[\\\x00-\x1f].'"


@dataclass(frozen=True)
class PlainLines:
    """SQL over a column `p`, a line split at its quotes, and `line`.

    `is_plain` says whether the line is written like the one that this was made from; `values` give
    the text of each key then.
    """

    is_plain: str
    values: Mapping[str, str]


def plain_lines(line: str) -> PlainLines | None:
    """How to read lines that are written like this one; None if it is not an object of texts and
    numbers without escapes."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or "\\" in line:
        return None
    pieces = line.split('"')
    if any(pieces.count(key) != 1 for key in value):
        return None
    conditions = [f"len(p) = {len(pieces)}", f"p[1] = {literal(pieces[0])}"]
    values: dict[str, str] = {}
    at = 0
    for key, item in value.items():
        if isinstance(item, str) and item:
            if pieces[at + 1] != key or pieces[at + 3] != item:
                return None
            # Texts that stand for a missing value are left to the parser's path.
            text = f"p[{at + 4}]"
            conditions += [
                _is(at + 1, pieces),
                _is(at + 2, pieces),
                _is(at + 4, pieces),
                f"{text} <> ''",
                f"lower({text}) <> 'nan'",
            ]
            at += 4
        elif isinstance(item, int | float) and not isinstance(item, bool):
            found = _IN_PLACE.fullmatch(pieces[at + 2])
            if pieces[at + 1] != key or found is None:
                return None
            before, after = found[1], found[6]
            piece = f"p[{at + 3}]"
            text = (
                f"substr({piece}, {len(before) + 1}, length({piece}) - {len(before) + len(after)})"
            )
            conditions += [
                _is(at + 1, pieces),
                f"starts_with({piece}, {literal(before)})",
                f"ends_with({piece}, {literal(after)})",
                f"regexp_full_match({text}, '{_NUMBER}')",
            ]
            at += 2
        else:
            return None
        values[key] = text
    if at != len(pieces) - 1:
        return None
    conditions.append(f"NOT regexp_matches(line, {_NOT_PLAIN})")
    return PlainLines("coalesce(" + " AND ".join(conditions) + ", false)", values)


def _is(at: int, pieces: list[str]) -> str:
    return f"p[{at + 1}] = {literal(pieces[at])}"
