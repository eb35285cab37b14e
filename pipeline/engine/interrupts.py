"""Ctrl-C, SIGTERM and SIGHUP: end a command cleanly, even in the middle of a query."""

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
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_came: signal.Signals | None = None


class _Terminated(KeyboardInterrupt):
    """The signal that clusters send before they kill, and terminals when they close.

    It ends a command cleanly, like Ctrl-C.
    """


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise a KeyboardInterrupt; for the main thread.

    An ignored signal stays ignored: `nohup` lets a command continue without its terminal.
    """
    global _came
    _came = None
    before = {one: signal.getsignal(one) for one in _ENDING}
    heeded = [one for one in _ENDING if before[one] != signal.SIG_IGN]
    for one in heeded:
        signal.signal(one, _terminate)
    try:
        yield
    finally:
        for one in heeded:
            signal.signal(one, before[one])


def _terminate(number: int, _: object) -> None:
    global _came
    _came = signal.Signals(number)
    raise _Terminated


def interruption_behind(leaving: BaseException | None) -> signal.Signals | None:
    """The signal that ended a command; None if something else did.

    Typer turns an interruption into an exit, and DuckDB, in the middle of a query, into an error.
    """
    while leaving is not None:
        if isinstance(leaving, KeyboardInterrupt) or _is_of_a_query(leaving):
            return _came or signal.SIGINT
        leaving = leaving.__cause__ or leaving.__context__
    return None


def leave_at_once(status: int) -> NoReturn:
    """Exits without waiting for threads that are downloading, or that use a lost cluster."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def _is_of_a_query(error: BaseException) -> bool:
    # Compared by name: without a query DuckDB is not loaded, and loading it takes a while.
    kinds = (f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__)
    return "_duckdb.InterruptException" in kinds or (
        type(error) is RuntimeError and str(error) == "Query interrupted"
    )


@contextlib.contextmanager
def ended_by_interrupts() -> Iterator[None]:
    """Ends the process if Ctrl-C or another signal does not end the query inside.

    DuckDB checks for signals only between its tasks, if at all, and a recursive query may be one
    task that runs forever; DuckDB then waits for that task, and Python with it. Nothing is lost:
    queries only read.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def watch() -> None:
        # Python writes each signal's number here, whatever the main thread is waiting for.
        while signals := ours.recv(64):
            if stop := {signal.SIGINT, *_ENDING}.intersection(signals):
                break
        else:
            return
        ours.settimeout(GRACE_SECONDS)
        try:
            while ours.recv(64):
                pass
        except TimeoutError:
            with contextlib.suppress(OSError):  # the terminal is closed
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"Stopped.\n")
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
