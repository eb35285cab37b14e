"""How messages, pages and data cards speak of numbers."""

from __future__ import annotations


def counted(number: int, word: str) -> str:
    """`1 clip`, `2,114 clips`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def plain_hours(hours: float) -> str:
    """`0.10 hours`, `1,312.50 hours`."""
    return f"{hours:,.2f} hours"


def plain_time(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 hours`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
