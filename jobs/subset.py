"""`clipmill subset`: explains recipes, freezes subsets, and lists both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clipmill.jobs.formats import plain, write_rows
from clipmill.jobs.funnel import print_funnel, print_near
from clipmill.jobs.progress_bars import saying
from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.catalog.user_sql import readable_errors
from clipmill.pipeline.dataset.versions import code_version
from clipmill.pipeline.exports.output_places import check_output
from clipmill.pipeline.recipes.ready_made import SUBSET_FOLDER, described, subset_recipe_path
from clipmill.pipeline.subsets.data_card import data_card
from clipmill.pipeline.subsets.explain import explain_recipe
from clipmill.pipeline.subsets.freeze import check_name, create_subset, load_subset, still_there
from clipmill.pipeline.subsets.subset_recipe import (
    SubsetRecipe,
    load_subset_recipe,
    predicate_recipe,
)
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
    loaded = _load(recipe, where, overrides, seed)
    name = check_name(name if name is not None else loaded.name)
    with _catalog(dataset, memory_limit) as catalog, saying() as say, readable_errors():
        subset, is_new = create_subset(
            catalog, loaded, name=name, code_version=code_version(), on_step=say
        )
    info = subset.info
    if not is_new:
        print(f"The subset {name!r} already exists, with the same clips and rules: nothing to do.")
    else:
        print_funnel(info, info["catalog"], info["funnel"])
    print(
        f"{name}: {counted(info['n_clips'], 'clip')} of {counted(info['n_videos'], 'video')}, "
        f"{plain_hours(info['hours'])}, in {subset.folder}\n{info['hash']}"
    )


def explain(
    dataset: Path,
    recipe: str | None,
    *,
    where: str | None = None,
    seed: int | None = None,
    overrides: Sequence[str] = (),
    near: int = 3,
    format: str = "table",
    memory_limit: str | None = None,
) -> None:
    """Prints what a recipe would keep, rule by rule; freezes nothing."""
    if format not in ("table", "json"):
        raise UsageError(f"--format {format}: allowed: table, json")
    loaded = _load(recipe, where, overrides, seed)
    with _catalog(dataset, memory_limit) as catalog, saying() as say, readable_errors():
        found = plain(explain_recipe(catalog, loaded, near=near, on_step=say).plain())
    if format == "json":
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    print_funnel(found, found["catalog"], found["funnel"])
    print_near(found["funnel"])


def list_subsets(dataset: Path, *, format: str = "table", output: Path | None = None) -> None:
    """The frozen subsets of a dataset, oldest first."""
    check_output(dataset, output)
    columns = "*"
    if format == "table":
        columns = (
            "name, recipe, strftime(created_at, '%Y-%m-%d %H:%M') AS created_at, n_clips, "
            "n_videos, round(hours, 2) AS hours"
        )
    with open_catalog(dataset) as catalog:
        rows = catalog.ask(f"SELECT {columns} FROM subsets ORDER BY subsets.created_at, name")
        with readable_errors():
            write_rows(rows, format, output)


def show(dataset: Path, name: str, *, format: str = "markdown") -> None:
    """Prints the data card of a frozen subset."""
    with open_catalog(dataset) as catalog, readable_errors():
        subset = load_subset(dataset, name)
        since = still_there(catalog, subset)
    if format == "json":
        print(json.dumps(plain({**subset.info, "since": since}), indent=2, ensure_ascii=False))
        return
    print(printable(data_card(subset, since, SUBSET_FOLDER)), end="")


def recipes(name: str | None) -> None:
    """Names and purposes of the ready-made subset recipes, or the text of one."""
    if name is not None:
        print(subset_recipe_path(name).read_text("utf-8"), end="")
        return
    print(*described(SUBSET_FOLDER), sep="\n")


def _load(
    recipe: str | None, where: str | None, overrides: Sequence[str], seed: int | None
) -> SubsetRecipe:
    """The selection: a recipe, or a predicate instead."""
    if (recipe is None) == (where is None):
        raise UsageError(
            "give a RECIPE (`clipmill subset recipes` lists the ready-made ones), or "
            "a predicate with --where"
            + (", not both" if where else ', e.g. --where "aesthetic > 5"')
        )
    if where is not None:
        if overrides:
            raise UsageError(
                f"--set {overrides[0]}: a predicate has no parameters; put the value into --where"
            )
        return predicate_recipe(where, seed=seed)
    assert recipe is not None  # one of the two is given
    return load_subset_recipe(
        subset_recipe_path(recipe), overrides=overrides, seed=seed, ready_made=SUBSET_FOLDER
    )


@contextmanager
def _catalog(dataset: Path, memory_limit: str | None) -> Iterator[Catalog]:
    """The catalog, for a recipe that may be a stranger's."""
    with open_catalog(dataset, memory_limit=memory_limit) as catalog, catalog.bounded():
        yield catalog
