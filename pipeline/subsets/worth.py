"""Determines what each rule of a recipe is worth, whatever the order of the rules.

A funnel's numbers depend on the order: whichever rule comes first removes the clips that several
rules would remove. Two numbers don't. `only` is how many more clips the recipe would keep without
the rule. The Shapley value is the rule's mean contribution over all orders in which the rules could
be added; the values of all rules add up to the clips that the recipe removes.

A `where` whose conditions are joined by AND counts as that many rules: what it is worth is the sum
of its conditions' values.

If rules judge each clip by itself, a clip that fails n rules counts 1/n for each of them, which is
exact for any number of rules. Rules whose verdict depends on the other clips (percentiles, caps,
draws) are applied anew for each combination of the other rules, or for random orders if there are
too many combinations. Near-duplicates and clusters are too costly for that: they are found once,
among all clips of the catalog.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from clipmill.pipeline.subsets.candidates import ALL
from clipmill.pipeline.subsets.rule_engine import RuleEngine
from clipmill.pipeline.subsets.rules import Balance, Deduplicate, Rule, Where
from clipmill.schemas.words import counted

_JUDGED = "work.judged"
_SOURCE = "work.judged_source"
_STEPS = ("work.judged_0", "work.judged_1")
MAX_JUDGING_RULES = 62
"""Verdicts are bits of a 64-bit number."""
_CLIPS_TO_APPLY = 70_000_000
_LEAST_APPLIED, _MOST_APPLIED = 24, 400
_LEAST_ORDERS = 2


@dataclass(frozen=True)
class Amount:
    """A number of clips and how long they last; shares of clips are possible."""

    clips: float
    milliseconds: float

    @property
    def hours(self) -> float:
        return round(self.milliseconds / 3_600_000, 4)

    def plain(self) -> dict[str, Any]:
        clips = self.clips
        return {
            "clips": int(clips) if float(clips).is_integer() else round(clips, 2),
            "hours": self.hours,
        }


@dataclass(frozen=True)
class Value:
    """What a rule, or one of its conditions, is worth."""

    only: Amount
    """How much more the recipe would keep without it."""
    shapley: Amount
    """Its share of the loss."""

    def plain(self, loss: Amount) -> dict[str, Any]:
        return {
            "only": self.only.plain(),
            "shapley": self.shapley.plain(),
            "share_of_loss": round(self.shapley.clips / loss.clips, 4) if loss.clips else None,
        }


@dataclass(frozen=True)
class Condition(Value):
    """One of the conditions that AND joins in a rule."""

    says: str
    takes: int
    """How many clips of the catalog don't fulfil it."""

    def plain(self, loss: Amount) -> dict[str, Any]:
        return {"says": self.says, "takes": self.takes, **super().plain(loss)}


@dataclass(frozen=True)
class RuleWorth(Value):
    """What one rule is worth."""

    conditions: tuple[Condition, ...] = ()

    def plain(self, loss: Amount) -> dict[str, Any]:
        found = super().plain(loss)
        return {**found, "conditions": [one.plain(loss) for one in self.conditions]}


@dataclass
class Worth:
    """What all rules are worth."""

    loss: Amount
    rules: Mapping[int, RuleWorth]
    method: Literal["exact", "sampled"] = "exact"
    orders: int | None = None
    """How many random orders were tried, if the values are sampled."""
    notes: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        return {
            "loss": self.loss.plain(),
            "method": self.method,
            "orders": self.orders,
            "notes": self.notes,
        }


Part = tuple[int, int]
"""A rule's number, and which of its conditions it is; 0 if it is not split."""
Coalition = frozenset[Part]
"""What is applied."""


def is_costly(rule: Rule) -> bool:
    """Whether a rule is applied only once, to all clips."""
    return isinstance(rule.body, Deduplicate | Balance)


def rule_worth(
    engine: RuleEngine,
    rules: Sequence[Rule],
    kept_alone: Mapping[int, str],
    on_step: Callable[[str], None] = lambda said: None,
) -> Worth | None:
    """What each rule is worth; None if there are too many rules.

    `kept_alone` names a table of the clips that each costly rule keeps of the whole catalog.
    """
    judging = _verdicts(engine, rules, kept_alone)
    if judging is None:
        return None
    on_step("what each rule is worth")
    bits = {part: 1 << place for place, part in enumerate(judging)}
    _judge(engine, judging, bits, kept_alone)
    try:
        takes = _counts(engine, bits)
        if {rule.number for rule in rules} == {number for number, _ in bits}:
            found = _of_verdicts(engine, bits)
        else:
            found = _of_combinations(engine, rules, bits, on_step)
        worth = _by_rule(engine, found, takes)
    finally:
        engine.drop(_JUDGED)
    if costly := [rule.number for rule in rules if is_costly(rule)]:
        numbers = " and ".join(map(str, costly))
        worth.notes.append(
            f"{'rule' if len(costly) == 1 else 'rules'} {numbers}: judged once, among all clips "
            "of the catalog"
        )
    return worth


def _verdicts(
    engine: RuleEngine, rules: Sequence[Rule], kept: Mapping[int, str]
) -> dict[Part, str] | None:
    """What judges each clip by itself, as SQL that is true for clips that pass.

    None if that is too much even if no rule is split.
    """
    for splits in (True, False):
        found: dict[Part, str] = {}
        for rule in rules:
            columns = engine.candidates.columns[rule.number]
            if is_costly(rule):
                found[rule.number, 0] = f"{_kept_by(rule.number)}.id IS NOT NULL"
            elif isinstance(rule.body, Where) and splits and columns.conditions:
                for place, (name, _) in enumerate(columns.conditions, 1):
                    found[rule.number, place] = name
            elif isinstance(rule.body, Where):
                (found[rule.number, 0],) = columns.values
        if len(found) <= MAX_JUDGING_RULES:
            return found
    return None


def _kept_by(number: int) -> str:
    return f"r{number}"


def _judge(
    engine: RuleEngine,
    judging: Mapping[Part, str],
    bits: Mapping[Part, int],
    kept: Mapping[int, str],
) -> None:
    """Adds to each clip what it fails, as bits."""
    joins = "".join(
        f" LEFT JOIN (SELECT id FROM {table}) AS {_kept_by(number)} USING (id)"
        for number, table in kept.items()
    )
    parts = [f"CASE WHEN {passes} THEN 0 ELSE {bits[part]} END" for part, passes in judging.items()]
    engine.execute(
        f"CREATE OR REPLACE TABLE {_JUDGED} AS SELECT s.*, "
        f"CAST({' + '.join(['0', *parts])} AS BIGINT) AS _fails FROM {ALL} AS s{joins}"
    )


def _counts(engine: RuleEngine, bits: Mapping[Part, int]) -> dict[Part, int]:
    """How many clips of the catalog fail each part."""
    rows = engine.execute(
        f"SELECT _fails, count(*) FROM {_JUDGED} WHERE _fails <> 0 GROUP BY _fails"
    ).fetchall()
    return {part: sum(n for fails, n in rows if fails & bit) for part, bit in bits.items()}


@dataclass
class _Found:
    """What removes how much: `only` of each part alone and of each rule, `shapley` of each part."""

    loss: Amount
    only: Mapping[Coalition, Amount]
    shapley: Mapping[Part, Amount]
    orders: int | None = None


def _by_rule(engine: RuleEngine, found: _Found, takes: Mapping[Part, int]) -> Worth:
    """What rules are worth, with their conditions."""
    rules = {}
    for number, parts in _parts_of_rules(found.shapley).items():
        conditions: tuple[Condition, ...] = ()
        if len(parts) > 1:
            texts = [text for _, text in engine.candidates.columns[number].conditions]
            conditions = tuple(
                Condition(
                    found.only[frozenset([part])],
                    found.shapley[part],
                    " ".join(text.split()),
                    takes[part],
                )
                for part, text in zip(parts, texts, strict=True)
            )
        shapley = _weighted([(1, found.shapley[part]) for part in parts])
        rules[number] = RuleWorth(found.only[frozenset(parts)], shapley, conditions)
    worth = Worth(found.loss, rules, "exact" if found.orders is None else "sampled", found.orders)
    if found.orders is not None:
        worth.notes.append(
            f"shares of the loss are means over {counted(found.orders, 'random order')} of the "
            f"rules (seed {engine.candidates.seed}); the others are exact"
        )
    return worth


def _parts_of_rules(parts: Iterable[Part]) -> dict[int, list[Part]]:
    found: dict[int, list[Part]] = {}
    for part in sorted(parts):
        found.setdefault(part[0], []).append(part)
    return found


def _alone_and_by_rule(parts: Sequence[Part]) -> list[Coalition]:
    """Each part by itself, and all parts of each rule."""
    groups = [[part] for part in parts] + list(_parts_of_rules(parts).values())
    return list(dict.fromkeys(map(frozenset, groups)))


def _of_verdicts(engine: RuleEngine, bits: Mapping[Part, int]) -> _Found:
    """Exact values if all rules judge each clip by itself."""
    rows = engine.execute(
        f"SELECT _fails, count(*), CAST(sum(ms) AS BIGINT) FROM {_JUDGED} WHERE _fails <> 0 "
        "GROUP BY _fails"
    ).fetchall()
    only = {}
    for parts in _alone_and_by_rule(list(bits)):
        mask = sum(bits[part] for part in parts)
        mine = [(clips, ms) for fails, clips, ms in rows if not fails & ~mask]
        only[parts] = Amount(sum(clips for clips, _ in mine), sum(ms for _, ms in mine))
    shapley = {
        part: Amount(
            math.fsum(clips / fails.bit_count() for fails, clips, _ in rows if fails & bit),
            math.fsum(ms / fails.bit_count() for fails, _, ms in rows if fails & bit),
        )
        for part, bit in bits.items()
    }
    loss = Amount(sum(clips for _, clips, _ in rows), sum(ms for _, _, ms in rows))
    return _Found(loss, only, shapley)


class _Recipes:
    """What recipes with only some of the rules keep; each is applied once."""

    def __init__(self, engine: RuleEngine, rules: Sequence[Rule], bits: Mapping[Part, int]) -> None:
        self._engine = engine
        self._rules = rules
        self._bits = bits
        self._known: dict[Coalition, Amount] = {}
        self.applied = 0

    def keep(self, coalition: Coalition) -> Amount:
        if coalition not in self._known:
            self._known[coalition] = self._apply(coalition)
        return self._known[coalition]

    def _apply(self, coalition: Coalition) -> Amount:
        engine, table, mask = self._engine, _JUDGED, 0
        parts = _parts_of_rules(coalition)
        for place, rule in enumerate(self._rules):
            if rule.number not in parts:
                continue
            if parts[rule.number][0] in self._bits:
                mask |= sum(self._bits[part] for part in parts[rule.number])
                continue
            target = _STEPS[self.applied % len(_STEPS)]
            engine.execute(
                f"CREATE OR REPLACE VIEW {_SOURCE} AS SELECT * FROM {table} "
                f"WHERE _fails & {mask} = 0"
            )
            engine.apply(rule, _SOURCE, target, later=self._rules[place + 1 :], carry=("_fails",))
            table, self.applied = target, self.applied + 1
        (row,) = engine.execute(
            f"SELECT count(*), coalesce(sum(ms), 0) FROM {table} WHERE _fails & {mask} = 0"
        ).fetchall()
        return Amount(row[0], int(row[1]))

    def close(self) -> None:
        self._engine.execute(f"DROP VIEW IF EXISTS {_SOURCE}")
        for table in _STEPS:
            self._engine.drop(table)


def _of_combinations(
    engine: RuleEngine,
    rules: Sequence[Rule],
    bits: Mapping[Part, int],
    on_step: Callable[[str], None],
) -> _Found:
    """Values if some rules depend on what the others leave: exact, or over random orders."""
    judging = {number for number, _ in bits}
    live = [(rule.number, 0) for rule in rules if rule.number not in judging]
    parts = sorted([*bits, *live])
    recipes = _Recipes(engine, rules, bits)
    everything = frozenset(parts)
    try:
        none, whole = recipes.keep(frozenset()), recipes.keep(everything)
        only = {
            some: _less(recipes.keep(everything - some), whole)
            for some in _alone_and_by_rule(parts)
        }
        most = min(_MOST_APPLIED, max(_LEAST_APPLIED, int(_CLIPS_TO_APPLY / max(1, none.clips))))
        # Every rule that is applied anew is in half of all combinations.
        if len(parts) <= math.log2(_MOST_APPLIED) and len(live) * 2 ** (len(parts) - 1) <= most:
            gains, orders = _over_all(parts, recipes), None
        else:
            on_step("what each rule is worth, in random orders")
            gains, orders = _over_orders(parts, recipes, engine.candidates.seed, most)
    finally:
        recipes.close()
    return _Found(_less(none, whole), only, gains, orders)


def _over_all(parts: Sequence[Part], recipes: _Recipes) -> dict[Part, Amount]:
    """Shapley values over all combinations of rules."""
    n = len(parts)
    found = {}
    for part in parts:
        others = [other for other in parts if other != part]
        gains = []
        for size in range(n):
            weight = 1 / (n * math.comb(n - 1, size))
            for chosen in itertools.combinations(others, size):
                before, after = frozenset(chosen), frozenset((*chosen, part))
                gains.append((weight, _less(recipes.keep(before), recipes.keep(after))))
        found[part] = _weighted(gains)
    return found


def _over_orders(
    parts: Sequence[Part], recipes: _Recipes, seed: int, most: int
) -> tuple[dict[Part, Amount], int]:
    """Mean contributions over random orders, each with its reverse, and how many there were."""
    draw = random.Random(seed)
    gains: dict[Part, list[Amount]] = {part: [] for part in parts}
    orders, begun = 0, recipes.applied
    while orders < _LEAST_ORDERS or recipes.applied - begun < most:
        order = draw.sample(list(parts), len(parts))
        for one in (order, order[::-1]):
            for place, part in enumerate(one):
                before, after = frozenset(one[:place]), frozenset(one[: place + 1])
                gains[part].append(_less(recipes.keep(before), recipes.keep(after)))
            orders += 1
        if orders >= 2 ** len(parts):
            break
    return {
        part: _weighted([(1 / orders, gain) for gain in found]) for part, found in gains.items()
    }, orders


def _less(more: Amount, less: Amount) -> Amount:
    return Amount(more.clips - less.clips, more.milliseconds - less.milliseconds)


def _weighted(parts: Sequence[tuple[float, Amount]]) -> Amount:
    clips = math.fsum(weight * part.clips for weight, part in parts)
    # Weights such as 1/3 add up to nearly, not exactly, a whole number.
    return Amount(
        round(clips, 6), round(math.fsum(weight * part.milliseconds for weight, part in parts), 3)
    )
