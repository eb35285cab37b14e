"""Counts what this process uses beside its own processor time: requests, tokens, helpers' time.

The counts only grow. Where a worker runs several calls of stages at a time, each has an account:
what its thread uses, and what is used for it elsewhere by functions that it has passed through
`for_caller`. What no account claims belongs to whatever the process is doing.
"""

from __future__ import annotations

import contextvars
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

R = TypeVar("R")

REQUESTS, TOKENS_IN, TOKENS_OUT = "requests", "tokens_in", "tokens_out"
TOLD_TOKENS = "answers that told their tokens"
HELPER_CPU_SECONDS = "helper_cpu_seconds"
STARTING_SECONDS, STARTING_CPU_SECONDS = "starting_seconds", "starting_cpu_seconds"
"""What starting helpers took, of all time and of HELPER_CPU_SECONDS."""

_lock = threading.Lock()
_used: Counter[Any] = Counter()
_unclaimed: Counter[Any] = Counter()
_account: contextvars.ContextVar[Counter[Any] | None] = contextvars.ContextVar(
    "account", default=None
)


def use(name: str, amount: float = 1) -> None:
    """Counts an amount; usable from any thread."""
    global _unclaimed
    account = _account.get()
    with _lock:
        _used[name] += amount
        if account is not None:
            account[name] += amount
        else:
            _unclaimed = Counter(_unclaimed)
            _unclaimed[name] += amount


def used() -> Counter[Any]:
    """Everything that was used since the process started."""
    with _lock:
        return Counter(_used)


def unclaimed() -> Counter[Any]:
    """What was used outside of all accounts since the process started; not to be changed."""
    return _unclaimed


def credit(account: Counter[Any], amounts: Mapping[str, float]) -> None:
    """Adds amounts that nobody claimed to an account."""
    with _lock:
        account.update(amounts)


@contextmanager
def charged_to(account: Counter[Any]) -> Iterator[None]:
    """Counts what is used inside in `account`, which only this module changes."""
    token = _account.set(account)
    try:
        yield
    finally:
        _account.reset(token)


def for_caller(function: Callable[..., R]) -> Callable[..., R]:
    """The function, for use in another thread: what it uses is charged to this one's account."""
    account = _account.get()

    def charged(*arguments: Any, **named: Any) -> R:
        if account is None:
            return function(*arguments, **named)
        with charged_to(account):
            return function(*arguments, **named)

    return charged
