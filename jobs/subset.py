"""`clipmill subset`: explains recipes, freezes subsets, and lists both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import clipmill
from clipmill.jobs.explained import (
    print_agreement,
    print_correlations,
    print_published,
    print_worth,
)
from clipmill.jobs.formats import plain
from clipmill.jobs.funnel import print_funnel, print_near
from clipmill.jobs.progress_bars import saying
from clipmill.jobs.sql import answer
from clipmill.pipeline.recipes.ready_made import SUBSET_FOLDER, described, subset_recipe_path
from clipmill.schemas.errors import UsageError, printable
from clipmill.schemas.words import counted, plain_hours


def create(
    dataset: Path,
    recipe: str | None,
    *,
    where: str | None = None,
    name: str | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    memory_limit: str | None = None,
) -> None:
    """Freezes a subset, and prints its funnel and hash."""
    _check_choice(recipe, where, overrides)
    with clipmill.open(dataset, memory_limit=memory_limit) as opened, saying() as say:
        subset = opened.create_subset(
            recipe, where=where, name=name, seed=seed, settings=overrides, on_step=say
        )
    name, info = subset.name, subset.info
    if subset.is_new:
        print_funnel(info, info["catalog"], info["funnel"])
    else:
        print(f"The subset {name!r} already exists, with the same clips and rules: nothing to do.")
    print(
        f"{name}: {counted(info['n_clips'], 'clip')} of {counted(info['n_videos'], 'video')}, "
        f"{plain_hours(info['hours'])}, in {subset.folder}\n{subset.hash}"
    )


def explain(
    dataset: Path,
    recipe: str | None,
    *,
    where: str | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    near: int = 3,
    scores: bool = False,
    recipes: bool = False,
    format: str = "table",
    memory_limit: str | None = None,
) -> None:
    """Prints what a recipe would keep, rule by rule; freezes nothing."""
    _check_choice(recipe, where, overrides)
    with clipmill.open(dataset, memory_limit=memory_limit) as opened, saying() as say:
        found = plain(
            opened.explain(
                recipe,
                where=where,
                seed=seed,
                settings=overrides,
                near=near,
                scores=scores,
                recipes=recipes,
                on_step=say,
            )
        )
    if format == "json":
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    print_funnel(found, found["catalog"], found["funnel"])
    print_worth(found)
    print_published(found["published"])
    print_near(found["funnel"])
    if scores:
        print_correlations(found["correlations"])
    if recipes:
        print_agreement(found["recipes"], found["catalog"]["clips"])


def list_subsets(dataset: Path, *, format: str = "table", output: Path | None = None) -> None:
    """The frozen subsets of a dataset, oldest first."""
    columns = "*"
    if format == "table":
        columns = (
            "name, recipe, strftime(created_at, '%Y-%m-%d %H:%M') AS created_at, n_clips, "
            "n_videos, round(hours, 2) AS hours"
        )
    query = f"SELECT {columns} FROM subsets ORDER BY subsets.created_at, name"
    with clipmill.open(dataset) as opened:
        answer(opened, query, format, output)


def show(dataset: Path, name: str, *, format: str = "markdown") -> None:
    """Prints the data card of a frozen subset."""
    with clipmill.open(dataset) as opened:
        subset = opened.load_subset(name)
        if format == "json":
            audits = [
                {key: value for key, value in audit.plain().items() if key != "sample"}
                for audit in subset.audits
            ]
            found = plain({**subset.info, "since": subset.changes(), "audits": audits})
            print(json.dumps(found, indent=2, ensure_ascii=False))
            return
        print(printable(subset.card()), end="")


def recipes(name: str | None) -> None:
    """Names and purposes of the ready-made subset recipes, or the text of one."""
    if name is not None:
        print(subset_recipe_path(name).read_text("utf-8"), end="")
        return
    print(*described(SUBSET_FOLDER), sep="\n")


def _check_choice(recipe: str | None, where: str | None, overrides: Sequence[str]) -> None:
    if (recipe is None) == (where is None):
        raise UsageError(
            "give a RECIPE (`clipmill subset recipes` lists the ready-made ones), or "
            "a predicate with --where"
            + (", not both" if where else ', e.g. --where "aesthetic > 5"')
        )
    if where is not None and overrides:
        raise UsageError(
            f"--set {overrides[0]}: a predicate has no parameters; put the value into --where"
        )
