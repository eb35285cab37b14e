"""Functions run by the tests of parallel_map; other processes import them from here."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from clipmill.schemas.errors import ClipmillError, RowFailed


def work(folder: Path, item: str) -> str:
    """Acts as the item says, and records every attempt."""
    with open(folder / item.replace("/", "_"), "a") as notes:
        notes.write(".")
    kind, _, rest = item.partition("/")
    if kind == "row":
        raise RowFailed("bad_media", f"{rest} is broken")
    if kind == "bug":
        raise ZeroDivisionError(rest)
    if kind == "full":
        raise ClipmillError("the disk is full")
    if kind == "sleep":
        time.sleep(float(rest))
    end = time.monotonic() + 60
    while kind == "until" and not (folder / rest).exists() and time.monotonic() < end:
        time.sleep(0.01)
    if kind == "die" or (kind == "once" and len((folder / f"once_{rest}").read_text()) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return item.upper()
