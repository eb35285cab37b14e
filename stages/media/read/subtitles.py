"""Parses subtitle files to timed lines: WebVTT, SubRip, YouTube's json3, TTML, ASS and SAMI.

pysubs2 reads ASS and SAMI. WebVTT and SubRip are parsed here: pysubs2 and webvtt-py lose word
times, treat comments as cues, or drop text between `<` and `>`.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from clipmill.stages.media.read.ttml import timed_texts

FORMATS = ("json3", "vtt", "srt", "ttml", "dfxp", "ass", "ssa", "sami", "smi")
"""Sites' file name extensions, the best first."""

_PYSUBS2 = {"ass": "ass", "ssa": "ssa", "sami": "sami", "smi": "sami"}
_TIME = r"(-)?(?:(\d+):)?(\d{1,2}):(\d{1,2})(?:[.,](\d+))?"
_TIME_COMPILED = re.compile(_TIME)
_CUE = re.compile(rf"\s*({_TIME})\s*-{{1,2}}>\s*({_TIME})(?![\d:])")
# Markup tags; other uses of the sign stay: `x < 5`, `<Enter>`.
_TAGS = re.compile(
    r"</?(?:[ibusvc]|lang|ruby|rp|font|span)(?:[.\s][^<>]*)?/?>|</?rt>|"
    r"\{\\[^{}]*\}",
    re.IGNORECASE,
)
# Pronunciations of characters (ruby), which would repeat the text.
_READINGS = re.compile(r"<rt>[^<>]*(?:</rt>)?", re.IGNORECASE)
_INLINE_TIME = re.compile(rf"<({_TIME})>")
_NO_CUE = re.compile(r"(?:NOTE|STYLE|REGION)(?:[ \t]|\Z)")


@dataclass(frozen=True)
class Word:
    """Text that is said from `seconds` on, including a preceding space if there is one."""

    seconds: float
    text: str


@dataclass(frozen=True)
class TimedText:
    """Text shown from `start_seconds` to `end_seconds`; `words` where the file has their times.

    The texts of the words, joined, are the text.
    """

    start_seconds: float
    end_seconds: float
    text: str
    words: tuple[Word, ...] = ()


# Each line of a cue as pieces, each with the time from which it is said, None if not given.
_Line = list[tuple[float | None, str]]


@dataclass(frozen=True)
class _Cue:
    start_seconds: float
    end_seconds: float
    lines: list[_Line]


def parse_subtitles(text: str, kind: str, *, automatic: bool | None = None) -> list[TimedText]:
    """Spans in time order of a file of one of FORMATS; ValueError where it is not one.

    An automatic track shows each line until the next but one begins, and repeats it as it scrolls
    up: such a line is used once, and ends where the next begins. If `automatic` is unknown, a
    track with word times is automatic.
    """
    try:
        cues = list(_cues_of(text.removeprefix("\ufeff"), kind))
    except (TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not {kind} subtitles: {type(error).__name__}: {error}") from error
    cues = [cue for cue in cues if math.isfinite(cue.end_seconds - cue.start_seconds)]
    cues.sort(key=lambda cue: (cue.start_seconds, cue.end_seconds))
    if automatic is None:
        automatic = any(map(_has_words, cues))
    if automatic:
        cues = _without_repeats(cues)
    spans = [
        span for cue in cues if (span := _span(cue)).text and span.end_seconds > span.start_seconds
    ]
    return _without_overlaps(spans) if automatic else spans


def decoded(data: bytes) -> str:
    """The text of a file in UTF-8 or UTF-16, else in Windows' western encoding."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace")
    text = data.decode("utf-8-sig", "replace")
    broken = text.count("\ufffd")
    if broken and broken >= sum(character > "\x7f" for character in text) - broken:
        return data.decode("cp1252", "replace")
    return text


def seconds_of(text: str) -> float:
    """Seconds of `[HH:]MM:SS[.mmm]` or of a plain number; ValueError otherwise."""
    match = _TIME_COMPILED.fullmatch(text.strip())
    if match is None:
        return float(text)
    sign, hours, minutes, seconds, fraction = match.groups()
    whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
    value = float(f"{whole}.{fraction or 0}")
    return -value if sign else value


def _cues_of(text: str, kind: str) -> Iterator[_Cue]:
    if kind == "json3":
        yield from _json3(text)
    elif kind in ("vtt", "srt"):
        for start, end, lines in _timed_lines(text, is_vtt=kind == "vtt"):
            yield _Cue(max(start, 0.0), end, [_pieces(line) for line in lines])
    elif kind in ("ttml", "dfxp"):
        for start, end, shown in timed_texts(text):
            yield _Cue(start, end, [[(None, line)] for line in shown.split("\n")])
    elif kind in _PYSUBS2:
        yield from _by_pysubs2(text, _PYSUBS2[kind])
    else:
        raise ValueError(
            f"subtitles of format {kind!r} are not supported; {', '.join(FORMATS)} are"
        )


def _timed_lines(text: str, *, is_vtt: bool) -> Iterator[tuple[float, float, list[str]]]:
    """The cues of WebVTT or SubRip, as begin, end and the lines below.

    In WebVTT an empty line ends a cue; one with a space in it does not. In SubRip a text may have
    empty lines, and the empty line between two cues may be missing.
    """
    cue: tuple[float, float, list[str]] | None = None
    before, is_comment = "", False
    for line in re.split(r"\r\n|\r|\n", text):
        match = None if is_comment else _CUE.match(line)
        if match is not None:
            if cue is not None:
                yield _without_name(cue)
            cue = (seconds_of(match[1]), seconds_of(match[7]), [])
        elif is_vtt and not line:
            if cue is not None:
                yield cue
            cue, is_comment = None, False
        elif is_vtt and cue is None and not before and _NO_CUE.match(line):
            is_comment = True
        elif cue is not None and not is_vtt and not before and line.strip().isdecimal() and cue[2]:
            # The number of a cue. If no cue follows, this is the end of what can be read.
            yield cue
            cue = None
        elif cue is not None:
            cue[2].append(line)
        before = line.strip() if not is_vtt else line
    if cue is not None:
        yield cue


def _without_name(cue: tuple[float, float, list[str]]) -> tuple[float, float, list[str]]:
    """Without the next cue's number or name, if no empty line separated the two."""
    start, end, lines = cue
    if len(lines) > 1 and (lines[-1].strip().isdecimal() or (lines[-1] and not lines[-2].strip())):
        lines = lines[:-1]
    return start, end, lines


def _pieces(line: str) -> _Line:
    """A line of WebVTT or SubRip without its markup, in pieces if it contains times."""
    parts = _INLINE_TIME.split(_READINGS.sub("", line))
    groups = _INLINE_TIME.groups + 1
    pieces: _Line = [(None, parts[0])]
    pieces += [
        (seconds_of(parts[at]), parts[at + groups - 1]) for at in range(1, len(parts), groups)
    ]
    return [(at, html.unescape(_TAGS.sub("", text))) for at, text in pieces]


def _json3(text: str) -> Iterator[_Cue]:
    value = json.loads(text)
    events = value.get("events") if isinstance(value, dict) else None
    if not isinstance(events, list):
        raise ValueError("json3 subtitles without a list of events")
    for event in events:
        start = event.get("tStartMs", 0)
        line: _Line = []
        for part in event.get("segs") or []:
            offset = part.get("tOffsetMs")
            at = None if offset is None else (start + offset) / 1000
            line.append((at, "" + part.get("utf8", "")))  # raises TypeError if it is not text
        yield _Cue(start / 1000, (start + event.get("dDurationMs", 0)) / 1000, [line])


def _by_pysubs2(text: str, kind: str) -> Iterator[_Cue]:
    import pysubs2

    try:
        file = pysubs2.SSAFile.from_string(text, format_=kind)
    except (pysubs2.Pysubs2Error, LookupError, ValueError) as error:
        raise ValueError(f"not {kind} subtitles: {type(error).__name__}: {error}") from error
    for event in file:
        if not event.is_comment and not event.is_drawing:
            yield _Cue(
                max(event.start, 0) / 1000,
                event.end / 1000,
                [[(None, line)] for line in event.plaintext.split("\n")],
            )


def _span(cue: _Cue) -> TimedText:
    """A cue's lines as one text with single spaces, and its words if their times are known."""
    words: list[Word] = []
    pieces = [(at, text) for line in cue.lines for at, text in [*line, (None, " ")]]
    gap = ""
    for at, piece in pieces:
        text = " ".join(piece.split())
        if not text:
            gap = " " if words and piece else gap
            continue
        space = gap or (" " if words and piece[0].isspace() else "")
        if at is None and words:
            # Said together with the preceding word.
            words[-1] = replace(words[-1], text=words[-1].text + space + text)
        else:
            seconds = cue.start_seconds if at is None else at
            earliest = words[-1].seconds if words else cue.start_seconds
            words.append(Word(max(seconds, earliest), space + text))
        gap = " " if piece[-1].isspace() else ""
    text = "".join(word.text for word in words)
    return TimedText(
        cue.start_seconds, cue.end_seconds, text, tuple(words) if _has_words(cue) else ()
    )


def _has_words(cue: _Cue) -> bool:
    return any(at is not None for line in cue.lines for at, _ in line)


def _without_repeats(cues: Sequence[_Cue]) -> list[_Cue]:
    """Without lines at a cue's beginning that repeat the end of the previous one."""
    found = []
    before: list[str] = []
    for cue in cues:
        lines = [
            (text, line)
            for line in cue.lines
            if (text := " ".join("".join(piece for _, piece in line).split()))
        ]
        shown = [text for text, _ in lines]
        again = next(
            (
                count
                for count in range(min(len(before), len(shown)), 0, -1)
                if before[-count:] == shown[:count]
            ),
            0,
        )
        found.append(replace(cue, lines=[line for _, line in lines[again:]]))
        before = shown or before
    return found


def _without_overlaps(spans: Sequence[TimedText]) -> list[TimedText]:
    """Each line until the next one begins."""
    found = []
    for span, after in zip(spans, [*spans[1:], None], strict=True):
        if after is not None and span.start_seconds < after.start_seconds < span.end_seconds:
            found.append(replace(span, end_seconds=after.start_seconds))
        else:
            found.append(span)
    return found
