"""Distinguishes a process that is out of memory from a file that requests too much of it."""

from __future__ import annotations

import mmap
import resource

_SHARE = 8
_BYTES = 64 << 20  # if there is no limit


def raise_if_out(error: BaseException) -> None:
    """Raises MemoryError if the error says so and little memory is actually left.

    FFmpeg reports the same error for an absurd size in a damaged header: that is the file's fault,
    and this does nothing. The memory still available distinguishes the two.
    """
    if not isinstance(error, MemoryError):
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _BYTES if limit == resource.RLIM_INFINITY else limit // _SHARE
    try:
        mmap.mmap(-1, wanted, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        raise MemoryError(str(error)) from error
