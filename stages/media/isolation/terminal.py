"""Reserves the terminal for the command that was typed into it.

A shell runs a command in the terminal's foreground process group, and Ray puts each worker in a
separate group. If a program of such a group touches the terminal, as ffmpeg does if it is its
standard input, the system stops the whole group, and the worker hangs indefinitely.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import termios
import threading
from collections.abc import Iterator

_STANDARD_INPUT = 0

_lock = threading.Lock()
_users = 0
_terminal: int | None = None


@contextlib.contextmanager
def null_input() -> Iterator[None]:
    """Makes standard input the null device for programs started inside; then restores it.

    Data that Python has buffered stays in `sys.stdin`. Several threads may be inside at once; the
    last one to leave restores it.
    """
    global _users, _terminal
    with _lock:
        if not _users:
            with contextlib.suppress(OSError):  # it is closed
                # Not inherited by programs started inside: they could reach the terminal through
                # it.
                _terminal = fcntl.fcntl(_STANDARD_INPUT, fcntl.F_DUPFD_CLOEXEC, 3)
            _open_null()
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users and _terminal is not None:
                os.dup2(_terminal, _STANDARD_INPUT)
                os.close(_terminal)
                _terminal = None


def leave_terminal() -> None:
    """Detaches this process from its terminal for good; for processes not started by a shell.

    Its standard input becomes the null device. It and the programs that it starts have no
    controlling terminal from now on, so none can prompt there or be stopped by it.
    """
    _open_null()
    if os.getsid(0) == os.getpid():
        return  # a session leader: leaving would send SIGHUP to the session's processes
    with contextlib.suppress(OSError):  # it has none
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(terminal, termios.TIOCNOTTY)
        finally:
            os.close(terminal)


def _open_null() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    if null != _STANDARD_INPUT:
        os.dup2(null, _STANDARD_INPUT)
        os.close(null)
    else:
        os.set_inheritable(null, True)
