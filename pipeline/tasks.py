"""Runs one function over many items, on Ray or on the processors of this machine.

A task that fails or kills its process costs its own item only. Results come as they finish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from pipeline.recipe import RaySettings
from schemas.errors import RowFailed

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class TaskResult(Generic[T, R]):
    """What became of an item: the function's value, or the problem (`crash`, or its RowFailed)."""

    item: T
    value: R | None = None
    problem: RowFailed | None = None


def map_tasks(
    function: Callable[[T], R],
    items: Sequence[T],
    *,
    engine: Literal["ray", "local"],
    cpus: float = 1.0,
    ray: RaySettings | None = None,
) -> Iterator[TaskResult[T, R]]:
    """`function` of every item, as they finish; function and items are pickled.

    A ClipmillError in a task ends all (the disk is full, say) and is raised here; any other
    exception, and a process that died on the same item again and again, is that item's problem.
    """
    raise NotImplementedError
