"""Reports progress from a helper process to its worker, and from a worker to the run."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

_STEP_SECONDS = 1.0

_listener: Callable[..., None] | None = None


def beat(decoded_frames: int | None = None, *, thread: int | None = None) -> None:
    """Reports progress: a packet was read, a frame decoded, a token generated.

    `decoded_frames` is the number of frames of the file decoded so far, if counted. It is the
    calling thread's progress, or that of `thread`, by Python's id. A call costs next to nothing. A
    worker without one for `stall_seconds` counts as stalled.
    """
    if _listener is None:
        return
    if thread is None:
        _listener(decoded_frames)
    else:
        _listener(decoded_frames, thread=thread)


def pause(seconds: float) -> None:
    """Sleeps deliberately (until a host's next turn, say), and reports progress meanwhile."""
    end = time.monotonic() + seconds
    while True:
        beat()
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, _STEP_SECONDS))


class LargeFile(io.FileIO):
    """A file opened for reading that reports progress: hashing or copying it may take long."""

    def readinto(self, buffer: Any) -> int:
        beat()
        return super().readinto(buffer)

    def read(self, size: int | None = -1) -> bytes:
        beat()
        return super().read(size)


def listen(listener: Callable[..., None] | None) -> None:
    """Sets the receiver of all progress from now on, with the arguments of `beat`; None for
    nobody."""
    global _listener
    _listener = listener


@contextlib.contextmanager
def heard_by(listener: Callable[..., None]) -> Iterator[None]:
    """All progress goes to this receiver meanwhile, and to the former one afterwards."""
    global _listener
    former, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = former
