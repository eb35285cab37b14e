"""The bill before the work: what a run will do and cost, as ranges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipmill.pipeline.costs.estimate import (
    METHOD,
    StepEstimate,
    Work,
    estimate_steps,
    known_range,
    total,
)
from clipmill.pipeline.costs.footers import AMOUNTS, Footers
from clipmill.pipeline.costs.rates import Rates, Values
from clipmill.pipeline.costs.resampling import Range
from clipmill.pipeline.costs.wall_time import wall_seconds, workers_of
from clipmill.pipeline.dataset.run_records import ChoiceRecord
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, ShardList
from clipmill.pipeline.recipes.prices import Prices
from clipmill.pipeline.recipes.recipe import Recipe

GROUPS, GROUPS_AT_START = 1000, 60
COUNTED = tuple(name for name in AMOUNTS if name != "media_seconds")


@dataclass(frozen=True)
class StageBill:
    """What a stage has to do. Each amount is a range, or None where it is unknown.

    `rows` come to the stage, its gate lets `passed` of them in, and it keeps `kept`, from which it
    makes `outputs`. `seconds` is its workers' time. `measured_on` says whose rates these are, None
    that the stage has never been measured.
    """

    stage: str
    shards: int
    rows: Range | None
    passed: Range | None
    has_gate: bool
    kept: Range | None
    outputs: Range | None
    seconds: Range | None
    amounts: dict[str, Range | None]
    money: Range | None
    measured_on: str | None
    groups: int


@dataclass(frozen=True)
class Bill:
    """What a run will do and cost; `wall_seconds` is None if that is unknown.

    `unknown` names the stages that have something to do and were never measured: totals are sums
    over the other stages.
    """

    dataset: str
    sources: int
    videos: Range | None
    hours: Range | None
    stages: tuple[StageBill, ...]
    wall_seconds: Range | None
    amounts: dict[str, Range | None]
    money: Range | None
    currency: str | None
    unknown: tuple[str, ...]
    method: str = METHOD
    engine: str | None = None
    engine_reason: str | None = None
    """Why this engine was chosen; None if it was asked for."""

    def __getitem__(self, stage: str) -> StageBill:
        """The bill of one stage."""
        for found in self.stages:
            if found.stage == stage:
                return found
        raise KeyError(stage)

    @property
    def has_work(self) -> bool:
        return any(stage.shards for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        """Plain data, with ranges as `{value, low, high}`."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


@dataclass(frozen=True)
class Pending:
    """The steps of a run, the shards that are there, and what the run is asked for."""

    plan: Plan
    steps: Sequence[PlannedStep]
    shards: ShardList
    dataset: Path
    choice: ChoiceRecord | None = None


def estimate(
    run: Pending,
    recipe: Recipe,
    dataset: Path,
    *,
    rates: Path | None = None,
    groups: int = GROUPS,
    looks_at_rows: bool = False,
) -> Bill:
    """What the pending work comes to; `rates` is another dataset to learn from.

    At most so many `groups` of shards are read per step. With `looks_at_rows`, a gate that was
    never used is tried on the rows so far. `dataset` is shown as the dataset's place.
    """
    footers = Footers(run.dataset, groups)
    sources, clips = None, None
    if run.choice is not None:
        sources, clips = run.choice["sources"], run.choice["clips"] or None
    work = Work(run.plan, run.steps, run.shards, footers, sources, clips, looks_at_rows)
    elsewhere = None if rates is None else Footers(rates, groups)
    steps = estimate_steps(work, Rates(run.plan.steps, footers, elsewhere))
    prices = recipe.prices if recipe.prices and recipe.prices.has_any else None
    workers = workers_of(recipe, steps, run.dataset)
    by_stage = [
        (label, list(parts))
        for label, parts in itertools.groupby(steps, key=lambda one: one.step.stage_label)
    ]
    stages, amounts = [], []
    for number, (label, parts) in enumerate(by_stage):
        before = [one for _, these in by_stage[: number + 1] for one in these]
        own = _amounts(parts, workers)
        amounts.append(own)
        stages.append(_stage(label, parts, own, before, prices))
    first = steps[0]
    seconds = first.amounts["media_seconds"] / 3600
    busy = [one for one in steps if one.shards]
    wall = wall_seconds(recipe, steps, run.dataset)
    sums = {name: total([own[name] for own in amounts]) for name in COUNTED}
    is_empty = not work
    return Bill(
        str(dataset),
        work.sources,
        known_range(first.kept, [first]) if first.measured else None,
        known_range(seconds, [first]) if first.measured else None,
        tuple(stages),
        None if wall is None or is_empty else known_range(wall, busy),
        {
            name: None if value is None else known_range(value, _measured(busy))
            for name, value in sums.items()
        },
        _money(prices, {k: v for k, v in sums.items() if v is not None}, _measured(busy)),
        prices.currency if prices else None,
        tuple(
            label
            for label, parts in by_stage
            if any(one.measured is None and (one.shards or _is_some(one.rows)) for one in parts)
        ),
    )


def _stage(
    label: str,
    parts: list[StepEstimate],
    amounts: dict[str, Values],
    before: Sequence[StepEstimate],
    prices: Prices | None,
) -> StageBill:
    first, last = parts[0], parts[-1]
    # Rows that come depend on what the earlier steps pass on.
    earlier = [one for one in before if one not in parts and one.shards]
    is_measured = all(one.measured is not None for one in parts)
    origins = dict.fromkeys(one.measured.origin for one in parts if one.measured)
    seconds: Any = sum(one.seconds + one.fixed_seconds for one in parts)
    passed = first.passed
    return StageBill(
        label,
        max(one.shards for one in parts),
        known_range(first.rows, _measured([*earlier, first])),
        known_range(passed, _measured([*earlier, first])),
        first.step.gate is not None,
        known_range(last.kept, _measured([*earlier, *parts])) if is_measured else None,
        known_range(last.outputs, _measured([*earlier, *parts])) if is_measured else None,
        known_range(seconds, parts),
        {name: known_range(amounts[name], [*earlier, *parts]) for name in COUNTED},
        _money(prices, amounts, [*earlier, *parts]),
        ("; ".join(filter(None, origins)) or "this dataset") if is_measured else None,
        min((len(one.measured.groups) for one in parts if one.measured), default=0),
    )


def _amounts(parts: Sequence[StepEstimate], workers: dict[str, int]) -> dict[str, Values]:
    found: dict[str, Values] = {}
    for name in COUNTED:
        value: Any = sum(one.amounts[name] for one in parts)
        if name == "cpu_seconds":
            value = value + sum(
                one.measured.opening_cpu_seconds * workers[one.step.label]
                for one in parts
                if one.measured and one.shards
            )
        found[name] = value
    return found


def _money(
    prices: Prices | None, amounts: dict[str, Values], steps: Sequence[StepEstimate]
) -> Range | None:
    if prices is None:
        return None
    money = prices.of(amounts)
    if isinstance(money, float) and (math.isnan(money) or not steps):
        return None
    return known_range(np.broadcast_to(money, steps[0].rows.shape), steps)


def _measured(steps: Sequence[StepEstimate]) -> list[StepEstimate]:
    return [one for one in steps if one.measured is not None]


def _is_some(values: Values) -> bool:
    return not np.isfinite(values[0]) or bool(values[0])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"value", "low", "high"}:
            return Range(**value).as_json()
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
