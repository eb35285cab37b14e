"""Keeps log messages of Ray's C++ code off standard error, where they would drown ours."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator

# Log messages of Ray's C++ code: among them errors about every actor of Ray Data, which nobody can
# prevent, and hundreds of them when a node is lost.
NOISE = re.compile(
    rb"(?:\x1b\[\d+m|\(.{1,100}? pid=\d+\)|\s)*"
    rb"\[[\d :,.T-]+ [IWE] \d+ \d+\] (?:\(\w+\) )?\w+\.cc:\d+: "
)
# A frame of a worker's backtrace; there are dozens when its node is lost.
FRAME = re.compile(rb" pid=\d+\b.*\[0x[0-9a-f]+\]")


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Filters Ray's log messages from standard error: they bypass Python's logging."""
    sys.stderr.flush()
    saved = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)

    def pass_on() -> None:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if not NOISE.match(line) and not FRAME.search(line):
                    os.write(saved, line)

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)  # closes the pipe's last end, which ends the thread
        thread.join(timeout=5)
        if not thread.is_alive():
            os.close(saved)
