"""Ready-made recipes: the YAML files beside this module."""

from __future__ import annotations

import difflib
from pathlib import Path

from schemas.errors import UsageError

FOLDER = Path(__file__).resolve().parent / "recipes"


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe_path(argument: str) -> Path:
    """The file that a RECIPE argument means: a ready-made name, or a file.

    Raises UsageError with the names where it is neither.
    """
    if argument in names():
        return FOLDER / f"{argument}.yaml"
    path = Path(argument).expanduser()
    if path.is_file():
        return path
    near = difflib.get_close_matches(argument, names(), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"no recipe {argument!r}: there is no such file, and the ready-made ones are "
                     f"{', '.join(names())}; {hint}`clipmill recipe list` describes them")
