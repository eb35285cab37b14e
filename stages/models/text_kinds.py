"""Tells text that was laid over a clip from text in the scene, and subtitles from both.

All positions are shares of the picture's width and height.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import numpy as np

Kind = Literal["overlay", "subtitle", "scene"]

# Text stays in place if its edges are this near, in heights of the line.
_SAME_PLACE = 0.35
# Boxes of one line, if a detector split it.
_SAME_LINE_GAP = 1.0
_SAME_LINE_OVERLAP = 0.6
# Where subtitles are, and what they look like.
_SUBTITLES_FROM = 0.6
_CENTRED = 0.05
_HIGHEST_LINE = 0.14
_LEAST_PROPORTION = 2.5
_MOST_LINES = 3
_MOST_OTHER_LINES = 6
_SAME_BAND = 0.05
_MOST_LETTERS_LACKING = 0.5
# Nobody reads for so long.
_LONGEST_SUBTITLE_SECONDS = 9.0
_SAME_WORDS = 0.8


@dataclass(frozen=True)
class PlacedText:
    """A box of text in a frame: its bounds, whether it is upright, what it says if that is read."""

    left: float
    top: float
    right: float
    bottom: float
    is_upright: bool = True
    text: str | None = None

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def centre(self) -> float:
        return (self.left + self.right) / 2


def kinds_of(
    frames: Sequence[Sequence[PlacedText]], seconds: Sequence[float], proportion: float
) -> list[list[Kind]]:
    """The kind of each box of each frame; `proportion` is the picture's width / height.

    Overlay is what is at one place in at least half of the frames, and in two. A line that is
    centred in the lower part of the picture, alone or in a block of up to three, is a subtitle
    unless it stays for longer than a subtitle does, or is mostly digits.
    """
    lines = [list(_lines(boxes, proportion)) for boxes in frames]
    subtitles = _subtitles(lines, seconds, proportion)
    kinds: list[list[Kind]] = [["scene"] * len(boxes) for boxes in frames]
    for number, found in enumerate(lines):
        for at, line in enumerate(found):
            seen = sum(
                other == number or any(in_place(line.text, one.text, proportion) for one in there)
                for other, there in enumerate(lines)
            )
            kind: Kind = "overlay" if seen >= max(2, len(frames) / 2) else "scene"
            if (number, at) in subtitles:
                kind = "subtitle"
            for box in line.boxes:
                kinds[number][box] = kind
    return kinds


@dataclass(frozen=True)
class _Line:
    """Boxes of a frame, by number, that are one line."""

    boxes: tuple[int, ...]
    text: PlacedText


def _lines(boxes: Sequence[PlacedText], proportion: float) -> Iterator[_Line]:
    together: list[list[int]] = []
    for number in sorted(range(len(boxes)), key=lambda one: boxes[one].left):
        box = boxes[number]
        for line in together:
            last = boxes[line[-1]]
            shared = min(box.bottom, last.bottom) - max(box.top, last.top)
            gap = (box.left - last.right) * proportion
            if (
                shared >= _SAME_LINE_OVERLAP * max(box.height, last.height)
                and gap <= _SAME_LINE_GAP * last.height
            ):
                line.append(number)
                break
        else:
            together.append([number])
    for line in together:
        parts = [boxes[number] for number in line]
        known = [part.text for part in parts if part.text]
        yield _Line(
            tuple(line),
            PlacedText(
                min(part.left for part in parts),
                min(part.top for part in parts),
                max(part.right for part in parts),
                max(part.bottom for part in parts),
                all(part.is_upright for part in parts),
                " ".join(known) if known else None,
            ),
        )


def in_place(one: PlacedText, other: PlacedText, proportion: float) -> bool:
    """Whether two boxes, of two frames, are at one place: at the same height, and with the same
    left end, right end or middle."""
    near = _SAME_PLACE * min(one.height, other.height)
    if abs(one.top - other.top) > near or abs(one.bottom - other.bottom) > near:
        return False
    if min(one.right, other.right) <= max(one.left, other.left):
        return False
    apart = min(
        abs(one.left - other.left), abs(one.right - other.right), abs(one.centre - other.centre)
    )
    return apart * proportion <= near


def _subtitles(
    frames: Sequence[Sequence[_Line]], seconds: Sequence[float], proportion: float
) -> set[tuple[int, int]]:
    """The lines that are subtitles, by number of frame and of line."""
    found = {
        (number, at)
        for number, lines in enumerate(frames)
        for at in _block(lines, proportion)
        if not _stays(number, at, frames, seconds, proportion)
    }
    if not found:
        return found
    # The lowest line of each frame is at one height.
    lowest = {
        number: max(frames[number][at].text.bottom for other, at in found if other == number)
        for number in {number for number, _ in found}
    }
    usual = float(np.median(list(lowest.values())))
    return {one for one in found if abs(lowest[one[0]] - usual) <= _SAME_BAND}


def _block(lines: Sequence[_Line], proportion: float) -> list[int]:
    """The lines of a frame that may be subtitles, by number."""
    centred = [at for at, line in enumerate(lines) if _is_centred(line.text, proportion)]
    low = [at for at in centred if lines[at].text.top >= _SUBTITLES_FROM]
    above = [lines[at].text for at in centred if at not in low]
    if not 1 <= len(low) <= _MOST_LINES or len(lines) - len(low) > _MOST_OTHER_LINES:
        return []
    top = min(lines[at].text.top for at in low)
    height = max(lines[at].text.height for at in low)
    # The end of a longer text, such as credits.
    if any(top - 2 * height <= text.bottom and text.height < 1.5 * height for text in above):
        return []
    return low


def _is_centred(text: PlacedText, proportion: float) -> bool:
    return (
        text.is_upright
        and abs(text.centre - 0.5) <= _CENTRED
        and text.height <= _HIGHEST_LINE
        and (text.right - text.left) * proportion >= _LEAST_PROPORTION * text.height
        and _is_speech(text.text)
    )


def _is_speech(text: str | None) -> bool:
    """Whether it may be speech, and not a time code or a date; also if it isn't known."""
    told = [character for character in text or "" if character.isalnum()]
    letters = sum(character.isalpha() for character in told)
    return not told or letters >= (1 - _MOST_LETTERS_LACKING) * len(told)


def _stays(
    number: int,
    at: int,
    frames: Sequence[Sequence[_Line]],
    seconds: Sequence[float],
    proportion: float,
) -> bool:
    """Whether a line is there for longer than a subtitle, unchanged as far as is known."""
    own = frames[number][at].text

    def is_there(other: int) -> bool:
        return any(
            in_place(own, line.text, proportion)
            and abs(own.left - line.text.left) * proportion <= _SAME_PLACE * own.height
            and same_words(own.text, line.text.text)
            for line in frames[other]
        )

    first = last = number
    while first > 0 and is_there(first - 1):
        first -= 1
    while last + 1 < len(frames) and is_there(last + 1):
        last += 1
    return seconds[last] - seconds[first] > _LONGEST_SUBTITLE_SECONDS


def same_words(one: str | None, other: str | None) -> bool:
    """Whether two readings are of one text, as far as is known: a few letters may differ, digits
    may not."""
    if one is None or other is None:
        return True
    if one == other:
        return True
    first, second = ("".join(text.casefold().split()) for text in (one, other))
    if list(filter(str.isdigit, first)) != list(filter(str.isdigit, second)):
        return False
    return SequenceMatcher(None, first, second, autojunk=False).ratio() >= _SAME_WORDS
