"""Makes UTF-8 the encoding of file names, titles and output."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def speak_utf_8(program: Callable[[], None]) -> None:
    """Restarts this program in UTF-8 if the environment makes Python use ASCII.

    Otherwise it could neither read nor print file names and titles with non-ASCII characters, and
    nor could subprocesses. Does nothing if `program` is only imported by another one.
    """
    is_own = getattr(sys.modules["__main__"], program.__name__, None) is program
    if sys.getfilesystemencoding() in ("ascii", "us-ascii") and is_own:
        os.execve(
            sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONUTF8": "1"}
        )
