"""Reserves the terminal for the command that was typed into it.

A shell runs a command in the terminal's foreground group, and Ray puts each worker in a group of
its own. Where a program of such a group touches the terminal, as ffmpeg does that has it as
standard input, the system stops the whole group, and the worker hangs for good.
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
    """Makes standard input the null device, for programs started inside; then gives it back.

    What Python has read ahead stays in `sys.stdin`. Threads may be inside at once; the last one
    to leave gives the input back.
    """
    global _users, _terminal
    with _lock:
        if not _users:
            with contextlib.suppress(OSError):  # it is closed
                # Not for programs started inside: they would hold the terminal by this number.
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
    """Detaches this process from its terminal for good; for one that no shell has started.

    Its standard input becomes the null device. It and the programs that it starts have no
    controlling terminal from now on: none can ask a question there or be stopped by it.
    """
    _open_null()
    if os.getsid(0) == os.getpid():
        return  # it leads a session: all processes of that would be hung up on
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
