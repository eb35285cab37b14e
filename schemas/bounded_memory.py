"""Limits how much memory a process may use."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def bounded_memory(more_bytes: int) -> Iterator[None]:
    """Limits this process to this many more bytes than it uses now; further allocations fail.

    Has no effect if the system doesn't report the current use.
    """
    try:
        status = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        yield
        return
    have = int(status.partition("VmData:")[2].split()[0]) * 1024
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([have + more_bytes, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
