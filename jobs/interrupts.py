"""Ctrl-C for what the database computes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

GRACE_SECONDS = 3.0


@contextlib.contextmanager
def ended_by_interrupts(grace_seconds: float = GRACE_SECONDS) -> Iterator[None]:
    """Ends the process where Ctrl-C does not end the query inside.

    DuckDB looks up between its tasks, if at all, and a recursive query may be one task that goes
    on for ever; it then waits for that task, and Python with it. Nothing is lost: a query only
    reads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def watch() -> None:
        # Python writes the number of each signal here, whatever the main thread is waiting for.
        while signals := ours.recv(64):
            if signal.SIGINT in signals:
                break
        else:
            return
        ours.settimeout(grace_seconds)
        try:
            while ours.recv(64):
                pass
        except TimeoutError:
            os.write(sys.__stderr__.fileno(), b"Stopped.\n")
            os._exit(128 + signal.SIGINT)

    thread = threading.Thread(target=watch, name="interrupts", daemon=True)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()
        thread.join()
        ours.close()
