"""Shell completion for values that typer can't know.

A completion runs at each Tab and must not fail: anything unreadable offers nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from clipmill.schemas.errors import ERROR_KINDS, ClipmillError
from clipmill.schemas.folders import AUDITS, RUNS, SUBSETS, json_files

Offers = Callable[[typer.Context, str], list[str]]


def _offered(find: Callable[[typer.Context, str], Iterable[str]]) -> Offers:
    @functools.wraps(find)
    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            return [word for word in find(ctx, incomplete) if word.startswith(incomplete)]
        except (ClipmillError, OSError, ValueError):
            return []

    # Typer reads the annotations, which wraps() hides behind text.
    complete.__annotations__ = {"ctx": typer.Context, "incomplete": str, "return": list[str]}
    del complete.__wrapped__
    return complete


@_offered
def run_recipes(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Ready-made recipes of runs; the shell itself adds files."""
    from clipmill.pipeline.recipes.ready_made import names

    return names()


@_offered
def subset_recipes(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    from clipmill.pipeline.recipes.ready_made import SUBSET_FOLDER, names

    return names(SUBSET_FOLDER)


@_offered
def any_recipes(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    from clipmill.pipeline.recipes.ready_made import FOLDER, SUBSET_FOLDER, names

    return [*names(FOLDER), *names(SUBSET_FOLDER)]


@_offered
def failure_kinds(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    return ERROR_KINDS


@_offered
def stages(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """The labels of the recipe named in the command."""
    return _stages(ctx)


@_offered
def settings(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """`stage.`, then `stage.setting=`; the last remaining one also with its default."""
    from clipmill.pipeline.recipes.gates import SETTING
    from clipmill.pipeline.recipes.recipe import Recipe
    from clipmill.pipeline.recipes.stage_classes import stage_class

    known = _stages(ctx)
    label, dot, _ = incomplete.partition(".")
    if not dot:
        labels = [name for name in known if name.startswith(label)]
        tops = [
            f"{name}="
            for name, info in Recipe.model_fields.items()
            if name not in ("stages", "ray") and name.startswith(label)
        ]
        if len(labels) != 1 or tops:
            return [*(f"{name}." for name in labels), *tops]
        label = labels[0]
    if label not in known:
        return []
    fields = stage_class(known[label], Path()).model_fields
    defaults = {SETTING: None, **{name: info.default for name, info in fields.items()}}
    left = {
        f"{label}.{name}=": default
        for name, default in defaults.items()
        if f"{label}.{name}=".startswith(incomplete)
    }
    # Bash adds a space after a single suggestion: a second one prevents that.
    return [*left, *(f"{word}{_yaml(default)}" for word, default in left.items() if len(left) == 1)]


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float | str) else ""


@_offered
def subset_names(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """The frozen subsets of the dataset named in the command."""
    folder = _dataset(ctx) / SUBSETS
    return sorted(place.name for place in folder.iterdir() if not place.name.startswith("."))


@_offered
def subsets_and_recipes(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    return [*subset_recipes(ctx, incomplete), *subset_names(ctx, incomplete)]


@_offered
def audit_names(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    return [place.stem for place in json_files(_dataset(ctx) / AUDITS)]


@_offered
def run_ids(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    return [place.stem for place in json_files(_dataset(ctx) / RUNS)]


@_offered
def clip_columns(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    from clipmill.pipeline.catalog.views import VIEWS
    from clipmill.stages.clip_signals import CLIP_SIGNALS

    return [*(name for name, _ in VIEWS["clips"]), *CLIP_SIGNALS.names]


def _given(ctx: typer.Context, name: str, fits: Callable[[str], bool]) -> str | None:
    """An argument of the command; typer has no name for it while an option lacks its value."""
    named: Any = ctx.params.get(name)
    if named is not None:
        return str(named)
    return next((word for word in ctx.args if fits(word)), None)


def _dataset(ctx: typer.Context) -> Path:
    given = _given(ctx, "dataset", lambda word: Path(word).expanduser().is_dir())
    if given is None:
        raise ValueError("the command has no dataset yet")
    return Path(given).expanduser()


def _stages(ctx: typer.Context) -> dict[str, str]:
    """Label and stage of each entry of the recipe in the command, else the built-in stages."""
    from clipmill.pipeline.recipes.ready_made import names, recipe_path
    from clipmill.pipeline.recipes.recipe import read_yaml
    from clipmill.stages.built_in import built_in_stage_names

    given = _given(ctx, "recipe", lambda word: word in names() or word.endswith((".yaml", ".yml")))
    if given is None:
        return {name: name for name in built_in_stage_names() if name != "scan_videos"}
    found = read_yaml(recipe_path(given), expected="a recipe").get("stages") or {}
    return {label: (entry or {}).get("stage", label) for label, entry in found.items()}
