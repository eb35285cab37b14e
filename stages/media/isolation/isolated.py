"""Runs what may crash, hang or exhaust its memory in a separate process.

Decoders are written for well-formed files. Whatever a broken file does to them costs this file
only: the process is killed at its limits, and the result is one failure of kind `crash`. yt-dlp
runs in such processes, too: they can be ended at a limit, with the programs that it has started.

A helper process is started when none is idle, is reused for the next call, and ends with the
process that started it. It imports decoders, or yt-dlp, and nothing heavy: no torch, no Ray, no
database.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.schemas.processors import usable_cpus
from clipmill.stages.media.isolation.helper_processes import (
    START_SECONDS,
    Died,
    Helper,
    IdleHelpers,
)
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.usage import HELPER_CPU_SECONDS, STARTING_CPU_SECONDS, STARTING_SECONDS, use

STALL_SECONDS = 300.0
TIME_LIMIT_SECONDS = 6 * 3600.0
MEMORY_LIMIT_BYTES = 4 << 30
LEAST_MEMORY_BYTES = 256 << 20
"""The decoders' libraries alone need this much."""

_STARTS = 3  # what kills one (such as lack of memory) need not kill the next
_MOST_IDLE = max(4, usable_cpus() + 2)
"""A worker with all CPUs reads as many files at a time, and probes others meanwhile."""
_MOST_IDLE_FETCHERS = 64
_DECODERS_IMPORTS = ("clipmill.stages.media.read.probe", "clipmill.stages.media.read.scan")

Part = TypeVar("Part")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Limits:
    """Limits for one file: time without progress, total time, the helper's memory.

    A packet, a frame or a part of the result is progress. Memory is what RLIMIT_DATA counts.
    `settings_of` is the stage whose settings they are, for messages.
    """

    stall_seconds: float = STALL_SECONDS
    time_limit_seconds: float = TIME_LIMIT_SECONDS
    memory_limit_bytes: int = MEMORY_LIMIT_BYTES
    settings_of: str | None = None


class Task:
    """What some helpers are for, in the words of messages, and those that have nothing to do."""

    def __init__(
        self, process: str, crashes: str, verb: str, done: str, advice: str, most_idle: int
    ) -> None:
        self.process = process
        self.crashes = crashes
        self.verb = verb
        self.done = done
        self.advice = advice
        self.idle = IdleHelpers(process, most_idle)


def _answers_nothing(question: str, args: tuple[Any, ...]) -> Any:
    raise RuntimeError(f"nobody answers {question!r} here")


def run_isolated(
    function: Callable[..., Value], path: Path, /, *args: Any, limits: Limits
) -> Value:
    """Runs `function(path, *args)` in a helper process; returns its value, raises its exceptions.

    The function must be importable, so not from a test's or script's `__main__`; it, the arguments
    and the value are pickled. It calls `progress.beat` as it makes progress. `path` is the file
    that it reads. If the helper dies, the call is repeated once in a new one. If that dies, too,
    or a limit is exceeded, raises RowFailed of kind `crash`. Thread-safe.
    """
    no_parts = cast("Callable[..., Generator[Any, None, Value]]", function)
    return collect_isolated(no_parts, path, *args, limits=limits)[1]


def collect_isolated(
    function: Callable[..., Generator[Part, None, Value]],
    path: Path,
    /,
    *args: Any,
    limits: Limits,
    counted: Callable[[int], None] = lambda frames: None,
) -> tuple[list[Part], Value]:
    """Like `run_isolated` for a generator function: returns the yielded items, and its value.

    Items are sent immediately, so the helper needn't hold them. `counted` receives the number of
    frames decoded in each attempt, including failed ones.
    """
    parts: list[Part] = []

    def arguments() -> tuple[Any, ...]:
        parts.clear()  # from a failed attempt
        return args

    stream = stream_isolated(function, path, arguments, limits=limits, counted=counted)
    while True:
        try:
            parts.append(next(stream))
        except StopIteration as end:
            return parts, end.value


def stream_isolated(
    function: Callable[..., Generator[Part, None, Value]],
    path: Path,
    arguments: Callable[[], tuple[Any, ...]],
    *,
    limits: Limits,
    counted: Callable[[int], None] = lambda frames: None,
) -> Generator[Part, None, Value]:
    """Like `collect_isolated`, but yields the function's items as they arrive.

    `arguments` is called before each attempt, so that a second one can request only the rest.
    Leaving the iteration kills the helper.
    """
    value: Value = yield from _stream(
        DECODING,
        path,
        function,
        lambda: (path, *arguments()),
        limits=limits,
        counted=counted,
        answer=_answers_nothing,
    )
    return value


def run_fetching(
    function: Callable[..., Value],
    url: str,
    /,
    *args: Any,
    limits: Limits,
    answer: Callable[[str, tuple[Any, ...]], Any],
) -> Value:
    """Runs `function(*args)` in a helper process for yt-dlp, like `run_isolated`.

    `answer` gets the questions that the function asks by `worker_link.ask`, by name. `url` is for
    messages.
    """
    no_parts = cast("Callable[..., Generator[Any, None, Value]]", function)
    stream = _stream(
        FETCHING,
        url,
        no_parts,
        lambda: args,
        limits=limits,
        counted=lambda frames: None,
        answer=answer,
    )
    while True:
        try:
            next(stream)
        except StopIteration as end:
            value: Value = end.value
            return value


def _stream(
    task: Task,
    what: Path | str,
    function: Callable[..., Generator[Part, None, Value]],
    arguments: Callable[[], tuple[Any, ...]],
    *,
    limits: Limits,
    counted: Callable[[int], None],
    answer: Callable[[str, tuple[Any, ...]], Any],
) -> Generator[Part, None, Value]:
    ends = time.monotonic() + limits.time_limit_seconds
    deaths, fresh = 0, False
    calls = _CALLS
    while True:
        calls.check()
        try:
            request = _Request(function, arguments(), limits, ends)
            value: Value = yield from _try(task, request, fresh, counted, answer, calls)
            return value
        except Died as died:
            calls.check()
            deaths += 1
            if deaths > 1:
                problem = f"{task.crashes}: it ended twice, the last time {died}"
                raise _crash(task, what, problem) from None
        except _NoMemory as error:
            if fresh or error.was_fresh:
                problem = (
                    f"takes more than {limits.memory_limit_bytes:,} bytes of memory "
                    f"to {task.verb} ({error}); {_raise(limits, 'memory_limit_bytes')}"
                )
                raise _crash(task, what, problem) from None
        except _Stalled:
            problem = (
                f"{task.verb}ing made no progress for {limits.stall_seconds:g} s; "
                f"{_raise(limits, 'stall_seconds')}"
            )
            raise _crash(task, what, problem) from None
        except _OutOfTime:
            problem = (
                f"was not {task.done} in {limits.time_limit_seconds:g} s; "
                f"{_raise(limits, 'time_limit_seconds')}"
            )
            raise _crash(task, what, problem) from None
        fresh = True


def start_decoding_ahead() -> None:
    """Starts a decoder's process while this one still does something else.

    It need not be used: it is ended with the other idle ones.
    """
    with contextlib.suppress(ClipmillError):  # the first file's own helper meets the problem
        DECODING.idle.start_ahead(_DECODERS_IMPORTS)


def end_helpers() -> None:
    """Ends the idle helpers; those at work end with their call. Also done at exit."""
    for task in (DECODING, FETCHING):
        task.idle.close()


def abandon_calls() -> None:
    """Ends the calls that other threads are waiting for, with a ClipmillError in these threads."""
    global _CALLS
    calls, _CALLS = _CALLS, _Calls()
    calls.abandon()


def end_spare_fetchers() -> None:
    """Ends the idle processes of yt-dlp but one, for a stage that is over."""
    FETCHING.idle.close(but=1)


class _Calls:
    """The helpers at work for calls that are abandoned together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helpers: set[Helper] = set()
        self._are_abandoned = False

    def check(self) -> None:
        if self._are_abandoned:
            raise ClipmillError("the run was stopped")

    def begin(self, helper: Helper) -> None:
        with self._lock:
            self._helpers.add(helper)
            if self._are_abandoned:
                helper.end()

    def end(self, helper: Helper) -> None:
        with self._lock:
            self._helpers.discard(helper)

    def abandon(self) -> None:
        with self._lock:
            self._are_abandoned = True
            for helper in self._helpers:
                helper.end()


_CALLS = _Calls()


class _NoMemory(Exception):
    def __init__(self, text: str, was_fresh: bool) -> None:
        super().__init__(text)
        self.was_fresh = was_fresh


class _Stalled(Exception):
    pass


class _OutOfTime(Exception):
    pass


def _crash(task: Task, what: Path | str, problem: str) -> RowFailed:
    return RowFailed("crash", f"{what}: {problem}; {task.advice}")


def _raise(limits: Limits, setting: str) -> str:
    if limits.settings_of is None:
        return f"the limit is fixed here ({setting})"
    return f"raise {limits.settings_of}.{setting} if the file needs more"


@dataclass(frozen=True)
class _Request:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    limits: Limits
    ends: float

    def packed(self) -> bytes:
        limits = self.limits
        request = (self.function, self.arguments, limits.stall_seconds, limits.memory_limit_bytes)
        return pickle.dumps(request, pickle.HIGHEST_PROTOCOL)


def _try(
    task: Task,
    request: _Request,
    fresh: bool,
    counted: Callable[[int], None],
    answer: Callable[[str, tuple[Any, ...]], Any],
    calls: _Calls,
) -> Generator[Any, None, Any]:
    """One call in one helper, which is reused only if it came to its end."""
    limits = request.limits
    began = time.monotonic()
    helper = _begun(task, request.packed(), fresh)
    decoded, is_spent = 0, True
    cpu_before = helper.cpu_seconds()
    if helper.is_fresh:
        use(STARTING_SECONDS, time.monotonic() - began)
        use(STARTING_CPU_SECONDS, cpu_before)
        cpu_before = 0.0
    try:
        calls.begin(helper)
        while True:
            left = request.ends - time.monotonic()
            if left <= 0:
                raise _OutOfTime
            message = helper.receive(min(limits.stall_seconds, left))
            if message is None:
                raise _OutOfTime if left < limits.stall_seconds else _Stalled
            kind, *told = message
            if kind == "alive":
                continue
            if kind == "ask":
                helper.answer(*_answer(answer, *told))
                continue
            beat()
            if kind == "part":
                yield told[0]
                continue
            decoded = told[0]
            if kind == "beat":
                continue
            is_spent = told[1] or kind == "memory"
            if kind == "done":
                return pickle.loads(told[2])
            if kind == "memory":
                raise _NoMemory(told[2], helper.is_fresh)
            _, _, error, trace = told
            if trace:
                error.add_note(f"in {task.process}:\n{trace}")
            raise error
    finally:
        calls.end(helper)
        counted(decoded)
        use(HELPER_CPU_SECONDS, max(0.0, helper.cpu_seconds() - cpu_before))
        if is_spent:
            helper.kill()
        else:
            task.idle.give_back(helper)


def _answer(
    answer: Callable[[str, tuple[Any, ...]], Any], question: str, args: tuple[Any, ...]
) -> tuple[Any, Exception | None]:
    try:
        return answer(question, args), None
    except Exception as error:  # noqa: BLE001  it is raised where the question was asked
        return None, error


def _begun(task: Task, request: bytes, fresh: bool) -> Helper:
    """A helper that has read the request. If none starts, that is not the file's fault."""
    starts = 0
    while True:
        helper = task.idle.take(fresh)
        try:
            helper.send(request)
            message = helper.receive(START_SECONDS)
        except Died as died:
            helper.kill()
            starts += helper.is_fresh
            if starts < _STARTS:
                continue  # one that was not fresh was ended while it was idle
            raise ClipmillError(f"{task.process} does not start: it ended {died}") from None
        except BaseException:
            helper.kill()
            raise
        if message is None:
            helper.kill()
            raise ClipmillError(
                f"{task.process} does not start: it said nothing for "
                f"{START_SECONDS:g} s; is the machine overloaded?"
            )
        if message[0] == "began":
            return helper
        helper.kill()
        raise message[3]  # the request can't be unpickled


def _forget() -> None:
    for task in (DECODING, FETCHING):
        task.idle.forget()


DECODING = Task(
    "the decoder's process",
    "crashes its decoder's process",
    "read",
    "read",
    "look at it with `ffprobe` or fetch it again",
    _MOST_IDLE,
)
FETCHING = Task(
    "yt-dlp's process",
    "crashes yt-dlp's process",
    "fetch",
    "fetched",
    "retry it, or try another version of yt-dlp",
    _MOST_IDLE_FETCHERS,
)
atexit.register(end_helpers)
os.register_at_fork(after_in_child=_forget)
