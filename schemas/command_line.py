"""Commands that messages tell people to type."""

from __future__ import annotations

import shlex
from pathlib import Path


def shell_word(path: Path | str) -> str:
    """A path as one word of a command line, also where it has spaces or begins with a dash."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
