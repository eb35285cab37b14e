"""Ready-made recipes, of runs and of subsets: the YAML files in `jobs/`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.schemas.errors import UsageError
from clipmill.schemas.words import did_you_mean

if TYPE_CHECKING:
    from clipmill.stages.references import DataFile, ModelReference

_FILES = Path(str(files("clipmill.jobs")))
FOLDER = _FILES / "recipes"
SUBSET_FOLDER = _FILES / "subset_recipes"


def names(folder: Path = FOLDER) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def recipe_path(argument: str) -> Path:
    """The file that a RECIPE argument means: a ready-made name, or a file.

    Raises UsageError with the names if it is neither.
    """
    return _path(argument, FOLDER, "recipe", "`clipmill recipe list` describes them")


def subset_recipe_path(argument: str) -> Path:
    """The same for a subset recipe."""
    return _path(
        argument, SUBSET_FOLDER, "subset recipe", "`clipmill subset recipes` describes them"
    )


def any_recipe_path(argument: str) -> Path:
    """A recipe of either kind, by name, or a file."""
    return (
        subset_recipe_path(argument) if argument in names(SUBSET_FOLDER) else recipe_path(argument)
    )


def names_without_downloads() -> list[str]:
    """Run recipes whose models, if any, come with Clipmill."""
    from clipmill.pipeline.recipes.recipe import load_recipe
    from clipmill.stages.references import DataFile

    def comes_along(value: ModelReference | DataFile) -> bool:
        own = value.path if isinstance(value, DataFile) else value.folder
        return bool(own or value.package)

    return [
        name
        for name in names()
        if all(
            comes_along(value)
            for stage in load_recipe(FOLDER / f"{name}.yaml").stages.values()
            for value in stage.references().values()
        )
    ]


def described(folder: Path = FOLDER) -> list[str]:
    """A recipe's name and purpose: one line each, wrapped on a terminal."""
    from clipmill.pipeline.recipes.recipe import read_yaml

    width = max(map(len, names(folder)), default=0)
    lines = []
    for name in names(folder):
        given = read_yaml(folder / f"{name}.yaml", expected="a recipe")
        mark = "" if given.get("verified", True) else " (unverified)"
        lines.append(_wrapped(f"{name:{width}}  ", f"{given.get('description', '')}{mark}"))
    return lines


def _wrapped(name: str, text: str) -> str:
    if not sys.stdout.isatty():
        return name + text
    columns = max(shutil.get_terminal_size().columns, len(name) + 20)
    return textwrap.fill(text, columns, initial_indent=name, subsequent_indent=" " * len(name))


def _path(argument: str, folder: Path, kind: str, hint: str) -> Path:
    known = names(folder)
    if argument in known:
        return folder / f"{argument}.yaml"
    path = Path(argument).expanduser()
    if path.is_file():
        return path
    if argument in {*names(FOLDER), *names(SUBSET_FOLDER)}:
        other = "clipmill run" if folder == SUBSET_FOLDER else "clipmill subset create"
        raise UsageError(
            f"{argument} is a recipe for `{other}`, not a {kind}; `clipmill recipe "
            f"show {argument}` prints it"
        )
    raise UsageError(
        f"no {kind} {argument!r}: no such file, and the ready-made ones are "
        f"{', '.join(known)}; {did_you_mean(argument, known)}{hint}"
    )
