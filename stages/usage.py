"""Counts what this process uses beside its own processor time: requests, tokens, helpers' time.

The counts only grow. One worker runs one step at a time, so what a step used is the difference of
two counts, whichever threads did the counting.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

REQUESTS, TOKENS_IN, TOKENS_OUT = "requests", "tokens_in", "tokens_out"
TOLD_TOKENS = "answers that told their tokens"
HELPER_CPU_SECONDS = "helper_cpu_seconds"
STARTING_SECONDS, STARTING_CPU_SECONDS = "starting_seconds", "starting_cpu_seconds"
"""What starting helpers took, of all time and of HELPER_CPU_SECONDS."""

_lock = threading.Lock()
_used: dict[str, float] = {}


def use(name: str, amount: float = 1) -> None:
    """Counts an amount; usable from any thread."""
    with _lock:
        _used[name] = _used.get(name, 0) + amount


def used() -> Counter[Any]:
    """Everything that was used since the process started."""
    with _lock:
        return Counter(_used)
