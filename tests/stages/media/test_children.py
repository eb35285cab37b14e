"""Registered programs end with the process that started them, and no others do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[3]
# Prints the numbers of two programs, the first of which is `first`, and is killed.
OWNER = """
import os, signal, subprocess, sys, time
from clipmill.stages.media.isolation import children

first, second = (subprocess.Popen(["sleep", "300"], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL)
                 for _ in range(2))
children.add(first.pid)
{between}
print(first.pid, second.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def ran(between: str) -> tuple[int, int]:
    """The programs' numbers, once their parent is dead."""
    done = subprocess.run(
        [sys.executable, "-c", OWNER.format(between=between)],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == -signal.SIGKILL
    first, second = map(int, done.stdout.split())
    return first, second


def lives(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def comes(true: Callable[[], bool], seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def end(*numbers: int) -> None:
    for number in numbers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


@pytest.mark.parametrize(
    "between",
    [
        # The keeper itself was killed, as if memory had run out: the next one takes over.
        """children.add(second.pid); children._keeper.kill(); children._keeper.wait()
children.drop(second.pid)""",
        # A forked process lives on, with a copy of the pipe to the keeper.
        """if (forked := os.fork()) == 0:
    os.closerange(0, 3); time.sleep(40); os._exit(0)
""",
        # Another process was registered, and unregistered again.
        "children.add(second.pid); children.drop(second.pid)",
    ],
    ids=["keeper killed", "forked", "dropped"],
)
def test_only_registered_programs_end_with_their_parent(between):
    first, second = ran(between)
    try:
        assert comes(lambda: not lives(first))
        assert lives(second)
    finally:
        end(first, second)
