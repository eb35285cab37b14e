"""Determines what each rule of a recipe is worth, whatever the order of the rules.

A funnel's numbers depend on the order: whichever rule comes first removes the clips that several
rules would remove. Two numbers don't. `only` is how many more clips the recipe would keep without
the rule. The Shapley value is the rule's mean contribution over all orders in which the rules could
be added; the values of all rules add up to the clips that the recipe removes.

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
from collections.abc import Callable, Mapping, Sequence
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
class RuleWorth:
    """What one rule is worth."""

    only: Amount
    """How much more the recipe would keep without the rule."""
    shapley: Amount
    """Its share of the loss."""

    def plain(self, loss: Amount) -> dict[str, Any]:
        return {
            "only": self.only.plain(),
            "shapley": self.shapley.plain(),
            "share_of_loss": round(self.shapley.clips / loss.clips, 4) if loss.clips else None,
        }


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


Coalition = frozenset[int]
"""Numbers of the rules that are applied."""


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
    judging = [rule for rule in rules if isinstance(rule.body, Where) or is_costly(rule)]
    if len(judging) > MAX_JUDGING_RULES:
        return None
    on_step("what each rule is worth")
    bits = {rule.number: 1 << place for place, rule in enumerate(judging)}
    live = [rule for rule in rules if rule.number not in bits]
    _judge(engine, judging, bits, kept_alone)
    try:
        if live:
            worth = _of_combinations(engine, rules, bits, on_step)
        else:
            worth = _of_verdicts(engine, bits)
    finally:
        engine.drop(_JUDGED)
    if costly := [rule.number for rule in rules if is_costly(rule)]:
        numbers = " and ".join(map(str, costly))
        worth.notes.append(
            f"{'rule' if len(costly) == 1 else 'rules'} {numbers}: judged once, among all clips "
            "of the catalog"
        )
    return worth


def _judge(
    engine: RuleEngine, judging: Sequence[Rule], bits: Mapping[int, int], kept: Mapping[int, str]
) -> None:
    """Adds to each clip the rules that it fails, as bits."""
    parts, joins = ["0"], ""
    for rule in judging:
        if isinstance(rule.body, Where):
            (passes,) = engine.candidates.columns[rule.number].values
        else:
            alias = f"r{rule.number}"
            joins += f" LEFT JOIN (SELECT id FROM {kept[rule.number]}) AS {alias} USING (id)"
            passes = f"{alias}.id IS NOT NULL"
        parts.append(f"CASE WHEN {passes} THEN 0 ELSE {bits[rule.number]} END")
    engine.execute(
        f"CREATE OR REPLACE TABLE {_JUDGED} AS SELECT s.*, "
        f"CAST({' + '.join(parts)} AS BIGINT) AS _fails FROM {ALL} AS s{joins}"
    )


def _of_verdicts(engine: RuleEngine, bits: Mapping[int, int]) -> Worth:
    """Exact values if all rules judge each clip by itself."""
    rows = engine.execute(
        f"SELECT _fails, count(*), sum(ms) FROM {_JUDGED} WHERE _fails <> 0 GROUP BY _fails"
    ).fetchall()
    rules = {}
    for number, bit in bits.items():
        mine = [(fails, clips, int(ms)) for fails, clips, ms in rows if fails & bit]
        only = [(clips, ms) for fails, clips, ms in mine if fails == bit]
        rules[number] = RuleWorth(
            Amount(sum(clips for clips, _ in only), sum(ms for _, ms in only)),
            Amount(
                math.fsum(clips / fails.bit_count() for fails, clips, _ in mine),
                math.fsum(ms / fails.bit_count() for fails, _, ms in mine),
            ),
        )
    loss = Amount(sum(clips for _, clips, _ in rows), sum(int(ms) for _, _, ms in rows))
    return Worth(loss, rules)


class _Recipes:
    """What recipes with only some of the rules keep; each is applied once."""

    def __init__(self, engine: RuleEngine, rules: Sequence[Rule], bits: Mapping[int, int]) -> None:
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
        for place, rule in enumerate(self._rules):
            if rule.number not in coalition:
                continue
            if rule.number in self._bits:
                mask |= self._bits[rule.number]
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
    bits: Mapping[int, int],
    on_step: Callable[[str], None],
) -> Worth:
    """Values if some rules depend on what the others leave: exact, or over random orders."""
    numbers = [rule.number for rule in rules]
    n_live = len(rules) - len(bits)
    recipes = _Recipes(engine, rules, bits)
    everything = frozenset(numbers)
    try:
        none, whole = recipes.keep(frozenset()), recipes.keep(everything)
        only = {number: _less(recipes.keep(everything - {number}), whole) for number in numbers}
        most = min(_MOST_APPLIED, max(_LEAST_APPLIED, int(_CLIPS_TO_APPLY / max(1, none.clips))))
        # Every rule that is applied anew is in half of all combinations.
        if len(numbers) <= math.log2(_MOST_APPLIED) and n_live * 2 ** (len(numbers) - 1) <= most:
            gains, orders = _over_all(numbers, recipes), None
        else:
            on_step("what each rule is worth, in random orders")
            gains, orders = _over_orders(numbers, recipes, engine.candidates.seed, most)
    finally:
        recipes.close()
    worth = Worth(
        _less(none, whole),
        {number: RuleWorth(only[number], gains[number]) for number in numbers},
        "exact" if orders is None else "sampled",
        orders,
    )
    if orders is not None:
        worth.notes.append(
            f"shares of the loss are means over {counted(orders, 'random order')} of the rules "
            f"(seed {engine.candidates.seed}); the others are exact"
        )
    return worth


def _over_all(numbers: Sequence[int], recipes: _Recipes) -> dict[int, Amount]:
    """Shapley values over all combinations of rules."""
    n = len(numbers)
    found = {}
    for number in numbers:
        others = [other for other in numbers if other != number]
        parts = []
        for size in range(n):
            weight = 1 / (n * math.comb(n - 1, size))
            for chosen in itertools.combinations(others, size):
                before, after = frozenset(chosen), frozenset((*chosen, number))
                parts.append((weight, _less(recipes.keep(before), recipes.keep(after))))
        found[number] = _weighted(parts)
    return found


def _over_orders(
    numbers: Sequence[int], recipes: _Recipes, seed: int, most: int
) -> tuple[dict[int, Amount], int]:
    """Mean contributions over random orders, each with its reverse, and how many there were."""
    draw = random.Random(seed)
    parts: dict[int, list[Amount]] = {number: [] for number in numbers}
    orders, begun = 0, recipes.applied
    while orders < _LEAST_ORDERS or recipes.applied - begun < most:
        order = draw.sample(list(numbers), len(numbers))
        for one in (order, order[::-1]):
            for place, number in enumerate(one):
                before, after = frozenset(one[:place]), frozenset(one[: place + 1])
                parts[number].append(_less(recipes.keep(before), recipes.keep(after)))
            orders += 1
        if orders >= 2 ** len(numbers):
            break
    return {
        number: _weighted([(1 / orders, part) for part in found]) for number, found in parts.items()
    }, orders


def _less(more: Amount, less: Amount) -> Amount:
    return Amount(more.clips - less.clips, more.milliseconds - less.milliseconds)


def _weighted(parts: Sequence[tuple[float, Amount]]) -> Amount:
    clips = math.fsum(weight * part.clips for weight, part in parts)
    # Weights such as 1/3 add up to nearly, not exactly, a whole number.
    return Amount(
        round(clips, 6), round(math.fsum(weight * part.milliseconds for weight, part in parts), 3)
    )
