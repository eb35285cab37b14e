"""Shows what a recipe would do before freezing: a funnel, and the clips at each threshold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.catalog.views import usual_caption
from clipmill.pipeline.recipes.ready_made import SUBSET_FOLDER, names
from clipmill.pipeline.subsets.agreement import Agreement, compare_recipes
from clipmill.pipeline.subsets.candidates import ALL, CANDIDATES, read_candidates
from clipmill.pipeline.subsets.correlations import Correlations, score_correlations
from clipmill.pipeline.subsets.published import beside_own
from clipmill.pipeline.subsets.rule_engine import Outcome, RuleEngine, Size, Threshold
from clipmill.pipeline.subsets.rules import Percentile, Rule, Where
from clipmill.pipeline.subsets.scorers import ResolvedScorer, resolve
from clipmill.pipeline.subsets.subset_recipe import SubsetRecipe
from clipmill.pipeline.subsets.worth import Worth, is_costly, rule_worth
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import UsageError
from clipmill.schemas.words import counted

_OPPOSITE = {">=": "<", ">": "<=", "<=": ">", "<": ">="}


@dataclass(frozen=True)
class NearClip:
    """A clip near a threshold."""

    clip_id: str
    value: float
    stays: bool
    """Whether the rule keeps it: a predicate may have other parts."""
    caption: str | None


@dataclass
class Neighbourhood:
    """The clips on both sides of one threshold, among those that reach the rule."""

    rule: int
    column: str
    operator: str
    value: float
    inside: list[NearClip] = field(default_factory=list)
    outside: list[NearClip] = field(default_factory=list)


@dataclass
class Explanation:
    """The complete result of `explain`."""

    recipe: SubsetRecipe
    scorers: Mapping[str, ResolvedScorer]
    catalog: Size
    outcomes: list[Outcome]
    alone: dict[int, Outcome]
    near: list[Neighbourhood]
    regained: Size | None = None
    """The clips of the result that pass only if they are cropped; None if no rule allows it."""
    worth: Worth | None = None
    """What the rules are worth, whatever their order; None if there are too many rules."""
    scores: Correlations | None = None
    agreement: Agreement | None = None

    @property
    def result(self) -> Size:
        return self.outcomes[-1].after

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        rules = []
        for outcome in self.outcomes:
            number = outcome.rule.number
            alone = self.alone[number]
            rules.append(
                {
                    **outcome.plain(),
                    "alone": {
                        "takes": {"clips": alone.took, "because_null": alone.nulls},
                        "leaves": alone.after.plain(),
                    },
                    "worth": self.worth and self.worth.rules[number].plain(self.worth.loss),
                    "near": [
                        {key: value for key, value in asdict(one).items() if key != "rule"}
                        for one in self.near
                        if one.rule == number
                    ],
                }
            )
        found = {
            **describe_recipe(self.recipe, self.scorers),
            "catalog": self.catalog.plain(),
            "funnel": rules,
            "result": self.result.plain(),
            "regained": self.regained and self.regained.plain(),
            "worth": self.worth and self.worth.plain(),
            "published": published_beside(self.recipe, rules, self.catalog.clips),
        }
        if self.scores is not None:
            found["correlations"] = self.scores.plain()
        if self.agreement is not None:
            found["recipes"] = self.agreement.plain()
        return found


def published_beside(
    recipe: SubsetRecipe, rules: Sequence[Mapping[str, Any]], clips: int
) -> dict[str, Any] | None:
    """The recipe's published funnel with the shares of this one, if there is one."""
    return beside_own(recipe.published, rules, clips) if recipe.published else None


def describe_recipe(recipe: SubsetRecipe, scorers: Mapping[str, ResolvedScorer]) -> dict[str, Any]:
    """A recipe with all parameters filled in, as plain data."""
    return {
        "recipe": recipe.name,
        "where": recipe.where,
        "description": recipe.description,
        "source": recipe.source,
        "verified": recipe.verified,
        "extends": recipe.extends,
        "seed": recipe.seed,
        "parameters": dict(recipe.parameters),
        "overrides": list(recipe.overrides),
        "scorers": {role: scorer.record() for role, scorer in scorers.items()},
    }


def resolve_scorers(catalog: Catalog, recipe: SubsetRecipe) -> Mapping[str, ResolvedScorer]:
    """The columns for the recipe's scorers; a recipe without scorers needs no run."""
    return resolve(recipe.scorers, catalog, recipe=recipe.name) if recipe.scorers else {}


def explain_recipe(
    catalog: Catalog,
    recipe: SubsetRecipe,
    *,
    near: int = 3,
    scores: bool = False,
    recipes: bool = False,
    on_step: Callable[[str], None] = lambda said: None,
) -> Explanation:
    """Applies a recipe without freezing anything.

    `near` clips are shown on each side of a threshold. `scores` adds correlations between the
    catalog's scores, `recipes` what the ready-made recipes keep. `on_step` is called with the
    current step.
    """
    scorers = resolve_scorers(catalog, recipe)
    on_step("reading the clips")
    candidates = read_candidates(catalog, recipe, scorers, comparisons=near > 0, conditions=True)
    with RuleEngine(candidates) as engine:
        outcomes: list[Outcome] = []
        alone: dict[int, Outcome] = {}
        found: list[Neighbourhood] = []
        kept_alone: dict[int, str] = {}

        def said(rule: Rule) -> None:
            on_step(f"rule {rule.number} of {len(recipe.rules)}: {rule.verb}")

        whole = engine.size(ALL)
        last = ALL
        for outcome, source, target in engine.funnel(recipe.rules, said):
            last = target
            rule = outcome.rule
            outcomes.append(outcome)
            if near > 0:
                found += _neighbourhoods(engine, outcome, source, target, near)
            table = target
            if source == ALL:
                alone[rule.number] = outcome
            else:
                on_step(f"rule {rule.number} of {len(recipe.rules)} alone: {rule.verb}")
                table = "work.alone"
                alone[rule.number] = engine.apply(rule, ALL, table, whole)
            if is_costly(rule):
                kept_alone[rule.number] = f"work.alone_{rule.number}"
                engine.execute(
                    f"CREATE OR REPLACE TABLE {kept_alone[rule.number]} AS SELECT id FROM {table}"
                )
            engine.drop("work.alone")
        regained = engine.regained(recipe.rules, last)
        worth = rule_worth(engine, recipe.rules, kept_alone, on_step)
        for name in kept_alone.values():
            engine.drop(name)
        _add_captions(catalog, found)
    made = Explanation(recipe, scorers, whole, outcomes, alone, found, regained, worth)
    if scores:
        on_step("correlations between scores")
        made.scores = score_correlations(catalog)
    if recipes:
        files = [SUBSET_FOLDER / f"{name}.yaml" for name in names(SUBSET_FOLDER)]
        made.agreement = compare_recipes(catalog, recipe, files, on_step)
    return made


def _neighbourhoods(
    engine: RuleEngine, outcome: Outcome, source: str, target: str, near: int
) -> list[Neighbourhood]:
    rule = outcome.rule
    columns = engine.candidates.columns[rule.number]
    thresholds: list[tuple[str, str, str, str]] = []  # column, display name, operator, SQL
    if isinstance(rule.body, Percentile):
        thresholds = [
            (columns.values[0], rule.body.column, one.operator, repr(one.value))
            for one in outcome.thresholds
        ]
    elif isinstance(rule.body, Where):
        thresholds = [
            (name, one.left, one.operator, one.right) for name, one in columns.comparisons
        ]
    connection = engine.candidates.catalog.connection
    found = []
    for column, shown, operator, number in thresholds:
        # A percentile's threshold is a value of the column: comparing them as such makes them
        # equal.
        limit = f"CAST({number} AS DOUBLE)" if isinstance(rule.body, Percentile) else f"({number})"
        (value,) = connection.execute(f"SELECT CAST({limit} AS DOUBLE)").fetchall()[0]
        sides = []
        for sign in (operator, _OPPOSITE[operator]):
            direction = "ASC" if sign.startswith(">") else "DESC"
            # Clips with the same value are ordered by hash, so that they are not all from one
            # video.
            side = f"FROM {source} WHERE {column} {sign} {limit}"
            last, reaches = ("max", "<=") if direction == "ASC" else ("min", ">=")
            rows = connection.execute(
                f"SELECT c.clip_id, CAST(n.v AS DOUBLE), n.id IN (SELECT id FROM {target}) FROM "
                f"(SELECT id, {column} AS v {side} AND {column} {reaches} (SELECT {last}(v) FROM "
                f"(SELECT {column} AS v {side} ORDER BY v {direction} LIMIT {near}))) AS n "
                f"JOIN {CANDIDATES} AS c ON c.rowid = n.id "
                f"ORDER BY n.v {direction}, md5_number_lower(c.clip_id) LIMIT {near}"
            ).fetchall()
            sides.append([NearClip(clip, number, stays, None) for clip, number, stays in rows])
        found.append(Neighbourhood(rule.number, shown, operator, value, *sides))
        if isinstance(rule.body, Where):
            outcome.thresholds.append(Threshold(shown, operator, value))
    return found


def _add_captions(catalog: Catalog, found: list[Neighbourhood]) -> None:
    clips = {clip.clip_id for one in found for clip in (*one.inside, *one.outside)}
    if not clips:
        return
    connection = catalog.connection
    connection.execute(
        "CREATE OR REPLACE TABLE work.shown AS SELECT unnest(?) AS clip_id", [sorted(clips)]
    )
    caption = usual_caption(catalog.layout.steps)
    rows = connection.execute(
        f"SELECT clip_id, {caption} FROM clips SEMI JOIN work.shown USING (clip_id)"
    ).fetchall()
    captions = dict(rows)
    for one in found:
        for side in (one.inside, one.outside):
            side[:] = [
                NearClip(clip.clip_id, clip.value, clip.stays, captions.get(clip.clip_id))
                for clip in side
            ]


def require_clips(
    outcomes: list[Outcome], whole: Size, recipe: SubsetRecipe, dataset: Path
) -> None:
    """Raises UsageError if a recipe keeps nothing, with the rule that removed the last clips."""
    if not whole.clips:
        raise UsageError(
            f"{recipe.name}: the catalog has no clips yet; see "
            f"`clipmill status {shell_word(dataset)}`"
        )
    for outcome in outcomes:
        if not outcome.after.clips:
            null = f", {outcome.nulls:,} of them because a value is null" if outcome.nulls else ""
            found = "; ".join(
                f"{one.column} {one.operator} {one.value:g}" for one in outcome.thresholds
            )
            raise UsageError(
                f"{outcome.rule.place} removes the last {counted(outcome.before.clips, 'clip')}"
                f"{null}: {found or outcome.rule.describe()}. The subset would be empty; see "
                "`clipmill subset explain`"
            )
