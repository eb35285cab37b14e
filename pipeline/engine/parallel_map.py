"""Runs one function over many items, on Ray or on this machine's CPUs.

A task that fails or kills its process affects only its own item. Results arrive as they finish.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, TypeVar

from clipmill.pipeline.engine.task_results import MAX_DEATHS, TaskResult, attempt, died
from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.schemas.processors import usable_cpus
from clipmill.stages.media.isolation.terminal import leave_terminal, null_input

T = TypeVar("T")
R = TypeVar("R")


def map_tasks(
    function: Callable[[T], R], items: Sequence[T], *, engine: Literal["ray", "local"]
) -> Generator[TaskResult[T, R], None, None]:
    """Applies `function` to every item, yielding results as they finish; function and items are
    pickled.

    A task needs one CPU. A ClipmillError in a task (a full disk, say) ends everything and is
    raised here; any other exception is that item's problem, and so is a process that died on it
    twice. Leaving the iteration, also by Ctrl-C, ends what is still running.
    """
    if not items:
        return
    if engine == "ray":
        from clipmill.pipeline.engine.on_ray import map_on_ray

        yield from map_on_ray(function, items)
        return
    workers = min(len(items), usable_cpus())
    if workers == 1:
        for item in items:
            with null_input():
                value, problem = attempt(function, item)
            yield TaskResult(item, value, problem)
    else:
        yield from _in_processes(function, items, workers)


class _Process:
    """A process that handles one item at a time, so that the item it died on is known."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        # Spawned: a forked process would share open files and threads' locks with this one.
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, other), daemon=True)
        with null_input():  # before the pickled function is read, which imports its module
            self.process.start()
        other.close()
        self.doing: tuple[int, Any] | None = None

    def begin(self, number: int, item: Any) -> None:
        self.doing = (number, item)
        # A process that already died is detected while waiting for its answer.
        with contextlib.suppress(OSError):
            self.connection.send(item)

    def receive(self) -> tuple[Any, RowFailed | None]:
        """The answer; EOFError if the process is dead."""
        try:
            kind, *answer = self.connection.recv()
        except (OSError, pickle.UnpicklingError) as error:
            raise EOFError from error
        if kind == "ends":
            raise answer[0]
        return tuple(answer)

    def end(self) -> str:
        """Ends the process and says how it ended."""
        self.process.terminate()
        self.process.join(timeout=2)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
        code = self.process.exitcode or 0
        return f"by signal {-code}" if code < 0 else f"with exit status {code}"


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    leave_terminal()
    # Ctrl-C reaches all processes of a terminal; the parent decides when this one ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[Any, ...] = ("done", *attempt(function, item))
        except ClipmillError as error:
            answer = ("ends", error)
        try:
            connection.send(answer)
        except (OSError, BrokenPipeError):
            return
        except Exception as error:  # noqa: BLE001  a value that can't be pickled, say
            problem = RowFailed("crash", f"its result can't be sent: {error}")
            connection.send(("done", None, problem))


def _in_processes(
    function: Callable[[T], R], items: Sequence[T], workers: int
) -> Iterator[TaskResult[T, R]]:
    todo = deque(enumerate(items))
    deaths: dict[int, int] = {}
    processes: list[_Process] = []
    try:
        while todo or processes:
            while todo and len(processes) < workers:
                process = _Process(function)
                processes.append(process)
                process.begin(*todo.popleft())
            ready = wait([process.connection for process in processes])
            for process in [p for p in processes if p.connection in ready]:
                assert process.doing is not None
                number, item = process.doing
                try:
                    value, problem = process.receive()
                except EOFError:
                    processes.remove(process)
                    process.process.join(timeout=2)
                    how = process.end()
                    deaths[number] = deaths.get(number, 0) + 1
                    if deaths[number] >= MAX_DEATHS:
                        yield TaskResult(item, problem=died(how))
                    else:
                        todo.append((number, item))
                    continue
                if todo:
                    process.begin(*todo.popleft())
                else:
                    processes.remove(process)
                    process.end()
                yield TaskResult(item, value, problem)
    finally:
        for process in processes:
            process.end()
