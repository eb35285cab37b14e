"""Runs a program, and ends it and everything that it has started when whoever wanted it is gone.

Run as a script with the program's command line as arguments; imports only the standard library.
The program is wanted as long as this process's standard input is open and its parent lives. What
the program prints goes where this process's output goes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_LOOK_SECONDS = 0.5
_LEAVING_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    """A setting of this process that only Linux has."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _end_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _descendants() -> Iterator[int]:
    """The living processes below this one; none where the system has no /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = entry.read_text("utf-8", "replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.parent.name)] = int(parent)
    below = {os.getpid()}
    while found := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= found
        yield from found


def _signal_all(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
    for pid in list(_descendants()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _end(program: subprocess.Popen[bytes]) -> None:
    """Asks the program to end; ends it, and what is left of it, if it doesn't in time."""
    _signal_all(program.pid, signal.SIGTERM)
    ends = time.monotonic() + _LEAVING_SECONDS
    while time.monotonic() < ends and (program.poll() is None or any(_descendants())):
        time.sleep(0.05)
    _signal_all(program.pid, signal.SIGKILL)
    program.wait()


def main(command: list[str]) -> int:
    parent = os.getppid()
    # What the program's processes leave behind becomes a child of this one, and is found.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    stop, stopped = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(stopped, b"x"))
    try:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - this process has one thread
        )
    except OSError as error:
        print(f"{command[0]} can't be started: {error.strerror}", flush=True)
        return 127
    while program.poll() is None:
        ready, _, _ = select.select([0, stop], [], [], _LOOK_SECONDS)
        if stop in ready or (0 in ready and not os.read(0, 4096)) or os.getppid() != parent:
            break
    _end(program)
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
