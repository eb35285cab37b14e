"""Finds the threshold that an audit is about: one comparison of a score with a number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.catalog.views import clip_columns, signal_columns
from clipmill.pipeline.dataset.steps import fingerprints
from clipmill.pipeline.subsets.candidates import checked_expressions
from clipmill.pipeline.subsets.explain import resolve_scorers
from clipmill.pipeline.subsets.expressions import Comparison, errors_at
from clipmill.pipeline.subsets.freeze import FrozenSubset
from clipmill.pipeline.subsets.rules import Percentile, Rule, Where
from clipmill.pipeline.subsets.scorers import ResolvedScorer
from clipmill.pipeline.subsets.subset_recipe import SubsetRecipe, given_rules
from clipmill.schemas.errors import UsageError
from clipmill.schemas.words import counted, did_you_mean

_COMPARISON = re.compile(r"(.*[^<>=\s])\s*(>=|<=|>|<)\s*(\S+)\s*\Z", re.S)


@dataclass(frozen=True)
class Choice:
    """A threshold that could be audited; a percentile's number is found when it is applied."""

    rule: Rule
    score: str
    operator: str
    value: float | None
    comparison: Comparison | None
    """In a predicate, the comparison."""

    @property
    def says(self) -> str:
        if self.value is None:
            return f"{self.score} {self.operator} …"
        return f"{self.score} {self.operator} {self.value:g}"


@dataclass(frozen=True)
class Question:
    """The threshold to audit, and where it stands."""

    recipe: SubsetRecipe
    scorers: Mapping[str, ResolvedScorer]
    choice: Choice
    is_only: bool
    """Whether its rule has no other threshold."""
    subset: str | None = None
    scorer: dict[str, Any] | None = None

    @property
    def rule(self) -> Rule:
        return self.choice.rule

    @property
    def before(self) -> tuple[Rule, ...]:
        """The rules that a clip passes before it reaches the audited one."""
        return tuple(one for one in self.recipe.rules if one.number < self.rule.number)


def recipe_of(subset: FrozenSubset) -> SubsetRecipe:
    """The rules of a frozen subset as a recipe, with all parameters filled in."""
    info = subset.info
    return SubsetRecipe(
        name=info["recipe"],
        path=Path(f"{subset.name}.yaml"),
        description="",
        source=None,
        verified=True,
        seed=info["seed"],
        parameters={},
        scorers={},
        rules=given_rules(info["rules"], subset.name),
        where=info.get("where"),
    )


def scorers_of(catalog: Catalog, subset: FrozenSubset) -> dict[str, ResolvedScorer]:
    """The scorers that a frozen subset was chosen by; UsageError if the catalog has others now."""
    known = {one.name for one in fields(ResolvedScorer)}
    now = fingerprints(catalog.layout.record)
    columns = [name for name, *_ in catalog.execute("SELECT * FROM clips LIMIT 0").description]
    found = {}
    for role, record in subset.info["scorers"].items():
        scorer = ResolvedScorer(**{key: value for key, value in record.items() if key in known})
        is_same = scorer.label is None or now.get(scorer.label) == scorer.fingerprint
        if scorer.column not in columns or not is_same:
            raise UsageError(
                f"--subset {subset.name}: it was chosen by {scorer.describe()}, and the catalog's "
                f"newest run has no such {role!r}; audit its recipe instead: --subset "
                f"{subset.info['recipe']}"
            )
        found[role] = scorer
    return found


def find_question(
    catalog: Catalog,
    recipe: SubsetRecipe,
    *,
    subset: FrozenSubset | None = None,
    rule: int | None = None,
    score: str | None = None,
) -> Question:
    """The threshold that `rule` and `score` name; UsageError with the choices if that isn't one."""
    scorers = resolve_scorers(catalog, recipe) if subset is None else scorers_of(catalog, subset)
    choices = _choices(catalog, recipe, scorers)
    choice = _chosen(recipe, choices, rule, score)
    return Question(
        recipe,
        scorers,
        choice,
        sum(one.rule == choice.rule for one in choices) == 1,
        None if subset is None else subset.name,
        _scorer(catalog, scorers, choice.score),
    )


def _choices(
    catalog: Catalog, recipe: SubsetRecipe, scorers: Mapping[str, ResolvedScorer]
) -> list[Choice]:
    found: list[Choice] = []
    catalog.make_work()
    with checked_expressions(catalog, scorers) as checker:
        for rule in recipe.rules:
            body = rule.body
            if isinstance(body, Where):
                checker.type_of(body.expression, rule.place)
                for one in checker.comparisons(body.expression, rule.place):
                    with errors_at(rule.place):
                        query = f"SELECT CAST(({one.right}) AS DOUBLE)"
                        (value,) = catalog.connection.execute(query).fetchall()[0]
                    found.append(Choice(rule, _shown(one.left), one.operator, value, one))
            elif isinstance(body, Percentile):
                low, high = body.bounds
                found += [
                    Choice(rule, _shown(body.column), operator, None, None)
                    for operator, is_limit in ((">=", low > 0), ("<=", high < 100))
                    if is_limit
                ]
    return found


def _shown(expression: str) -> str:
    """An expression on one line, without the quotes around a plain column's name."""
    line = " ".join(expression.split())
    return re.sub(r'\A"(\w+)"\Z', r"\1", line)


def _chosen(
    recipe: SubsetRecipe, choices: Sequence[Choice], rule: int | None, score: str | None
) -> Choice:
    place = "--where" if recipe.where is not None else recipe.name
    numbers = [one.number for one in recipe.rules]
    if rule is not None and rule not in numbers:
        listed = "; ".join(f"{one.number}: {one.describe()}" for one in recipe.rules)
        raise UsageError(
            f"--rule {rule}: {place} has {counted(len(numbers), 'rule')}, numbered from 1: {listed}"
        )
    if not choices:
        raise UsageError(
            f"{place} compares nothing with a number, so it has no threshold to audit; give one "
            'such as --where "aesthetic >= 4.5"'
        )
    of_rule = [one for one in choices if rule in (None, one.rule.number)]
    if not of_rule:
        raise UsageError(
            f"--rule {rule} compares nothing with a number; thresholds of {place}: "
            f"{_listed(choices)}"
        )
    found = of_rule if score is None else [one for one in of_rule if _is_meant(one, score)]
    if not found:
        assert score is not None
        hint = did_you_mean(score, [one.score for one in of_rule])
        raise UsageError(
            f"--score {score}: {place} has no threshold for it; {hint}its thresholds: "
            f"{_listed(of_rule)}"
        )
    if len(found) > 1:
        if len({one.rule.number for one in found}) > 1 and rule is None:
            how = f"name one with --rule, e.g. --rule {found[0].rule.number}"
        elif len({one.score for one in found}) > 1:
            how = f'name one with --score, e.g. --score "{found[0].score}"'
        else:
            how = f'name one with --score, e.g. --score "{found[0].says.rstrip(" …")}"'
        raise UsageError(
            f"{place} has {len(found)} thresholds, and an audit is about one: {_listed(found)}; "
            f"{how}"
        )
    return found[0]


def _is_meant(choice: Choice, score: str) -> bool:
    """Whether `--score` names a threshold by its score, or by its comparison as well."""

    def same(one: str, other: str) -> bool:
        return "".join(one.split()).strip('"').lower() == "".join(other.split()).strip('"').lower()

    if same(choice.score, score):
        return True
    bare = re.sub(r"\s*(>=|<=|>|<)\s*\Z", r" \1", score)
    if same(f"{choice.score}{choice.operator}", bare):
        return True
    match = _COMPARISON.match(score.strip())
    if not match or not same(match[1], choice.score) or match[2] != choice.operator:
        return False
    try:
        return choice.value is None or float(match[3]) == choice.value
    except ValueError:
        return False


def _listed(choices: Sequence[Choice]) -> str:
    several = len({one.rule.number for one in choices}) > 1
    return ", ".join(
        f"{f'rule {one.rule.number}: ' if several else ''}"
        f"{one.says if one.value is not None else one.rule.describe()}"
        for one in choices
    )


def _scorer(
    catalog: Catalog, scorers: Mapping[str, ResolvedScorer], score: str
) -> dict[str, Any] | None:
    """The step that made the score, if the score is a signal, or a stage over clips made it."""
    column = scorers[score].column if score in scorers else score
    steps = catalog.layout.steps
    made = (clip_columns(steps) | signal_columns(steps)).get(column)
    if made is None:
        return None
    step = made[0].step
    return {
        "column": column,
        "step": step,
        "fingerprint": fingerprints(catalog.layout.record).get(step),
    }


def further_rules(recipe: SubsetRecipe, bodies: Sequence[Where | Percentile]) -> tuple[Rule, ...]:
    """Rules that only have their values read, numbered after those of the recipe."""
    last = max(one.number for one in recipe.rules)
    model = recipe.rules[-1]
    return tuple(
        replace(
            model,
            number=last + place,
            verb="percentile" if isinstance(body, Percentile) else "where",
            body=body,
            name=None,
            crop=None,
        )
        for place, body in enumerate(bodies, 1)
    )
