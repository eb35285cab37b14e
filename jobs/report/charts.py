"""Geometry of the charts: turns numbers into positions in a drawing of WIDTH units.

The templates draw what is computed here, so that all text is escaped in one place. Drawings are as
wide as a phone's screen, so that text is never scaled down to an unreadable size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from clipmill.jobs.report.figures import Bar, Bin, Distribution, Values
from clipmill.jobs.report.lettering import fitted, middle_within, text_width
from clipmill.jobs.report.numbers import percent, tick

WIDTH = 360
HEIGHT = 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 16, 18, 34
_ROW = 22
_LABEL = 124
_VALUE = 56
_LABEL_GAP = 7


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str
    text_at: float
    """The middle of its text, inside the drawing."""


@dataclass(frozen=True)
class Box:
    """A bar with its description."""

    x: float
    y: float
    width: float
    height: float
    says: str
    outside: bool = False


@dataclass(frozen=True)
class Line:
    """A vertical line at a threshold."""

    x: float
    text: str
    anchor: str


@dataclass(frozen=True)
class Histogram:
    """A drawing of a distribution."""

    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_label: str
    y_label: str
    bars: list[Box]
    outline: str
    """Points of a line over the bars, for the whole catalog."""
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One row of a bar chart."""

    y: float
    label: str
    width: float
    text: str
    whole: float | None
    published: float | None
    published_text: str
    says: str


@dataclass(frozen=True)
class BarRows:
    """A drawing of a few named bars."""

    width: int
    height: int
    left: float
    rows: list[Row]


def histogram(
    found: Distribution,
    *,
    x_label: str,
    noun: str,
    with_catalog: bool,
    thresholds: list[tuple[str, float]] | None = None,
) -> Histogram | None:
    """None if there are no values."""
    if not found.whole or not found.bins:
        return None
    inner = [
        (one.low, one.high) for one in found.bins if one.low is not None and one.high is not None
    ]
    first, last = inner[0][0], inner[-1][1]
    step = inner[0][1] - first
    low = first - (step if found.bins[0].low is None else 0)
    high = last + (step if found.bins[-1].high is None else 0)
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    plot_width, plot_height = right - _LEFT, bottom - _TOP

    def x(value: float) -> float:
        return round(_LEFT + plot_width * (value - low) / (high - low), 2)

    tops = [_share(one.count, found.values) for one in found.bins]
    if with_catalog:
        tops += [_share(one.whole, found.whole) for one in found.bins]
    y_step = _round_step(max(tops) or 1, 4)
    y_top = math.ceil(max(tops) / y_step - 1e-9) * y_step or y_step

    def y(share: float) -> float:
        return round(bottom - plot_height * share / y_top, 2)

    bars, points = [], [f"{_LEFT},{bottom}"]
    for one in found.bins:
        start = one.low if one.low is not None else first - step
        end = one.high if one.high is not None else last + step
        share = _share(one.count, found.values)
        left, width = x(start), x(end) - x(start)
        gap = min(1.0, width / 4)
        says = f"{interval(one, step, found.whole_numbers)}: {one.count:,} {noun}"
        bars.append(
            Box(
                round(left + gap / 2, 2),
                y(share),
                round(width - gap, 2),
                round(bottom - y(share), 2),
                f"{says} ({percent(one.count, found.values)})",
                one.low is None or one.high is None,
            )
        )
        top = y(_share(one.whole, found.whole))
        points += [f"{left},{top}", f"{x(end)},{top}"]
    points.append(f"{right},{bottom}")
    x_step = _round_step(high - low, 6)
    # A bar for a single whole number is centred on it.
    middle = 0.5 if found.whole_numbers and step == 1 else 0.0
    if middle:
        x_step = math.ceil(x_step)
    first = math.ceil(low / x_step - 1e-9)
    x_ticks = [
        _x_tick(x(n * x_step + middle), tick(n * x_step, x_step))
        for n in range(first, math.floor((high - middle) / x_step + 1e-9) + 1)
    ]
    y_ticks = [
        Tick(y(n * y_step), tick(n * y_step, y_step), y(n * y_step))
        for n in range(round(y_top / y_step) + 1)
    ]
    lines = []
    for text, value in thresholds or ():
        if low <= value <= high:
            at, beside = x(value), 4
            before, behind = at - beside, WIDTH - at - beside
            anchor = "start" if text_width(text) <= behind or behind >= before else "end"
            room = behind if anchor == "start" else before
            lines.append(Line(at, fitted(text, room), anchor))
    return Histogram(
        WIDTH,
        HEIGHT,
        _LEFT,
        right,
        _TOP,
        bottom,
        fitted(x_label, right),
        f"% of {noun}",
        bars,
        " ".join(points) if with_catalog else "",
        x_ticks,
        y_ticks,
        lines,
    )


def rows(values: Values, *, noun: str, with_catalog: bool) -> BarRows | None:
    """Horizontal bars proportional to shares; None if all counts are zero."""
    if not values.whole or not values.bars:
        return None
    published = any(bar.published is not None for bar in values.bars)
    height = 30 if published else _ROW
    room = WIDTH - _LABEL - _VALUE
    longest = max(_longest(bar, values, with_catalog) for bar in values.bars) or 1

    def length(share: float) -> float:
        return round(room * share / longest, 2)

    drawn = []
    for number, bar in enumerate(values.bars):
        share = _share(bar.count, values.total)
        drawn.append(
            Row(
                y=number * height,
                label=fitted(bar.label, _LABEL - _LABEL_GAP),
                width=length(share),
                text=percent(bar.count, values.total),
                whole=length(_share(bar.whole, values.whole)) if with_catalog else None,
                published=None if bar.published is None else length(bar.published),
                published_text=published_text(bar),
                says=f"{bar.label}: {bar.count:,} {noun} ({percent(bar.count, values.total)})",
            )
        )
    return BarRows(WIDTH, len(drawn) * height + 2, _LABEL, drawn)


def counted_rows(pairs: list[tuple[str, int]], noun: str) -> BarRows | None:
    """Horizontal bars of counts, for words and verbs."""
    if not pairs:
        return None
    most = max(count for _, count in pairs)
    room = WIDTH - _LABEL - 12 - text_width(f"{most:,}")
    drawn = [
        Row(
            number * _ROW,
            fitted(word, _LABEL - _LABEL_GAP),
            round(room * count / most, 2),
            f"{count:,}",
            None,
            None,
            "",
            f"{word}: {count:,} {noun}",
        )
        for number, (word, count) in enumerate(pairs)
    ]
    return BarRows(WIDTH, len(drawn) * _ROW + 2, _LABEL, drawn)


def published_text(bar: Bar) -> str:
    if bar.published is None:
        return ""
    return f"{'> ' if bar.more_than else ''}{bar.published:.0f}%"


def interval(one: Bin, step: float, whole_numbers: bool = False) -> str:
    """A bin as text; it includes its lower end, not its upper end."""
    if one.low is None:
        return f"under {tick(one.high or 0, step)}"
    if one.high is None:
        return f"{tick(one.low, step)} or more"
    if whole_numbers:
        last = one.high - 1
        return tick(one.low, 1) if last <= one.low else f"{tick(one.low, 1)} to {tick(last, 1)}"
    return f"{tick(one.low, step)} to {tick(one.high, step)}"


def _longest(bar: Bar, values: Values, with_catalog: bool) -> float:
    whole = _share(bar.whole, values.whole) if with_catalog else 0
    return max(_share(bar.count, values.total), whole, bar.published or 0)


def _share(count: int, of: int) -> float:
    return 100 * count / of if of else 0.0


def _round_step(span: float, parts: int) -> float:
    """A round number that divides `span` into about `parts` parts."""
    power: float = 10 ** math.floor(math.log10(span / parts))
    return next(step * power for step in (1, 2, 5, 10) if span / (step * power) <= parts)


def _x_tick(at: float, text: str) -> Tick:
    return Tick(at, text, middle_within(at, text, WIDTH))
