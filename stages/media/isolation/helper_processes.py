"""Helper processes as seen by the process that uses them: started, talked to, kept while idle."""

from __future__ import annotations

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipmill.schemas.errors import ClipmillError, printable
from clipmill.stages.media.isolation.isolated_process import HEADER

START_SECONDS = 120.0
"""A helper must start on a request within this time, whatever the file's limits."""
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

_CHUNK_BYTES = 1 << 20
_TAIL_BYTES = 4000
_LINE_CHARACTERS = 200


class Died(Exception):
    """The helper ended before its answer arrived; the text says how."""


class Helper:
    """A helper process and the socket to it."""

    def __init__(self, process: str, imports: Sequence[str] = ()) -> None:
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
                        *imports,
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
                raise ClipmillError(f"{process} can't be started: {error.strerror}") from error
        self._socket = ours
        ours.settimeout(START_SECONDS)
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
            raise Died(self._ended()) from None

    def answer(self, value: Any, error: Exception | None) -> None:
        """Answers a question; if the helper has ended, the next message says how."""
        with contextlib.suppress(Died):
            self.send(pickle.dumps((value, error), pickle.HIGHEST_PROTOCOL))

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
            raise Died(f"with an answer that can't be read ({type(error).__name__})") from error
        del self._buffer[:end]
        return message

    def _read(self) -> None:
        try:
            data = self._socket.recv(_CHUNK_BYTES)
        except OSError:
            data = b""
        if not data:
            raise Died(self._ended())
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
            self._kill_group()
            code = self._process.wait()
        self._hear()
        how = f"with exit status {code}" if code >= 0 else f"by signal {-code}"
        with contextlib.suppress(ValueError):
            how += f" ({signal.Signals(-code).name})" if code < 0 else ""
        lines = printable(self._tail.decode("utf-8", "replace")).split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{how}, saying {last[:_LINE_CHARACTERS]!r}" if last else how

    def cpu_seconds(self) -> float:
        """Processor time of the helper and of programs that it has waited for; 0 if unknown."""
        try:
            text = Path(f"/proc/{self._process.pid}/stat").read_text("utf-8", "replace")
        except OSError:  # it has ended, or the system has no such file
            return 0.0
        # After the name: state is the first field, user and system time the 12th to 15th.
        return sum(map(int, text.rpartition(")")[2].split()[11:15])) / _TICKS_PER_SECOND

    def end(self) -> None:
        """Ends them from another thread: whoever waits for an answer learns that it died."""
        self._kill_group()

    def kill(self) -> None:
        """Ends the helper and the programs that it has started."""
        self._kill_group()
        self._process.wait()
        self.let_go()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all of it has ended
            os.killpg(self._process.pid, signal.SIGKILL)

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


class IdleHelpers:
    """The helpers for one task that have nothing to do."""

    def __init__(self, process: str, most: int) -> None:
        self._process = process
        self._most = most
        self._lock = threading.Lock()
        self._helpers: list[Helper] = []

    def take(self, fresh: bool) -> Helper:
        with self._lock:
            if self._helpers and not fresh:
                return self._helpers.pop()
        return Helper(self._process)

    def start_ahead(self, imports: Sequence[str]) -> None:
        """Starts one that imports these modules now, so that its first call need not wait."""
        helper = Helper(self._process, imports)
        with self._lock:
            self._helpers.append(helper)

    def give_back(self, helper: Helper) -> None:
        helper.is_fresh = False
        with self._lock:
            if len(self._helpers) < self._most:
                self._helpers.append(helper)
                return
        helper.kill()

    def close(self, but: int = 0) -> None:
        with self._lock:
            helpers, self._helpers = self._helpers[but:], self._helpers[:but]
        for helper in helpers:
            helper.kill()

    def forget(self) -> None:
        """In a forked process: the helpers belong to its parent."""
        helpers, self._helpers, self._lock = self._helpers, [], threading.Lock()
        for helper in helpers:
            helper.let_go()
