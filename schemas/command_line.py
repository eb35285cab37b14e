"""Commands that messages suggest to users."""

from __future__ import annotations

import shlex
from pathlib import Path


def start_a_run(dataset: Path | str) -> str:
    """What to suggest if only the user knows which recipe is meant."""
    return (
        f"`clipmill run` a recipe with --dataset {shell_word(dataset)} (`clipmill recipe list` "
        "lists the ready-made ones)"
    )


def shell_word(path: Path | str) -> str:
    """A path as one word of a command line, even with spaces or a leading dash."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
