"""Counts what this process uses beside its own processor time: requests, tokens, helpers' time.

The counts only grow. Where a worker runs several calls of stages at a time, each has an account:
what its thread uses, and threads that run in a copy of its context (`contextvars.copy_context`).
What no account claims belongs to whatever the process is doing.
"""

from __future__ import annotations

import contextvars
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Account = defaultdict[str, float]
"""Amounts by name; a name that was not used has 0."""

REQUESTS, TOKENS_IN, TOKENS_OUT = "requests", "tokens_in", "tokens_out"
TOLD_TOKENS = "answers that told their tokens"
HELPER_CPU_SECONDS = "helper_cpu_seconds"
STARTING_SECONDS, STARTING_CPU_SECONDS = "starting_seconds", "starting_cpu_seconds"
"""What starting helpers took, of all time and of HELPER_CPU_SECONDS."""

_lock = threading.Lock()
_used: Account = defaultdict(float)
_unclaimed: Account = defaultdict(float)
_account: contextvars.ContextVar[Account | None] = contextvars.ContextVar("account", default=None)


def use(name: str, amount: float = 1) -> None:
    """Counts an amount; usable from any thread."""
    global _unclaimed
    account = _account.get()
    with _lock:
        _used[name] += amount
        if account is not None:
            account[name] += amount
        else:
            _unclaimed = _unclaimed.copy()  # readers keep the one that they have
            _unclaimed[name] += amount


def used() -> Counter[Any]:
    """Everything that was used since the process started."""
    with _lock:
        return Counter(_used)


def unclaimed() -> Mapping[str, float]:
    """What was used outside of all accounts since the process started."""
    return _unclaimed


def credit(account: Account, amounts: Mapping[str, float]) -> None:
    """Adds amounts that nobody claimed to an account."""
    with _lock:
        for name, amount in amounts.items():
            account[name] += amount


@contextmanager
def charged_to(account: Account) -> Iterator[None]:
    """Counts what is used inside in `account`, which only this module changes."""
    token = _account.set(account)
    try:
        yield
    finally:
        _account.reset(token)
