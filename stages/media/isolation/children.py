"""Kills child programs when this process ends, however it ends: even by SIGKILL or lack of memory.

A small process next to this one reads from a pipe which of them are running. The pipe closes when
this process ends; the small process then kills those still running. It compares start times, so
that it doesn't kill a process that reused a dead one's number.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading

_KEEPER = """
import os, signal, subprocess, sys

def began(number):
    try:
        with open(f"/proc/{number}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        if os.path.isdir("/proc/self"):
            return None
    command = ["ps", "-o", "lstart=", "-p", str(number)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.stdout.strip() or None

running = {}
for line in sys.stdin:
    number = int(line[1:])
    if line[0] == "+":
        running[number] = began(number)
    else:
        running.pop(number, None)
for number, at in running.items():
    if at is not None and began(number) == at:
        try:
            os.kill(number, signal.SIGKILL)
        except OSError:
            pass
"""

_lock = threading.Lock()
_running: set[int] = set()
_keeper: subprocess.Popen[bytes] | None = None


def add(number: int) -> None:
    """Registers process `number`, a child of this one, to be killed when this process ends."""
    with _lock:
        _running.add(number)
        _say(f"+{number}")


def drop(number: int) -> None:
    """Unregisters process `number`, which has ended."""
    with _lock:
        if number in _running:
            _running.remove(number)
            _say(f"-{number}")


def _say(line: str) -> None:
    global _keeper
    try:
        if _keeper is not None:
            _write(_keeper, line)
            return
    except OSError:
        pass  # it was killed: start another one
    if _running:
        _keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is handled by this process
        )
        for number in _running:
            _write(_keeper, f"+{number}")


def _write(keeper: subprocess.Popen[bytes], line: str) -> None:
    assert keeper.stdin is not None
    os.write(keeper.stdin.fileno(), f"{line}\n".encode())


def _forget() -> None:
    """In a forked process: closes its copy of the pipe, which would keep the pipe open."""
    global _keeper, _lock
    _lock = threading.Lock()
    if _keeper is not None and _keeper.stdin is not None:
        with contextlib.suppress(OSError):
            os.close(_keeper.stdin.fileno())
        _keeper.returncode = 0  # not this process's child
    _keeper = None
    _running.clear()


os.register_at_fork(after_in_child=_forget)
