"""How messages, pages and data cards speak of numbers."""

from __future__ import annotations


def counted(number: int, word: str) -> str:
    """`1 clip`, `2,114 clips`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def plain_hours(hours: float) -> str:
    """`0.10 hours`, `1,312.50 hours`."""
    return f"{hours:,.2f} hours"
