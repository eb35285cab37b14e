"""A run's budget: what it may spend, and when it is spent.

Amounts are counted as shards are committed. Workers then finish the shards that they are at, so a
run spends somewhat more than its budget.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipmill.pipeline.costs.words import plain_amount, plain_money
from clipmill.pipeline.engine.gated_run import RunPhase
from clipmill.pipeline.engine.thresholds import Phase
from clipmill.pipeline.recipes.plan import Plan, ShardList
from clipmill.pipeline.recipes.prices import Prices
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.words import counted, near_or_known

# What may be limited: the counted amount, and how much of it one unit is.
UNITS = {
    "hours": ("seconds", 3600.0),
    "minutes": ("seconds", 60.0),
    "cpu_hours": ("cpu_seconds", 3600.0),
    "gpu_hours": ("gpu_seconds", 3600.0),
    "requests": ("requests", 1.0),
    "tokens": ("tokens", 1.0),
    "million_tokens": ("tokens", 1e6),
    "gigabytes": ("bytes", 1e9),
}
_AMOUNT = re.compile(r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?|\.[0-9]+)\s*([^\s0-9].*?)\s*\Z")
_EXAMPLE = "20 cpu_hours"


@dataclass(frozen=True)
class Limit:
    """One limit: `unit` is one of UNITS, or a currency if it is of money."""

    amount: float
    unit: str
    is_money: bool

    def __str__(self) -> str:
        return f"{self.amount:g} {self.unit}"


@dataclass
class Budget:
    """Counts what a run spends; usable from any thread."""

    limits: Sequence[Limit]
    prices: Prices | None = None
    _spent: Counter[Any] = field(default_factory=Counter)
    _began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Starts the clock: time before the first worker starts does not count."""
        self._began = time.monotonic()

    def add(self, counts: Counter[Any]) -> bool:
        """Counts what a worker reports; True if that spends the budget."""
        with self._lock:
            self._spent.update({name: n for name, n in counts.items() if isinstance(name, str)})
        return self.spent() is not None

    def spent(self) -> str | None:
        """Which limit is reached, in words; None if none is."""
        with self._lock:
            for limit in self.limits:
                if (spent := self._of(limit)) >= limit.amount:
                    shown = (
                        plain_money(spent, limit.unit)
                        if limit.is_money
                        else f"{plain_amount(spent)} {limit.unit}"
                    )
                    return f"{limit} (spent: {shown})"
        return None

    def _of(self, limit: Limit) -> float:
        if limit.is_money:
            assert self.prices is not None  # checked when the budget was read
            return float(self.prices.of(self._spent))
        name, unit = UNITS[limit.unit]
        spent = self._spent
        amount = {
            "seconds": time.monotonic() - self._began,
            "tokens": spent["tokens_in"] + spent["tokens_out"],
            "bytes": spent["downloaded_bytes"] + spent["written_bytes"],
        }.get(name, spent[name])
        return float(amount / unit)


def read_budget(given: Sequence[str], prices: Prices | None) -> Budget | None:
    """The budget for texts such as `20 cpu_hours` or `50 USD`; None if there are none."""
    return Budget([_limit(text, prices) for text in given], prices) if given else None


def _limit(text: str, prices: Prices | None) -> Limit:
    match = _AMOUNT.match(text)
    if match is None:
        raise UsageError(
            f'--budget {text!r}: expected an amount and a unit, such as "{_EXAMPLE}" or "50 USD"'
        )
    amount, unit = float(re.sub("[_,]", "", match[1])), match[2]
    if not amount or not math.isfinite(amount):
        raise UsageError(f"--budget {text!r}: the amount must be more than 0")
    word = unit if unit in UNITS else f"{unit}s"
    if word in UNITS:
        return Limit(amount, word, False)
    currency = prices.currency if prices is not None else None
    if unit == currency:
        if prices is None or not prices.has_any:
            raise UsageError(
                f"--budget {text!r}: the recipe's `prices` give nothing but a currency; add e.g. "
                "--set prices.cpu_hour=0.04"
            )
        return Limit(amount, unit, True)
    if currency is None and unit.isalpha() and len(unit) == 3 and unit.isupper():
        raise UsageError(
            f"--budget {text!r}: a budget of money needs prices; add them to the recipe "
            f"(`prices: {{cpu_hour: 0.04}}`) or with --set prices.cpu_hour=0.04"
            + ("" if unit == "USD" else f" --set prices.currency={unit}")
        )
    known = [*UNITS, *([currency] if currency else [])]
    raise UsageError(f"--budget {text!r}: unknown unit {unit!r}; {near_or_known(unit, known)}")


class BudgetSpent(ClipmillError):
    """The run's budget is spent: it could not be completed, and what it has done is committed."""


def ended_by(budget: Budget, run_phase: RunPhase, left: Callable[[], int]) -> RunPhase:
    """`run_phase`, after which a spent budget ends the run if shards of steps are `left`."""

    def run(plan: Plan, steps: Phase, shards: ShardList) -> None:
        run_phase(plan, steps, shards)
        if (spent := budget.spent()) is not None and (count := left()):
            raise BudgetSpent(
                f"the budget is spent: {spent}; {counted(count, 'shard')} of steps left. All "
                "results so far are committed: run again, with a new --budget, to continue"
            )

    return run
