"""The result of one task's item, in the same form on every engine."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.stages.media.isolation.terminal import leave_terminal

T = TypeVar("T")
R = TypeVar("R")

MAX_DEATHS = 2
"""An item whose process has died this often is given up: its problem is `crash`."""


@dataclass(frozen=True)
class TaskResult(Generic[T, R]):
    """The outcome of an item: the function's value, or the problem (`crash`, or its RowFailed)."""

    item: T
    value: R | None = None
    problem: RowFailed | None = None


def attempt(function: Callable[[T], R], item: T) -> tuple[R | None, RowFailed | None]:
    """The function's value or the item's problem; only a ClipmillError is raised."""
    try:
        return function(item), None
    except ClipmillError:
        raise
    except RowFailed as problem:
        return None, problem
    except Exception as error:  # noqa: BLE001  whatever it is, it is this item's
        return None, RowFailed("crash", f"{type(error).__name__}: {error}")


def attempt_in_a_worker(pickled: bytes, item: Any) -> tuple[Any, RowFailed | None]:
    """Like `attempt`, in a process that may have been started from a terminal.

    The function is pickled: unpickling it imports its module, which may start programs.
    """
    leave_terminal()
    return attempt(pickle.loads(pickled), item)


def died(how: str) -> RowFailed:
    """The problem of an item that crashes its process."""
    return RowFailed("crash", f"its process died {MAX_DEATHS} times, last {how}")
