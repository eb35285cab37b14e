"""Subtitle files to spans: WebVTT, SubRip and YouTube's json3."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

FORMATS = ("json3", "vtt", "srt")

_TIME = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,3}))?")
_CUE = re.compile(rf"({_TIME.pattern})\s*-->\s*({_TIME.pattern})")
# A sign that opens ends another that was opened before: so a line of them is read but once.
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


@dataclass(frozen=True)
class Span:
    """Text shown from `start_seconds` to `end_seconds`."""

    start_seconds: float
    end_seconds: float
    text: str


def parse_subtitles(text: str, kind: str) -> list[Span]:
    """Spans in time order of a file of one of FORMATS; ValueError where it is none.

    A line that a cue repeats from the one before (the way automatic captions roll) is taken once.
    """
    try:
        if kind == "json3":
            spans = list(_json3(text))
        elif kind in ("vtt", "srt"):
            spans = list(_cues(text))
        else:
            raise ValueError(f"subtitles of format {kind!r} are not read; {', '.join(FORMATS)} are")
    except (TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"no {kind} subtitles: {type(error).__name__}: {error}") from error
    spans = [span for span in spans if span.text and span.end_seconds > span.start_seconds
             and math.isfinite(span.end_seconds - span.start_seconds)]
    spans.sort(key=lambda span: (span.start_seconds, span.end_seconds))
    return spans


def seconds_of(text: str) -> float:
    """Seconds of `[HH:]MM:SS[.mmm]` or of a plain number; ValueError otherwise."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return float(text)
    hours, minutes, seconds, fraction = match.groups()
    whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
    return whole + int((fraction or "0").ljust(3, "0")) / 1000


def _cues(text: str) -> Iterator[Span]:
    """Cues of WebVTT and SubRip, which differ in what is left out here."""
    before: set[str] = set()
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    for block in re.split(r"\n[ \t]*\n", text):
        lines = block.split("\n")
        for number, line in enumerate(lines):
            match = _CUE.match(line.strip())
            if match is None:
                continue
            shown = [clean for raw in lines[number + 1:] if (clean := _plain(raw))]
            fresh = [line for line in shown if line not in before]
            before = set(shown)
            yield Span(seconds_of(match[1]), seconds_of(match[6]), " ".join(fresh))
            break


def _json3(text: str) -> Iterator[Span]:
    value = json.loads(text)
    events = value.get("events") if isinstance(value, dict) else None
    if not isinstance(events, list):
        raise ValueError("json3 subtitles without a list of events")
    for event in events:
        words = "".join(part.get("utf8", "") for part in event.get("segs") or [])
        start = event.get("tStartMs", 0) / 1000
        yield Span(start, start + event.get("dDurationMs", 0) / 1000, _plain(words))


def _plain(text: str) -> str:
    return " ".join(html.unescape(_MARKUP.sub("", text)).split())
