"""Distributions, counted by DuckDB from the tables of `selection`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import duckdb

from clipmill.jobs.report.internvid_figures import Share
from clipmill.jobs.report.report_tables import ReportTables

BINS = 30
_STEPS = (1, 2, 2.5, 5, 10)
SHOWN_VALUES = 11


@dataclass(frozen=True)
class Bin:
    """Values in `[low, high)`; None is unbounded."""

    low: float | None
    high: float | None
    count: int
    whole: int
    """The same count for the whole catalog."""


@dataclass(frozen=True)
class Bar:
    """One value, or one interval, of a distribution."""

    label: str
    count: int
    whole: int = 0
    published: float | None = None
    """InternVid's share, per cent."""
    more_than: bool = False


@dataclass(frozen=True)
class Distribution:
    """The distribution of a number: bins of equal width, and its statistics.

    `values` counts the clips or videos that have a value, `missing` those that don't, `whole`
    those of the catalog that do.
    """

    values: int
    missing: int
    whole: int
    mean: float | None = None
    quantiles: dict[str, float] = field(default_factory=dict)
    bins: list[Bin] = field(default_factory=list)
    whole_numbers: bool = False


@dataclass(frozen=True)
class Values:
    """The distribution of a text or interval: the count of each. `missing` have none."""

    bars: list[Bar]
    total: int
    whole: int
    missing: int = 0
    distinct: int | None = None


_QUANTILES = {
    "min": 0.0,
    "low": 0.005,
    "p05": 0.05,
    "median": 0.5,
    "p95": 0.95,
    "high": 0.995,
    "max": 1.0,
}


def distribution(
    connection: duckdb.DuckDBPyConnection,
    selection: ReportTables,
    table: str,
    column: str,
    *,
    whole_numbers: bool = False,
) -> Distribution:
    """Counts one number's values; bins are the same for the subset and the catalog."""
    shares = list(_QUANTILES.values())
    chosen = selection.chosen
    rows, values, mean, quantiles, all_values, everything = connection.execute(
        f"SELECT count(*) FILTER ({chosen}), count({column}) FILTER ({chosen}), "
        f"avg({column}) FILTER ({chosen}), "
        f"quantile_disc({column}::DOUBLE, {shares}) FILTER ({chosen}), "
        f"count({column}), quantile_disc({column}::DOUBLE, {shares}) FROM {table}"
    ).fetchall()[0]
    if not all_values:
        return Distribution(0, rows, 0)
    spread = dict(zip(_QUANTILES, everything, strict=True))
    found = dict(zip(_QUANTILES, quantiles, strict=True)) if quantiles else {}
    width, first, last = _edges(spread, whole_numbers)
    # A quotient may be just below its edge: 0.3 belongs to the bin that begins at 0.3, and so does
    # the nearest float to 0.3, as in SQL's `score >= 0.3`.
    stored = connection.execute(f"SELECT {column} FROM {table} LIMIT 0").description[0][1]
    kind = "FLOAT" if str(stored) == "FLOAT" else "DOUBLE"
    size = repr(float(width))
    place = f"floor(round({column}::DOUBLE / {size}, 9))"
    exact = f"({place} + ({column}::{kind} >= (({place} + 1) * {size})::{kind})::INTEGER)::BIGINT"
    counted = connection.execute(
        f"SELECT greatest({first - 1}, least({last}, {exact})) AS bin, "
        f"count(*) FILTER ({chosen}), count(*) FROM {table} WHERE {column} IS NOT NULL GROUP BY bin"
    ).fetchall()
    counts = {number: (count, whole) for number, count, whole in counted}
    bins = []
    for number in range(first - 1, last + 1):
        outside = number in (first - 1, last)
        if outside and number not in counts:
            continue
        count, whole = counts.get(number, (0, 0))
        bins.append(
            Bin(
                float(number * width) if number >= first else None,
                float((number + 1) * width) if number < last else None,
                count,
                whole,
            )
        )
    return Distribution(values, rows - values, all_values, mean, found, bins, whole_numbers)


def _edges(spread: dict[str, float], whole_numbers: bool) -> tuple[Decimal, int, int]:
    """Width of a bin, and first and last edge in widths: a round width, about BINS of them.

    At most half a per cent on either side is left outside, if it would stretch the axis.
    """
    low, high = spread["low"], spread["high"]
    for end, within in (("min", "low"), ("max", "high")):
        if abs(spread[end] - spread[within]) <= 0.25 * (high - low):
            low, high = min(low, spread[end]), max(high, spread[end])
    span = high - low
    if not span:  # a single value: a bar with some space on either side
        span = 2.0 if whole_numbers else abs(high) / 10 or 1.0
        # Nothing that is measured from 0 on shows negative values.
        low, high = max(low - span / 2, min(low, 0.0)), high + span / 2
    if whole_numbers and span < BINS:
        width = Decimal(1)
    else:
        power = Decimal(10) ** math.floor(math.log10(span / BINS))
        width = next(
            Decimal(str(step)) * power
            for step in _STEPS
            if span / float(Decimal(str(step)) * power) <= BINS * 1.1
        )
        if whole_numbers:
            width = Decimal(math.ceil(width))
    first = math.floor(round(low / float(width), 9))
    last = math.floor(round(high / float(width), 9)) + 1
    return width, first, last


def shares(
    connection: duckdb.DuckDBPyConnection,
    selection: ReportTables,
    table: str,
    column: str,
    intervals: Sequence[Share],
) -> Values:
    """Counts of values in the given intervals; `published` are InternVid's shares."""
    parts = []
    for interval in intervals:
        condition = _condition(column, interval)
        parts += [
            f"count(*) FILTER ({condition} AND {selection.chosen})",
            f"count(*) FILTER ({condition})",
        ]
    total, whole, rows, *counts = connection.execute(
        f"SELECT count({column}) FILTER ({selection.chosen}), count({column}), "
        f"count(*) FILTER ({selection.chosen}), {', '.join(parts)} FROM {table}"
    ).fetchall()[0]
    bars = [
        Bar(interval.label, counts[2 * n], counts[2 * n + 1], interval.percent, interval.above)
        for n, interval in enumerate(intervals)
    ]
    return Values(bars, total, whole, rows - total)


def _condition(column: str, interval: Share) -> str:
    parts = [f"{column} IS NOT NULL"]
    if interval.low is not None:
        parts.append(f"{column} {'>' if interval.opened else '>='} {interval.low}")
    if interval.high is not None:
        parts.append(f"{column} {'<=' if interval.closed else '<'} {interval.high}")
    return " AND ".join(parts)


def texts(
    connection: duckdb.DuckDBPyConnection, selection: ReportTables, table: str, column: str
) -> Values:
    """The most common values of a text, the rest under "other"."""
    chosen = selection.chosen
    rows = connection.execute(
        f"SELECT {column}, count(*) FILTER ({chosen}) AS n, count(*) AS every FROM {table} "
        f"WHERE {column} IS NOT NULL AND {column} <> '' GROUP BY ALL "
        f"ORDER BY n DESC, every DESC, {column} LIMIT {SHOWN_VALUES}"
    ).fetchall()
    total, whole, everything, distinct = connection.execute(
        f"SELECT count(*) FILTER ({chosen} AND {column} <> ''), count(*) FILTER ({column} <> ''), "
        f"count(*) FILTER ({chosen}), count(DISTINCT nullif({column}, '')) FILTER ({chosen}) "
        f"FROM {table}"
    ).fetchall()[0]
    bars = [Bar(name, count, every) for name, count, every in rows if count or every]
    shown, shown_whole = sum(bar.count for bar in bars), sum(bar.whole for bar in bars)
    if shown_whole < whole:
        bars.append(Bar("other", total - shown, whole - shown_whole))
    return Values(bars, total, whole, everything - total, distinct)


def switches(
    connection: duckdb.DuckDBPyConnection, selection: ReportTables, table: str, column: str
) -> Values:
    """True and false counts of a boolean column."""
    chosen = selection.chosen
    yes, all_yes, no, all_no, rows = connection.execute(
        f"SELECT count(*) FILTER ({column} AND {chosen}), count(*) FILTER ({column}), "
        f"count(*) FILTER (NOT {column} AND {chosen}), count(*) FILTER (NOT {column}), "
        f"count(*) FILTER ({chosen}) FROM {table}"
    ).fetchall()[0]
    return Values(
        [Bar("true", yes, all_yes), Bar("false", no, all_no)],
        yes + no,
        all_yes + all_no,
        rows - yes - no,
    )
