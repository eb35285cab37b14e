"""The helper process that reads untrusted files (see `isolated`): runs the calls it is sent.

It holds no data but the current file, so it may be killed at any moment. It ends with the process
that started it, however that one ends and whatever this one is doing then; so do the programs that
it started, which are in its process group.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

from clipmill.schemas.errors import ClipmillError, RowFailed, RowRejected
from clipmill.stages.media.isolation import progress, worker_link
from clipmill.stages.media.isolation.terminal import leave_terminal

HEADER = struct.Struct("!Q")
"""Each message is its length in bytes, then a pickle of that length."""

MOST_IDLE_BYTES = 512 << 20
"""A helper that still holds more memory than this after a call is not reused."""

_BEATS_SECONDS = 1.0
_LIBRARY_STACK_BYTES = 1 << 20  # twice the default on macOS
_PYTHON_STACK_BYTES = 8 << 20
_OPENCV_NO_MEMORY = -4  # cv::Error::StsNoMem


class _Channel:
    """Messages to and from the process that started this one; any thread may send."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def receive(self) -> bytes | None:
        """The next message; None at the end."""
        header = self._read(HEADER.size)
        return None if header is None else self._read(HEADER.unpack(header)[0])

    def _read(self, length: int) -> bytes | None:
        data = bytearray()
        while len(data) < length:
            chunk = self._connection.recv(min(length - len(data), 1 << 20))
            if not chunk:
                return None
            data += chunk
        return bytes(data)

    def send(self, *message: Any, wait: bool = True) -> None:
        """Sends a message; without `wait`, only if no other thread is sending."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        if not self._lock.acquire(blocking=wait):
            return
        try:
            self._connection.sendall(HEADER.pack(len(data)))
            self._connection.sendall(data)
        finally:
            self._lock.release()

    def ask(self, question: str, *args: Any) -> Any:
        """What the worker answers to a question; raises the exception that it met."""
        self.send("ask", question, args)
        answer = self.receive()
        if answer is None:
            _end_group()
        assert answer is not None
        value, error = pickle.loads(answer)
        if error is not None:
            raise error
        return value

    def end_with(self, decoded_frames: int, error: Exception) -> None:
        """Ends this process, and what it started, with `error` as the outcome of the call."""
        self.send("raised", decoded_frames, True, error, "")
        _end_group()


class _Beats:
    """Forwards progress at a limited rate, and remembers how many frames were decoded."""

    def __init__(self, channel: _Channel, stall_seconds: float) -> None:
        self._channel = channel
        self._every = min(_BEATS_SECONDS, stall_seconds / 4)
        self._last = time.monotonic()
        self.decoded_frames = 0

    def __call__(self, decoded_frames: int | None) -> None:
        if decoded_frames is not None:
            self.decoded_frames = decoded_frames
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self._channel.send("beat", self.decoded_frames, wait=False)


class _Link:
    """The link of one call to the worker."""

    def __init__(self, channel: _Channel, beats: _Beats) -> None:
        self._channel = channel
        self._beats = beats

    def ask(self, question: str, *args: Any) -> Any:
        return self._channel.ask(question, *args)

    def report_alive(self) -> None:
        self._channel.send("alive", wait=False)

    def end_with(self, error: Exception) -> None:
        self._channel.end_with(self._beats.decoded_frames, error)


def main() -> None:
    """Serves the socket whose number is the first argument, until its other end is closed.

    Further arguments are modules to import before the first call.
    """
    channel = _Channel(socket.socket(fileno=int(sys.argv[1])))
    _end_with_starter()
    # The starting process decides when this one ends; it also handles Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Crashes of a decoder are expected: no core file of several gigabytes each time.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # If the machine runs out of memory, this process should be killed first.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "utf-8")
    _give_small_stacks()
    for name in sys.argv[2:]:
        with contextlib.suppress(ImportError):  # the call that needs it says what is missing
            importlib.import_module(name)
    while (request := channel.receive()) is not None:
        _serve(channel, request)


def _give_small_stacks() -> None:
    """Makes the stacks of libraries' threads count less towards the file's memory limit.

    RLIMIT_DATA counts each thread's whole stack, typically 8 MB. On a machine with many cores, a
    decoder has hundreds of threads, whose stacks alone would exceed the limit.
    """
    import ctypes

    attributes = ctypes.create_string_buffer(256)
    with contextlib.suppress(AttributeError, OSError):  # a C library without this function
        c = ctypes.CDLL(None)
        if (
            c.pthread_getattr_default_np(attributes) == 0
            and c.pthread_attr_setstacksize(attributes, ctypes.c_size_t(_LIBRARY_STACK_BYTES)) == 0
        ):
            # Python's own threads, which are few, keep their size.
            threading.stack_size(_PYTHON_STACK_BYTES)
            c.pthread_setattr_default_np(attributes)


def _end_with_starter() -> None:
    """Ends this process when the pipe at standard input is closed, even by a dying process.

    After this, standard input is the null device: programs started here must not read the pipe.
    """
    pipe = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
    leave_terminal()

    def watch() -> None:
        while True:
            try:
                if not os.read(pipe, 1):
                    break
            except OSError:
                break
        _end_group()

    if hasattr(fcntl, "F_SETSIG"):
        # The kernel's own doing: a thread would wait for one that hangs with Python's lock.
        fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    # For other systems, and for a starter that ended before this line.
    threading.Thread(target=watch, name="starter", daemon=True).start()


def _end_group() -> None:
    """Kills this process and the programs that it started: it leads their group."""
    os.killpg(0, signal.SIGKILL)


def _serve(channel: _Channel, request: bytes) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    beats: _Beats | None = None
    try:
        function, arguments, stall_seconds, memory_limit_bytes = pickle.loads(request)
        beats = _Beats(channel, stall_seconds)
        channel.send("began")
        _limit_memory(memory_limit_bytes, most)
        progress.listen(beats)
        worker_link.connect(_Link(channel, beats))
        value: Any = function(*arguments)
        if isinstance(value, Generator):
            value = _send_parts(channel, value)
        answer = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        ending: tuple[Any, ...] = ("done", answer)
    except BaseException as error:  # noqa: BLE001  it is raised in the calling process
        # Otherwise there might be too little memory to report that it ran out.
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        ending = ("memory", _text(error)) if _is_memory(error) else ("raised", *_sendable(error))
    finally:
        worker_link.connect(None)
        progress.listen(None)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    decoded = beats.decoded_frames if beats else 0
    channel.send(ending[0], decoded, _data_bytes() > MOST_IDLE_BYTES, *ending[1:])


def _limit_memory(limit_bytes: int, most: int) -> None:
    # Not RLIMIT_AS: threads reserve address space that they never use.
    limit = limit_bytes if most == resource.RLIM_INFINITY else min(limit_bytes, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))


def _data_bytes() -> int:
    """The bytes that RLIMIT_DATA counts; 0 if the system doesn't report them."""
    try:
        status = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return 0
    return int(status.partition("VmData:")[2].split()[0]) * 1024


def _send_parts(channel: _Channel, parts: Generator[Any, None, Any]) -> Any:
    """Sends each part as it is yielded; returns the generator's value."""
    while True:
        try:
            part = next(parts)
        except StopIteration as end:
            return end.value
        channel.send("part", part)


def _is_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, according to an exception or one of its causes.

    FFmpeg's own error doesn't prove it; see `out_of_memory.raise_if_out`.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        is_ffmpegs = type(error).__module__.startswith("av.")
        if (
            (isinstance(error, MemoryError) and not is_ffmpegs)
            or (isinstance(error, OSError) and error.errno == errno.ENOMEM and not is_ffmpegs)
            or (
                type(error).__module__ == "cv2"
                and getattr(error, "code", None) == _OPENCV_NO_MEMORY
            )
            or (isinstance(error, RuntimeError) and "can't start new thread" in str(error))
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _sendable(error: BaseException) -> tuple[BaseException, str]:
    """The exception, or an equivalent one that can be pickled; and its traceback."""
    told = (
        ""
        if isinstance(error, RowFailed | RowRejected | ClipmillError)
        else "".join(traceback.format_exception(error)).rstrip()
    )
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  pickling it may raise anything
        return RuntimeError(_text(error)), told
    return (error, told) if isinstance(error, Exception) else (RuntimeError(_text(error)), told)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


if __name__ == "__main__":
    main()
