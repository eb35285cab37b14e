"""Reads untrusted files in a separate process, which may crash, hang or exhaust its memory.

Decoders are written for well-formed files. If a broken one crashes or hangs its decoder, only that
file is affected: at its limits the process is killed, and the result is one failure of kind
`crash`.

A helper process is started if none is idle, is reused for the next file, and ends with the process
that started it. It only imports decoders: no torch, no Ray, no database.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from clipmill.schemas.errors import ClipmillError, RowFailed, printable
from clipmill.stages.media.isolation.isolated_process import HEADER
from clipmill.stages.media.isolation.progress import beat

STALL_SECONDS = 300.0
TIME_LIMIT_SECONDS = 6 * 3600.0
MEMORY_LIMIT_BYTES = 4 << 30
LEAST_MEMORY_BYTES = 256 << 20
"""The decoders' libraries alone need this much."""

# A helper must start on a request within this time, whatever the file's limits.
_START_SECONDS = 120.0
_STARTS = 3  # what kills one (such as lack of memory) need not kill the next
_CHUNK_BYTES = 1 << 20
_TAIL_BYTES = 4000
_LINE_CHARACTERS = 200
_MOST_IDLE = 4

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
    ends = time.monotonic() + limits.time_limit_seconds
    deaths, fresh = 0, False
    while True:
        try:
            return (yield from _try(function, (path, *arguments()), limits, ends, fresh, counted))
        except _Died as died:
            deaths += 1
            if deaths > 1:
                raise _crash(
                    path, f"crashes its decoder's process: it ended twice, the last time {died}"
                ) from None
        except _NoMemory as problem:
            if fresh or problem.was_fresh:
                raise _crash(
                    path,
                    f"takes more than {limits.memory_limit_bytes:,} bytes of memory "
                    f"to read ({problem}); {_raise(limits, 'memory_limit_bytes')}",
                ) from None
        except _Stalled:
            raise _crash(
                path,
                f"reading made no progress for {limits.stall_seconds:g} s; "
                f"{_raise(limits, 'stall_seconds')}",
            ) from None
        except _OutOfTime:
            raise _crash(
                path,
                f"was not read in {limits.time_limit_seconds:g} s; "
                f"{_raise(limits, 'time_limit_seconds')}",
            ) from None
        fresh = True


def end_helpers() -> None:
    """Ends the idle helpers; busy ones end with their call. Also runs at exit."""
    _idle.close()


class _Died(Exception):
    """The helper ended before its answer arrived; the text says how."""


class _NoMemory(Exception):
    def __init__(self, text: str, was_fresh: bool) -> None:
        super().__init__(text)
        self.was_fresh = was_fresh


class _Stalled(Exception):
    pass


class _OutOfTime(Exception):
    pass


def _crash(path: Path, what: str) -> RowFailed:
    return RowFailed("crash", f"{path}: {what}; look at it with `ffprobe` or fetch it again")


def _raise(limits: Limits, setting: str) -> str:
    if limits.settings_of is None:
        return f"the limit is fixed here ({setting})"
    return f"raise {limits.settings_of}.{setting} if the file needs more"


def _try(
    function: Callable[..., Generator[Part, None, Value]],
    arguments: tuple[Any, ...],
    limits: Limits,
    ends: float,
    fresh: bool,
    counted: Callable[[int], None],
) -> Generator[Part, None, Value]:
    """One call in one helper, which is reused only if the call completes."""
    request = pickle.dumps(
        (function, arguments, limits.stall_seconds, limits.memory_limit_bytes),
        pickle.HIGHEST_PROTOCOL,
    )
    helper = _begun(request, fresh)
    decoded, is_spent = 0, True
    try:
        while True:
            left = ends - time.monotonic()
            if left <= 0:
                raise _OutOfTime
            message = helper.receive(min(limits.stall_seconds, left))
            if message is None:
                raise _OutOfTime if left < limits.stall_seconds else _Stalled
            beat()
            kind, *told = message
            if kind == "part":
                yield told[0]
                continue
            decoded = told[0]
            if kind == "beat":
                continue
            is_spent = told[1] or kind == "memory"
            if kind == "done":
                value: Value = pickle.loads(told[2])
                return value
            if kind == "memory":
                raise _NoMemory(told[2], helper.is_fresh)
            _, _, error, trace = told
            if trace:
                error.add_note(f"in the decoder's process:\n{trace}")
            raise error
    finally:
        counted(decoded)
        if is_spent:
            helper.kill()
        else:
            _idle.give_back(helper)


def _begun(request: bytes, fresh: bool) -> _Helper:
    """A helper that has read the request. If none starts, that is not the file's fault."""
    starts = 0
    while True:
        helper = _idle.take(fresh)
        try:
            helper.send(request)
            message = helper.receive(_START_SECONDS)
        except _Died as died:
            helper.kill()
            starts += helper.is_fresh
            if starts < _STARTS:
                continue  # a reused one may have been killed while it was idle
            raise ClipmillError(f"the decoder's process does not start: it ended {died}") from None
        except BaseException:
            helper.kill()
            raise
        if message is None:
            helper.kill()
            raise ClipmillError(
                "the decoder's process does not start: it said nothing for "
                f"{_START_SECONDS:g} s; is the machine overloaded?"
            )
        if message[0] == "began":
            return helper
        helper.kill()
        raise message[3]  # the request can't be unpickled


class _Helper:
    """A helper process and the socket to it."""

    def __init__(self) -> None:
        self.is_fresh = True
        self._buffer = bytearray()
        self._tail = b""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    # -P: modules are not imported from the working directory.
                    [
                        sys.executable,
                        "-P",
                        "-m",
                        "clipmill.stages.media.isolation.isolated_process",
                        str(theirs.fileno()),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    env=_environment(),
                    bufsize=0,
                )
            except OSError as error:
                ours.close()
                raise ClipmillError(
                    f"the decoder's process can't be started: {error.strerror}"
                ) from error
        self._socket = ours
        ours.settimeout(_START_SECONDS)
        assert self._process.stdout is not None
        self._noise = self._process.stdout
        os.set_blocking(self._noise.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(ours, selectors.EVENT_READ)
        self._selector.register(self._noise, selectors.EVENT_READ)

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendall(HEADER.pack(len(data)))
            self._socket.sendall(data)
        except OSError:
            raise _Died(self._ended()) from None

    def receive(self, seconds: float) -> tuple[Any, ...] | None:
        """The next message; None if none arrives in time."""
        ends = time.monotonic() + seconds
        while (message := self._whole_message()) is None:
            left = ends - time.monotonic()
            ready = [key.fileobj for key, _ in self._selector.select(max(0.0, left))]
            if self._noise in ready:
                self._hear()
            if self._socket in ready:
                self._read()
            elif left <= 0:
                return None
        return message

    def _whole_message(self) -> tuple[Any, ...] | None:
        if len(self._buffer) < HEADER.size:
            return None
        end = HEADER.size + HEADER.unpack_from(self._buffer)[0]
        if len(self._buffer) < end:
            return None
        try:
            with memoryview(self._buffer) as view, view[HEADER.size : end] as data:
                message: tuple[Any, ...] = pickle.loads(data)
        except Exception as error:  # unpickling garbage can raise anything
            raise _Died(f"with an answer that can't be read ({type(error).__name__})") from error
        del self._buffer[:end]
        return message

    def _read(self) -> None:
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except OSError:
            data = b""
        if not data:
            raise _Died(self._ended())
        self._buffer += data

    def _hear(self) -> None:
        """Reads what the decoder printed, so that it never blocks on a full pipe; keeps the end."""
        data = self._noise.read(_CHUNK_BYTES)
        if data:
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
        elif data is not None and self._noise in self._selector.get_map():
            self._selector.unregister(self._noise)

    def _ended(self) -> str:
        """How the process ended, with the last line that it printed."""
        try:
            code = self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._hear()
        how = f"with exit status {code}" if code >= 0 else f"by signal {-code}"
        with contextlib.suppress(ValueError):
            how += f" ({signal.Signals(-code).name})" if code < 0 else ""
        lines = printable(self._tail.decode("utf-8", "replace")).split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{how}, saying {last[:_LINE_CHARACTERS]!r}" if last else how

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.let_go()

    def let_go(self) -> None:
        """Closes only this process's ends; a helper exits when its last peer has closed."""
        self._selector.close()
        self._socket.close()
        self._noise.close()
        assert self._process.stdin is not None
        self._process.stdin.close()


def _environment() -> dict[str, str]:
    """This process's environment, with its module search path and without thread pools."""
    path = [str(Path(entry).absolute()) for entry in sys.path]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


class _Idle:
    """The idle helpers of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helpers: list[_Helper] = []

    def take(self, fresh: bool) -> _Helper:
        with self._lock:
            if self._helpers and not fresh:
                return self._helpers.pop()
        return _Helper()

    def give_back(self, helper: _Helper) -> None:
        helper.is_fresh = False
        with self._lock:
            if len(self._helpers) < _MOST_IDLE:
                self._helpers.append(helper)
                return
        helper.kill()

    def close(self) -> None:
        with self._lock:
            helpers, self._helpers = self._helpers, []
        for helper in helpers:
            helper.kill()

    def forget(self) -> None:
        """In a forked process: the helpers belong to its parent."""
        helpers, self._helpers, self._lock = self._helpers, [], threading.Lock()
        for helper in helpers:
            helper.let_go()


_idle = _Idle()
atexit.register(end_helpers)
os.register_at_fork(after_in_child=_idle.forget)
