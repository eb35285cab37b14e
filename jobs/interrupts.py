"""Ctrl-C and SIGTERM: what ends a command in order, also in the middle of a query."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

GRACE_SECONDS = 3.0
_terminated = False


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which clusters send before they kill: ends a command in order, as Ctrl-C does."""


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Has SIGTERM raise a KeyboardInterrupt; for the main thread."""
    global _terminated
    _terminated = False
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: object) -> None:
    global _terminated
    _terminated = True
    raise _Terminated


def interruption_behind(leaving: BaseException | None) -> signal.Signals | None:
    """The signal that a command was left for; None where it was left for something else.

    Typer makes an exit of an interruption, and DuckDB, in the middle of a query, an error.
    """
    while leaving is not None:
        if isinstance(leaving, KeyboardInterrupt) or _is_of_a_query(leaving):
            return signal.SIGTERM if _terminated else signal.SIGINT
        leaving = leaving.__cause__ or leaving.__context__
    return None


def leave_at_once(status: int) -> NoReturn:
    """Without waiting for threads that are at a download, or at a cluster that is gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def _is_of_a_query(error: BaseException) -> bool:
    # By its name: whoever is here without a query has not loaded DuckDB, which takes a while.
    kinds = (f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__)
    return "_duckdb.InterruptException" in kinds or (
        type(error) is RuntimeError and str(error) == "Query interrupted")


@contextlib.contextmanager
def ended_by_interrupts(grace_seconds: float = GRACE_SECONDS) -> Iterator[None]:
    """Ends the process where Ctrl-C or SIGTERM does not end the query inside.

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
            if stop := {signal.SIGINT, signal.SIGTERM}.intersection(signals):
                break
        else:
            return
        ours.settimeout(grace_seconds)
        try:
            while ours.recv(64):
                pass
        except TimeoutError:
            os.write(sys.__stderr__.fileno(), b"Stopped.\n")
            os._exit(128 + max(stop))

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
