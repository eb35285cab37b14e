"""Applies the ready-made recipes to a catalog: what each keeps, and where they agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.subsets.candidates import CANDIDATES, read_candidates
from clipmill.pipeline.subsets.published import PublishedFunnel
from clipmill.pipeline.subsets.rule_engine import RuleEngine, Size
from clipmill.pipeline.subsets.scorers import Missing, find_scorers
from clipmill.pipeline.subsets.subset_recipe import SubsetRecipe, load_subset_recipe
from clipmill.schemas.errors import UsageError

_KEPT = "work.kept_by_recipes"


@dataclass(frozen=True)
class Applied:
    """What one recipe keeps."""

    recipe: str
    verified: bool
    kept: Size
    published: PublishedFunnel | None

    def plain(self, catalog_clips: int) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "verified": self.verified,
            "kept": self.kept.plain(),
            "share": _per_cent(self.kept.clips, catalog_clips),
            "published_share": self.published and self.published.share,
            "published_verified": self.published and self.published.verified,
        }


@dataclass(frozen=True)
class Unable:
    """A recipe that the catalog has no columns for."""

    recipe: str
    missing: tuple[Missing, ...]
    message: str | None = None
    """The problem, if it isn't a missing column."""


@dataclass(frozen=True)
class Pair:
    """Two recipes: how many clips both keep, and of all that either keeps, which share that is."""

    recipes: tuple[str, str]
    both: int
    jaccard: float | None


@dataclass(frozen=True)
class Agreement:
    """The recipes that could be applied, every two of them, and those that could not."""

    clips: int
    applied: tuple[Applied, ...]
    pairs: tuple[Pair, ...]
    unable: tuple[Unable, ...]

    def plain(self) -> dict[str, Any]:
        return {
            "applied": [one.plain(self.clips) for one in self.applied],
            "pairs": [asdict(pair) for pair in self.pairs],
            "unable": [asdict(one) for one in self.unable],
        }


def compare_recipes(
    catalog: Catalog,
    explained: SubsetRecipe,
    files: Sequence[Path],
    on_step: Callable[[str], None] = lambda said: None,
) -> Agreement:
    """Applies `explained` and the recipes in `files`, with their own parameters and seeds."""
    applied: list[Applied] = []
    unable: list[Unable] = []
    catalog.make_views("clips")
    connection = catalog.connection
    catalog.make_work()
    connection.execute(f"CREATE OR REPLACE TABLE {_KEPT} (clip UBIGINT, recipe BIGINT)")
    clips = 0
    try:
        recipes = [explained]
        for file in files:
            loaded = load_subset_recipe(file, ready_made=file.parent)
            # The same file without other parameters would only repeat itself.
            if loaded.texts != explained.texts or loaded.parameters != explained.parameters:
                recipes.append(loaded)
        for recipe in recipes:
            shown = recipe.name
            if recipe is not explained and shown == explained.name:
                shown += " (as published)"
            on_step(f"recipe {shown}")
            found, missing = find_scorers(recipe.scorers, catalog, recipe=recipe.name)
            if missing:
                unable.append(Unable(shown, tuple(missing)))
                continue
            try:
                candidates = read_candidates(catalog, recipe, found)
                with RuleEngine(candidates) as engine:
                    clips, kept = _keep(engine, recipe, len(applied))
            except UsageError as error:
                unable.append(Unable(shown, (), str(error)))
                continue
            applied.append(Applied(shown, recipe.verified, kept, recipe.published))
        masks = connection.execute(
            "SELECT mask, count(*) FROM (SELECT bit_or(1::BIGINT << recipe) AS mask "
            f"FROM {_KEPT} GROUP BY clip) GROUP BY mask"
        ).fetchall()
    finally:
        connection.execute(f"DROP TABLE {_KEPT}")
    pairs = tuple(
        _pair((applied[i].recipe, applied[j].recipe), 1 << i, 1 << j, masks)
        for i, j in combinations(range(len(applied)), 2)
    )
    return Agreement(clips, tuple(applied), pairs, tuple(unable))


def _keep(engine: RuleEngine, recipe: SubsetRecipe, number: int) -> tuple[int, Size]:
    """Adds the clips that a recipe keeps; returns the number of all clips, and what it keeps."""
    whole = 0
    for outcome, _, target in engine.funnel(recipe.rules):
        whole = whole or outcome.before.clips
        last, kept = target, outcome.after
    engine.execute(
        f"INSERT INTO {_KEPT} SELECT hash(c.clip_id), {number} FROM {last} AS k "
        f"JOIN {CANDIDATES} AS c ON c.rowid = k.id"
    )
    engine.drop(last)
    return whole, kept


def _pair(names: tuple[str, str], one: int, other: int, masks: Sequence[tuple[int, int]]) -> Pair:
    both = sum(clips for mask, clips in masks if mask & one and mask & other)
    either = sum(clips for mask, clips in masks if mask & (one | other))
    return Pair(names, both, round(both / either, 4) if either else None)


def _per_cent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 4) if whole else None
