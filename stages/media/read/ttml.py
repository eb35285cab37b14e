"""Parses TTML (also DFXP, IMSC, EBU-TT) to timed texts, including times in frames and ticks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from xml.etree import ElementTree

_CLOCK = re.compile(r"(\d+):(\d{1,2}):(\d{1,2})(?:(\.\d+)|:(\d+)(?:\.(\d+))?)?")
_OFFSET = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(h|ms|m|s|f|t)?")
_NO_TEXT = frozenset(("head", "metadata", "set", "animate", "image"))


@dataclass(frozen=True)
class _Rates:
    """Frames, subframes and ticks per second."""

    frames: Fraction
    parts: Fraction
    ticks: Fraction

    @classmethod
    def of(cls, attributes: Mapping[str, str]) -> _Rates:
        frames = _rate(attributes.get("frameRate", "30"))
        parts = _rate(attributes.get("subFrameRate", "1"))
        # Some files separate the two numbers with a colon.
        over, _, under = re.sub(
            r"[\s:]+", " ", attributes.get("frameRateMultiplier", "1")
        ).partition(" ")
        default = frames * parts if "frameRate" in attributes else Fraction(1)
        ticks = _rate(attributes["tickRate"]) if "tickRate" in attributes else default
        return cls(frames * _rate(over) / _rate(under or "1"), parts, ticks)

    def seconds(self, text: str) -> Fraction:
        text = text.strip()
        if clock := _CLOCK.fullmatch(text):
            hours, minutes, seconds, fraction, frames, parts = clock.groups()
            whole = Fraction(int(hours) * 3600 + int(minutes) * 60 + int(seconds))
            if fraction:
                return whole + Fraction(fraction)
            return whole + (int(frames or 0) + int(parts or 0) / self.parts) / self.frames
        offset = _OFFSET.fullmatch(text)
        if offset is None:
            raise ValueError(f"ttml: {text[:40]!r} is not a time")
        number, unit = Fraction(offset[1]), offset[2] or "s"
        units = {
            "h": Fraction(3600),
            "m": Fraction(60),
            "s": Fraction(1),
            "ms": Fraction(1, 1000),
            "f": 1 / self.frames,
            "t": 1 / self.ticks,
        }
        return number * units[unit]


def _rate(text: str) -> Fraction:
    if not re.fullmatch(r"\s*\d{1,12}(?:\.\d{1,12})?\s*", text) or not (value := Fraction(text)):
        raise ValueError(f"ttml: {text[:40]!r} is not a rate")
    return value


def timed_texts(text: str) -> Iterator[tuple[float, float, str]]:
    """Begin, end and text, with line breaks, of every element that has times.

    ValueError if the file is not TTML.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"not TTML: {error}") from error
    if _name(root.tag) != "tt":
        raise ValueError(f"not TTML: it begins with <{_name(root.tag)}>")
    rates = _Rates.of({_name(key): value for key, value in root.attrib.items()})
    for begin, end, shown in _parts(root, rates, Fraction(0), None):
        if end is not None and shown.strip():
            yield float(begin), float(end), shown


_Part = tuple[Fraction, Fraction | None, str]


def _parts(
    element: ElementTree.Element, rates: _Rates, base: Fraction, until: Fraction | None
) -> Iterator[_Part]:
    """What an element shows; its times are relative to `base`, and end at `until`."""
    attributes = {_name(key): value for key, value in element.attrib.items()}
    begin = base + rates.seconds(attributes.get("begin") or "0s")
    ends = [until]
    if attributes.get("end"):
        ends.append(base + rates.seconds(attributes["end"]))
    if attributes.get("dur"):
        ends.append(begin + rates.seconds(attributes["dur"]))
    end = min((one for one in ends if one is not None), default=None)
    is_text = _name(element.tag) in ("p", "span")
    pieces = [_plain(element.text)] if is_text else []
    at = begin
    for child in element:
        name = _name(child.tag)
        if name == "br":
            pieces.append("\n")
        elif name not in _NO_TEXT:
            for part in _parts(child, rates, at, end):
                if is_text and part[:2] == (begin, end):
                    pieces.append(part[2])
                else:
                    yield part
                if attributes.get("timeContainer") == "seq":
                    at = part[1] if part[1] is not None else at
        if is_text:
            pieces.append(_plain(child.tail))
    shown = "".join(pieces)
    if shown:
        yield begin, end, shown


def _plain(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "")


def _name(tag: object) -> str:
    """Without the namespace, which differs in old files; comments have no name."""
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""
