"""Reads the clips that a recipe chooses from, once: one narrow row per clip, as the rules need it.

All SQL of a recipe runs in this one query over `clips`, so that every rule sees the same snapshot
even during a run, and captions are read only if a rule names them and are never kept. The rules
then work only on numbers: a row number, the video's number, the clip's milliseconds, and a column
for each expression and each random draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.dataset.shards import committed_shards
from clipmill.pipeline.subsets.expressions import Comparison, Expressions, errors_at, is_numeric
from clipmill.pipeline.subsets.rules import (
    Cap,
    Deduplicate,
    Percentile,
    Quota,
    Rule,
    Sample,
    Stratify,
    Where,
)
from clipmill.pipeline.subsets.scorers import ResolvedScorer
from clipmill.pipeline.subsets.subset_recipe import SubsetRecipe
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.safe_rectangles import IS_CROPPED, SAFE
from clipmill.schemas.sql_text import quoted

CANDIDATES = "work.candidates"
ALL = "work.reach_0"
_DESCRIBED = ("similarity", "aesthetic", "motion", "sharpness", "brightness", "height")


@dataclass(frozen=True)
class RuleColumns:
    """The columns of the candidates that a rule needs."""

    values: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    chance: str = ""
    comparisons: tuple[tuple[str, Comparison], ...] = ()
    uncropped: str = ""
    """Whether a clip passes as it is, of a rule that others pass only if they are cropped."""
    conditions: tuple[tuple[str, str], ...] = ()
    """Columns and text of the conditions that AND joins in a predicate, if there are several."""

    def names(self) -> Iterator[str]:
        yield from (name for name in self.values if name != "video")
        yield from (term.partition(" ")[0] for term in self.order)
        yield from (name for name, _ in self.comparisons)
        if self.chance:
            yield self.chance
        if self.uncropped:
            yield self.uncropped
        yield from (name for name, _ in self.conditions)


@dataclass
class Candidates:
    """The candidates as tables of the catalog's connection."""

    catalog: Catalog
    seed: int
    columns: dict[int, RuleColumns] = field(default_factory=dict)
    described: dict[str, str] = field(default_factory=dict)
    """Number to describe a subset by -> its column, e.g. {"aesthetic": "k3"}."""
    shards: dict[str, list[str]] = field(default_factory=dict)
    """Per step, the shards that were committed when reading began."""


class _Columns:
    """Expressions to compute once per clip, each under a short name."""

    def __init__(self) -> None:
        self.by_sql: dict[str, str] = {}
        self.places: dict[str, str] = {}

    def add(self, sql: str, place: str) -> str:
        name = self.by_sql.setdefault(sql, f"k{len(self.by_sql)}")
        self.places.setdefault(name, place)
        return name


def read_candidates(
    catalog: Catalog,
    recipe: SubsetRecipe,
    scorers: Mapping[str, ResolvedScorer],
    *,
    comparisons: bool = False,
    conditions: bool = False,
) -> Candidates:
    """Checks every expression of the recipe and reads the clips.

    `comparisons` also keeps the left sides of a predicate's comparisons, to find the clips next
    to each threshold; `conditions` whether clips pass each of the conditions that AND joins.
    """
    found = Candidates(catalog, recipe.seed)
    wanted = _Columns()
    relation = _with_roles(catalog, scorers)
    connection = catalog.connection
    catalog.make_work()
    with checked_expressions(catalog, scorers) as checker:
        for rule in recipe.rules:
            found.columns[rule.number] = _rule_columns(
                rule, recipe.seed, checker, wanted, comparisons, conditions
            )
        names = [name for name, *_ in connection.execute("SELECT * FROM clips").description]
        for name in dict.fromkeys([*_DESCRIBED, *scorers]):
            if name in names and is_numeric(checker.type_of(quoted(name), name)):
                found.described[name] = wanted.add(quoted(name), name)
    found.shards = committed(catalog)
    with _shown_as_clips(connection, f"TEMP VIEW clips AS {relation}"):
        _read(found, wanted)
    return found


@contextmanager
def checked_expressions(
    catalog: Catalog, scorers: Mapping[str, ResolvedScorer]
) -> Iterator[Expressions]:
    """Checks expressions as the rules use them: with the scorers' columns under their names."""
    catalog.make_views("clips")
    # Expressions are checked against an empty table: binding the view lists every folder.
    empty = f"TEMP TABLE clips AS {_with_roles(catalog, scorers)} LIMIT 0"
    with _shown_as_clips(catalog.connection, empty):
        yield Expressions(catalog)


@contextmanager
def _shown_as_clips(connection: Any, made: str) -> Iterator[None]:
    """Temporarily replaces the `clips` view; temp names are looked up first."""
    connection.execute(f"CREATE {made}")
    try:
        yield
    finally:
        connection.execute(f"DROP {made.split()[1]} temp.clips")


def committed(catalog: Catalog) -> dict[str, list[str]]:
    """The committed shards of every step."""
    return {
        step.step: committed_shards(Path(step.folder)) if step.folder else []
        for step in catalog.layout.steps
    }


def _with_roles(catalog: Catalog, scorers: Mapping[str, ResolvedScorer]) -> str:
    """`clips` with each scorer's column under the name that the rules use for it."""
    columns = [name for name, *_ in catalog.execute("SELECT * FROM clips LIMIT 0").description]
    replaced: list[str] = []
    added: list[str] = []
    for role, scorer in scorers.items():
        if scorer.column != role:
            (replaced if role in columns else added).append(
                f"{quoted(scorer.column)} AS {quoted(role)}"
            )
    star = f"* REPLACE ({', '.join(replaced)})" if replaced else "*"
    return f"SELECT {', '.join([star, *added])} FROM memory.main.clips"


def _rule_columns(
    rule: Rule,
    seed: int,
    checker: Expressions,
    wanted: _Columns,
    comparisons: bool,
    conditions: bool,
) -> RuleColumns:
    body, place = rule.body, rule.place
    values: list[str] = []
    order: list[str] = []
    compared: list[tuple[str, Comparison]] = []
    uncropped = ""
    parts: list[tuple[str, str]] = []
    by: str | None = None
    if isinstance(body, Where):
        kind = checker.type_of(body.expression, place)
        if kind not in ("BOOLEAN", '"NULL"'):
            raise UsageError(
                f"{place}: expected a condition that is true or false, but this is a "
                f"{kind}: {body.expression}"
                + (
                    " (in a shell, put it in quotes: < and > redirect)"
                    if body.expression.isidentifier()
                    else ""
                )
            )
        if rule.crop:
            _check_safe_columns(checker, place)
            uncropped = wanted.add(_passes(body.expression), place)
        values.append(wanted.add(_passes(body.expression, rule.crop), place))
        if conditions and len(texts := checker.conjuncts(body.expression, place)) > 1:
            parts = [(wanted.add(_passes(text, rule.crop), place), text) for text in texts]
        if comparisons:
            compared = [
                (wanted.add(f"({one.left})", place), one)
                for one in checker.comparisons(body.expression, place)
            ]
    elif isinstance(body, Percentile):
        values.append(wanted.add(_number(body.column, checker, place), place))
    elif isinstance(body, Cap | Quota):
        values.append(_group(body.per, checker, wanted, place))
        by = body.by
    elif isinstance(body, Sample) and body.per is not None:
        values.append(_group(body.per, checker, wanted, place))
    elif isinstance(body, Sample) and body.weight not in ("uniform", "one_per_video"):
        values.append(wanted.add(f"CAST({_number(body.weight, checker, place)} AS DOUBLE)", place))
    elif isinstance(body, Stratify):
        for expression in body.by:
            checker.type_of(expression, place)
            values.append(wanted.add(f"CAST(({expression}\n) AS VARCHAR)", place))
    elif isinstance(body, Deduplicate):
        by = body.prefer
        if body.by == "bytes":
            values.append(wanted.add(_SAME_BYTES, place))
        if body.within is not None:
            checker.type_of(body.within, place)
            values.append(wanted.add(f"({body.within}\n)", place))
    if by is not None:
        order = [
            f"{wanted.add(f'({term.expression})', place)} {term.direction}"
            for term in checker.order(by, place)
        ]
    chance = ""
    if not isinstance(body, Where | Percentile):
        # A clip has the same number on every machine, whatever file or thread it comes from.
        chance = wanted.add(f"md5_number_lower(clip_id || ':{seed}:{rule.number}')", place)
    return RuleColumns(
        tuple(values), tuple(order), chance, tuple(compared), uncropped, tuple(parts)
    )


def _group(per: str, checker: Expressions, wanted: _Columns, place: str) -> str:
    """The column with a clip's group."""
    checker.type_of(per, place)
    return "video" if per.strip() == "video_id" else wanted.add(f"({per}\n)", place)


def _passes(predicate: str, crop: str | None = None) -> str:
    """Whether a clip passes a predicate, or would if it were cropped."""
    passes = f"CAST(({predicate}\n) AS BOOLEAN)"
    return f"({passes} OR {IS_CROPPED})" if crop else passes


def _check_safe_columns(checker: Expressions, place: str) -> None:
    try:
        checker.type_of(IS_CROPPED, place)
    except UsageError as error:
        raise UsageError(
            f"{place}: crop: safe reads the columns {', '.join(SAFE)} of clips, and this catalog "
            "lacks some: set split_clips.signals=true, or add a stage that makes them "
            "(docs/export.md#cropping has one)"
        ) from error


# Bytes are identified by file, and a file's clips by their spans.
_SAME_BYTES = (
    "md5_number((SELECT any_value(sha256) FROM videos AS _file WHERE "
    "_file.video_id = clips.video_id) || ':' || "
    "CAST(round(start_seconds * 1000) AS BIGINT) || ':' || "
    "CAST(round(end_seconds * 1000) AS BIGINT))"
)


def _number(expression: str, checker: Expressions, place: str) -> str:
    """A numeric expression; NaN counts as no value."""
    kind = checker.type_of(expression, place)
    if not is_numeric(kind):
        raise UsageError(f"{place}: expected a number, but {expression} is a {kind}")
    if kind in ("FLOAT", "DOUBLE"):
        return f"if(isnan({expression}\n), NULL, {expression}\n)"
    return f"({expression}\n)"


def _read(candidates: Candidates, wanted: _Columns) -> None:
    catalog, connection = candidates.catalog, candidates.catalog.connection
    picked = "".join(f", {sql} AS {name}" for sql, name in wanted.by_sql.items())
    if _SAME_BYTES in wanted.by_sql:
        catalog.make_views("videos")
    try:
        with errors_at("the recipe's expressions"):
            connection.execute(
                f"CREATE OR REPLACE TABLE {CANDIDATES} AS SELECT clip_id, video_id, CAST(round("
                f"coalesce(duration_seconds, 0) * 1000) AS BIGINT) AS ms{picked} FROM clips"
            )
    except UsageError:
        _blame(connection, wanted)
        raise
    except ClipmillError as error:
        raise ClipmillError(
            f"{error}\nGive it more with --memory-limit, or bring the dataset's "
            "index up to date with `clipmill run`"
        ) from error
    # A table's row number identifies a clip and is cheap to sort and join.
    connection.execute(
        f"CREATE OR REPLACE TABLE work.videos AS SELECT DISTINCT video_id FROM {CANDIDATES}"
    )
    used = dict.fromkeys(name for rule in candidates.columns.values() for name in rule.names())
    own = "".join(f", {name}" for name in used)
    connection.execute(
        f"CREATE OR REPLACE TABLE {ALL} AS SELECT c.rowid AS id, v.rowid AS video, ms{own} "
        f"FROM {CANDIDATES} AS c JOIN work.videos AS v ON v.video_id = c.video_id"
    )
    for name in used:
        if name not in candidates.described.values():
            connection.execute(f"ALTER TABLE {CANDIDATES} DROP COLUMN {name}")


def _blame(connection: Any, wanted: _Columns) -> None:
    """Raises the error of the expression that fails on some clip, with its rule's name."""
    for sql, name in wanted.by_sql.items():
        with errors_at(wanted.places[name]):
            connection.execute(f"SELECT count(x) FROM (SELECT {sql} AS x FROM clips)").fetchall()
