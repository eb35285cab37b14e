"""Applies a function to a stream of items in threads, and gives the results in order."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from clipmill.schemas.processors import usable_cpus

T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def in_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[Iterator[R]]:
    """The results, of which only a few are ahead of the one that is being used."""
    threads = usable_cpus()
    waiting: deque[Future[R]] = deque()

    def results() -> Iterator[R]:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    with ThreadPoolExecutor(threads) as pool:
        try:
            yield results()
        finally:
            for future in waiting:
                future.cancel()
