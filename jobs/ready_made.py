"""Ready-made recipes, of runs and of subsets: the YAML files beside this module."""

from __future__ import annotations

import difflib
from pathlib import Path

from schemas.errors import UsageError

FOLDER = Path(__file__).resolve().parent / "recipes"
SUBSET_FOLDER = Path(__file__).resolve().parent / "subset_recipes"


def names(folder: Path = FOLDER) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def recipe_path(argument: str) -> Path:
    """The file that a RECIPE argument means: a ready-made name, or a file.

    Raises UsageError with the names where it is neither.
    """
    return _path(argument, FOLDER, "recipe", "`clipmill recipe list` describes them")


def subset_recipe_path(argument: str) -> Path:
    """The same for a subset recipe."""
    return _path(argument, SUBSET_FOLDER, "subset recipe",
                 "`clipmill subset recipes` describes them")


def _path(argument: str, folder: Path, kind: str, hint: str) -> Path:
    known = names(folder)
    if argument in known:
        return folder / f"{argument}.yaml"
    path = Path(argument).expanduser()
    if path.is_file():
        return path
    near = difflib.get_close_matches(argument, known, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"no {kind} {argument!r}: there is no such file, and the ready-made ones are "
                     f"{', '.join(known)}; {guess}{hint}")
