"""Formats numbers for the page."""

from __future__ import annotations

import math
from typing import Any


def number(value: Any) -> str:
    """A value with about three significant digits; whole numbers with separators."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}"
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = abs(value)
    if size < 0.0005:
        return f"{value:.1e}"
    places = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(part: float, whole: float) -> str:
    """A share in whole per cent, more precise if it is small."""
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1%"
    if 99.9 <= share < 100:
        return "> 99.9%"
    return f"{share:.1f}%".replace(".0%", "%") if share < 10 or share > 99 else f"{share:.0f}%"


def size(count: int | None) -> str:
    """Bytes in units of 1000."""
    if count is None:
        return "–"
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if value < 1000 or unit == "PB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def hours(seconds: float) -> str:
    """Hours, or minutes if there are few."""
    if seconds < 36_000:
        if seconds < 3600:
            return f"{seconds / 60:.1f} min"
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 3600:,.0f} h"


def tick(value: float, step: float) -> str:
    """A label on an axis whose ticks are `step` apart."""
    if step >= 1 and value == round(value):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.0f}"
    if step <= 0:
        step = 1e-6  # the values differ by rounding errors at most
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    while places < 6 and round(step, places) != round(step, 9):
        places += 1
    return f"{value:.{places}f}"
