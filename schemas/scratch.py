"""Temporary folders for data that does not fit into memory.

A killed process can't remove its own. The next process that creates such a folder does: each one
is locked as long as its process lives.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from clipmill.schemas.file_locks import try_lock

_PREFIX = "clipmill-"
_LOCK = ".lock"


class ScratchFolder:
    """A new folder at `path`; a context manager. Large sorts and joins write gigabytes to it."""

    def __init__(self, purpose: str) -> None:
        _remove_abandoned()
        while True:
            self._folder = tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{purpose}-")
            self.path = Path(self._folder.name)
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            if _takes(self._lock):
                return
            # Another process just found it unlocked, treats it as abandoned and removes it.
            os.close(self._lock)
            self._folder.cleanup()

    def __enter__(self) -> ScratchFolder:
        return self

    def __exit__(self, *details: object) -> None:
        self.remove()

    def remove(self) -> None:
        self._folder.cleanup()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _takes(lock: int) -> bool:
    try:
        return try_lock(lock)
    except OSError:
        return True  # no locks here: then no folder is treated as abandoned either


def _remove_abandoned() -> None:
    """Removes this user's folders whose lock nobody holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        # Errors while cleaning up must not stop anything.
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if try_lock(lock):
                    shutil.rmtree(folder)
            finally:
                os.close(lock)
