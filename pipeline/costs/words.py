"""Estimates and ranges in words, for messages and tables."""

from __future__ import annotations

from collections.abc import Callable

from clipmill.pipeline.costs.bill import Bill
from clipmill.pipeline.costs.resampling import Range
from clipmill.schemas.words import counted, plain_size, plain_time

UNKNOWN = "?"


def plain_count(value: float) -> str:
    """Two to three digits that matter: `84`, `1,250`, `12,400`, `3.2 million`."""
    if value >= 1e6:
        return f"{value / 1e6:,.3g} million"
    if value >= 1000:
        digits = len(str(int(value)))
        return f"{round(value, 3 - digits):,.0f}"
    return f"{value:.0f}"


def plain_amount(value: float) -> str:
    """Three digits that matter, also below 1: `0.00021`, `20`, `1,250`."""
    return f"{value:.3g}" if value < 1000 else plain_count(value)


def plain_money(value: float, currency: str) -> str:
    amount = f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    if value and float(f"{value:.2f}") == 0:
        amount = f"{value:.1g}"
    return f"{amount} {currency}"


def shown(found: Range | None, words: Callable[[float], str]) -> str:
    """`84–97`, `about 90` if nothing says how sure that is, `?` if it is unknown."""
    if found is None:
        return UNKNOWN
    if found.low is None or found.high is None:
        return f"about {words(found.value)}" if found.value else words(0)
    low, high = words(found.low), words(found.high)
    if low == high:
        return low
    unit = low.rpartition(" ")[2]
    if not unit[-1:].isdigit() and high.rpartition(" ")[2] == unit:
        low = low.rpartition(" ")[0]
    return f"{low}–{high}"


def totals_in_words(found: Bill) -> list[str]:
    """`2.1–2.9 hours`, `3–4 h of CPU time` and so on; only what is not nothing."""
    parts = []
    if found.wall_seconds is not None:
        parts.append(shown(found.wall_seconds, plain_time))
    for name, words, what in (
        ("cpu_seconds", plain_time, " of CPU time"),
        ("gpu_seconds", plain_time, " of GPU time"),
        ("requests", plain_count, " requests"),
        ("tokens_in", plain_count, " tokens sent"),
        ("tokens_out", plain_count, " tokens generated"),
        ("downloaded_bytes", plain_size, " downloaded"),
        ("written_bytes", plain_size, " of tables"),
    ):
        amount = found.amounts.get(name)
        if amount is not None and amount.value:
            parts.append(f"{shown(amount, words)}{what}")
    if found.money is not None and found.currency is not None:
        currency = found.currency
        parts.append(shown(found.money, lambda value: plain_money(value, currency)))
    return parts


def describe_briefly(found: Bill) -> str | None:
    """The estimate in a line; None if nothing of what is to be done was ever measured."""
    parts = totals_in_words(found)
    if not found.has_work or not any(stage.measured_on for stage in found.stages if stage.shards):
        return None
    if not parts:
        return None
    said = f"Estimate (90% ranges): {', '.join(parts)}."
    if found.unknown:
        said += f" Not measured yet, and not included: {', '.join(found.unknown)}."
    return said


def describe_rest(found: Bill) -> str:
    """What is left after a sample."""
    if not found.has_work:
        return "The sample was everything: nothing is left to do."
    rows = [
        f"{stage.stage} {shown(stage.passed, plain_count)}"
        for stage in found.stages
        if stage.shards or stage.rows
    ]
    said = (
        f"The rest, judging from this sample: {counted(found.sources, 'source')}; rows: "
        f"{', '.join(rows)}."
    )
    if parts := totals_in_words(found):
        said += f" It takes {', '.join(parts)} (90% ranges; more with --dry-run)."
    return said
