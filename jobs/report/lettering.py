"""Estimates the width of text in a chart, so that none is cut off at the drawing's edge.

The font is unknown, so the widths are those of a wide one (DejaVu Sans).
"""

from __future__ import annotations

import unicodedata

FONT = 11.0
_NARROW = frozenset("iljI.,:;'|!()[] ")
_BROAD = frozenset("mwMW%@—…")


def text_width(text: str) -> float:
    """The maximum width, in units of the drawing."""
    return FONT * sum(map(_letter, text))


def _letter(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.05
    if letter in _NARROW:
        return 0.4
    if letter in _BROAD:
        return 1.0
    return 0.78 if letter.isupper() else 0.64


def fitted(text: str, room: float) -> str:
    """The text, truncated with an ellipsis to fit."""
    if text_width(text) <= room:
        return text
    left = text
    while left and text_width(f"{left}…") > room:
        left = left[:-1]
    return f"{left.rstrip()}…" if left else ""


def middle_within(at: float, text: str, whole: float) -> float:
    """The middle of a text that belongs at `at`, moved to fit a drawing of this width."""
    half = text_width(text) / 2
    return round(min(max(at, half), whole - half), 2)
