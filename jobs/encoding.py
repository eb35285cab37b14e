"""UTF-8 everywhere: what names of files, titles and what is printed are read and written in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def speak_utf_8(program: Callable[[], None]) -> None:
    """Starts this program anew in UTF-8 where the environment has Python take all for ASCII.

    Then neither a file's name nor a title could be read or printed that is no plain English, and
    nothing that runs in a process of its own would do better. Nothing happens where `program` is
    only called by another one.
    """
    is_own = getattr(sys.modules["__main__"], program.__name__, None) is program
    if sys.getfilesystemencoding() in ("ascii", "us-ascii") and is_own:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]],
                  {**os.environ, "PYTHONUTF8": "1"})
