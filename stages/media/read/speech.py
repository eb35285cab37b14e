"""Finds what is said in a clip in its video's subtitles: which track is used, and which words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

# How YouTube names translated tracks: the language, and the one translated from.
_TRANSLATED = re.compile(r"[a-z]{2,3}-[a-z]{2,3}")
_ORIGINAL = "-orig"

Lines = Sequence[Mapping[str, Any]]
"""SUBTITLE structs, each with its `words` (TEXT_AT structs, or None) if they were parsed."""


def with_words(subtitles: Lines | None, words: Sequence[Any] | None) -> list[dict[str, Any]]:
    """The columns `subtitles` and `subtitle_words` of a video as one."""
    lines = [dict(line) for line in subtitles or []]
    for line, said in zip(lines, words or [], strict=False):
        line["words"] = said
    return lines


def speaking_track(subtitles: Lines, language: str | None) -> list[Mapping[str, Any]]:
    """The lines of the one track that represents a video's speech, in time order.

    Human-written tracks come before automatic ones; among those, the video's own language before
    English before any other. If `language` is unknown, an automatic track may determine it.
    """
    codes = {
        (bool(line["automatic"]), line["language"] or "")
        for line in subtitles
        if (line["text"] or "").strip()
    }
    if not codes:
        return []
    own = own_language(language, [code for automatic, code in codes if automatic])
    best = min(codes, key=lambda track: (track[0], *_distance(track[1], own, track[0])))
    return sorted(
        (line for line in subtitles if (bool(line["automatic"]), line["language"] or "") == best),
        key=lambda line: (line["start_seconds"], line["end_seconds"]),
    )


def own_language(language: str | None, automatic_codes: Iterable[str]) -> str | None:
    """The code of the spoken language: the declared one, else the recognised one."""
    originals = sorted(code for code in automatic_codes if code.endswith(_ORIGINAL))
    return language or (originals[0].removesuffix(_ORIGINAL) if originals else None)


def same_language(code: str, other: str | None) -> bool:
    return bool(other) and _primary(code) == _primary(other or "")


def _distance(code: str, own: str | None, automatic: bool) -> tuple[int, bool, str]:
    """How far a track is from the video's own language; the lowest is best."""
    bare = code.removesuffix(_ORIGINAL)
    if automatic and _TRANSLATED.fullmatch(code):
        place = 4
    elif own and bare.lower() == own.lower():
        place = 0
    elif same_language(code, own):
        place = 1
    else:
        place = 2 if _primary(code) == "en" else 3
    return place, not code.endswith(_ORIGINAL), code


def _primary(code: str) -> str:
    return re.split(r"[-_]", code.lower(), maxsplit=1)[0]


def said_within(track: Lines, start_seconds: float, end_seconds: float | None) -> tuple[str, ...]:
    """What is said from `start_seconds` to `end_seconds`, line by line.

    A human-written line, whose words have no times, is included whole or not at all: if at least
    half of it is inside, or it fills at least half of the span.
    """
    end = float("inf") if end_seconds is None else end_seconds
    found = []
    for line in track:
        if line["start_seconds"] >= end:
            break
        if is_by_words(line):
            text = words_within(line, start_seconds, end)
        else:
            both = min(line["end_seconds"], end) - max(line["start_seconds"], start_seconds)
            length = min(line["end_seconds"] - line["start_seconds"], end - start_seconds)
            text = _text(line["text"]) if both > 0 and 2 * both >= length else ""
        if text:
            found.append(text)
    return tuple(found)


def is_by_words(line: Mapping[str, Any]) -> bool:
    """Whether single words of a line are selected: if they have times, or the line is automatic.

    Automatic lines end at a pause or at the screen's width, not with a sentence.
    """
    return bool(line.get("words") or line["automatic"])


def words_within(line: Mapping[str, Any], start_seconds: float, end_seconds: float) -> str:
    """The words of a line that begin from `start_seconds` to `end_seconds`."""
    return _text(
        "".join(text for seconds, text in _words(line) if start_seconds <= seconds < end_seconds)
    )


def _words(line: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
    """Words with their times; unknown times are spread over the line by word length."""
    if line.get("words"):
        for word in line["words"]:
            yield word["seconds"], word["text"]
        return
    text = _text(line["text"])
    # Not all languages put spaces between words.
    parts = re.findall(r"\s*\S+", text) if " " in text or text.isascii() else list(text)
    length = line["end_seconds"] - line["start_seconds"]
    at = 0
    for part in parts:
        yield line["start_seconds"] + length * at / len(text), part
        at += len(part)


def _text(text: str | None) -> str:
    return " ".join((text or "").split())


def without_overlaps(subtitles: Lines) -> list[dict[str, Any]]:
    """Lines, where each automatic one ends when the next of its track begins."""
    found = [dict(line) for line in subtitles]
    for track in {(line["language"], line["automatic"]) for line in found if line["automatic"]}:
        lines = [line for line in found if (line["language"], line["automatic"]) == track]
        lines.sort(key=lambda line: line["start_seconds"])
        for line, after in itertools.pairwise(lines):
            if line["start_seconds"] < after["start_seconds"] < line["end_seconds"]:
                line["end_seconds"] = after["start_seconds"]
    return found
