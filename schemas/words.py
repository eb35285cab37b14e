"""How messages, pages and data cards format numbers and name what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a mistyped one is closest to; None if none is close."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def did_you_mean(word: str, known: Iterable[str], shown: Callable[[str], str] = str) -> str:
    """`did you mean aesthetic? `, to go before other words; nothing if no known word is close."""
    found = nearest(word, known)
    return f"did you mean {shown(found)}? " if found is not None else ""


def near_or_known(word: str, known: Collection[str]) -> str:
    """`did you mean cpu_hours? known: hours, cpu_hours`."""
    if not known:
        return "there are none"
    return f"{did_you_mean(word, known)}known: {', '.join(known)}"


def counted(number: int, word: str) -> str:
    """`1 clip`, `2,114 clips`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def plain_size(size: float) -> str:
    """`12 bytes`, `3.5 MB`: bytes, in units of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def plain_hours(hours: float) -> str:
    """`14 s`, `6 min`, `1,312.5 hours`: a duration, which tables store in hours."""
    return plain_time(hours * 3600)


def plain_time(seconds: float) -> str:
    """`0.4 s`, `45 s`, `12 min`, `3.5 hours`."""
    if seconds < 120:
        return f"{seconds:.1g} s" if 0 < seconds < 1 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} hours"
