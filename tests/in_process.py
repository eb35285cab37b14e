"""Commands run in the tests' own process, which needs none of the seconds that imports take."""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest

from clipmill.jobs.cli import main
from clipmill.pipeline.engine import interrupts


class Done(NamedTuple):
    """A command's exit status, and what it wrote to its two streams."""

    returncode: int
    stdout: str
    stderr: str


def call(*arguments: object) -> int:
    """Runs a command as the program does; its exit status.

    Anything but a clear error propagates from `main` and fails the test.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["clipmill", *map(str, arguments)])
        patch.setattr(interrupts, "leave_at_once", _would_end_the_tests)
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def _would_end_the_tests(status: int) -> None:
    pytest.fail(f"this command leaves at once, with status {status}: start it as a process")


def heard(capfd: pytest.CaptureFixture[str], *arguments: object) -> Done:
    capfd.readouterr()
    return Done(call(*arguments), *capfd.readouterr())
