"""Estimates what a run will do: rows per stage, what gates leave, time, and what that costs.

Rows flow from step to step: those that wait in committed shards are counted in their footers, and
the share that each step passes on is measured. Nothing is read but footers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipmill.pipeline.costs.footers import AMOUNTS, Footers
from clipmill.pipeline.costs.rates import (
    LEAST_SHARDS,
    TIMES,
    Measured,
    Rates,
    Values,
    base_of,
    columns_of,
)
from clipmill.pipeline.costs.resampling import Range, Resampling, range_of
from clipmill.pipeline.engine.letting_in import let_through
from clipmill.pipeline.recipes.gates import check_gates
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, ShardList, beginnings, have_passed
from clipmill.schemas.folders import SOURCES

METHOD = (
    "ranges are 90% intervals: a bootstrap over groups of a shard and its retries, 400 replicates, "
    "with the spread of what is still to be done"
)


@dataclass
class StepEstimate:
    """What one step still has to do, in all replicates; `rows` and `passed` may be unknown."""

    step: PlannedStep
    measured: Measured | None
    shards: int
    rows: Values
    passed: Values
    kept: Values
    outputs: Values
    seconds: Values
    fixed_seconds: Values
    amounts: dict[str, Values]

    @property
    def has_range(self) -> bool:
        return self.measured is not None and len(self.measured.groups) >= LEAST_SHARDS


@dataclass
class Work:
    """What is to be done: the pending shards of a plan's steps, and what waits in them.

    `asked_sources` and `asked_clips` bound that to a choice. With `looks_at_rows`, a gate that was
    never used is tried on the rows so far.
    """

    plan: Plan
    steps: Sequence[PlannedStep]
    shards: ShardList
    footers: Footers
    asked_sources: int | None = None
    asked_clips: int | None = None
    looks_at_rows: bool = False
    pending: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.pending = {
            step.label: [
                shard
                for shard in self.shards.relevant(self.plan.steps, step)
                if shard not in self.footers.committed(step.place())
            ]
            for step in self.steps
        }
        self._columns = columns_of(self.plan.steps)
        self._places = {SOURCES: SOURCES, **{s.label: s.place() for s in self.plan.steps}}
        self._sideways: dict[tuple[str, str], int] = {}

    def __bool__(self) -> bool:
        return any(self.pending.values())

    @property
    def sources(self) -> int:
        """The sources of the shards that are pending at the first step."""
        return round(sum(self.waiting(self.steps[0])))

    def waiting(self, step: PlannedStep) -> tuple[float, float, float]:
        """The rows that wait for a step.

        First those that the step before has kept, then those that requests name: rows that the
        gate still has to look at, and rows that have passed it.
        """
        return self._waiting(step), *self._begun(step)

    def _waiting(self, step: PlannedStep) -> float:
        base = base_of(step, self._columns)
        place = self._places[base]
        ready = [
            shard
            for shard in self.pending[step.label]
            if not self._begins(step, shard) and shard in self.footers.committed(place)
        ]
        rows = self.footers.outputs(place, ready)
        if self.asked_sources is not None and base == SOURCES:
            rows = min(rows, self.asked_sources)
        return rows

    def _begun(self, step: PlannedStep) -> tuple[int, int]:
        """Rows that requests name here, and that reach it from steps beside the one of its keys."""
        unpassed = passed = 0
        base = self.plan.by_label.get(base_of(step, self._columns))
        for shard in self.pending[step.label]:
            if shard not in self.shards.retries:
                continue
            if keys := self._begins(step, shard):
                count = len(keys)
            elif base is None or self.shards.passes(self.plan.steps, base, shard):
                continue
            else:
                count = max((self._sideways.get((shard, up), 0) for up in step.upstream), default=0)
            self._sideways[shard, step.label] = count
            if keys and have_passed(self.shards.retries[shard]):
                passed += count
            else:
                unpassed += count
        return unpassed, passed

    def _begins(self, step: PlannedStep, shard: str) -> list[str]:
        request = self.shards.retries.get(shard)
        return beginnings(request).get(step.id, []) if request else []


def estimate_steps(work: Work, rates: Rates) -> list[StepEstimate]:
    """What each step has to do, in the order of the steps."""
    measured = {step.label: rates.of(step) for step in work.steps}
    groups = sorted({group for one in measured.values() if one for group in one.groups})
    waiting = {step.label: work.waiting(step) for step in work.steps}
    resampling = Resampling(groups, _left(work, measured, waiting))
    columns = columns_of(work.plan.steps)
    made: dict[str, Values] = {}
    found = []
    for step in work.steps:
        ready, unpassed, passed = waiting[step.label]
        base = base_of(step, columns)
        new = made.get(base, resampling.constant(0))
        one = measured[step.label]
        came = resampling.constant(ready) + new
        if one is not None and one.base_outputs.any():
            came = came * resampling.ratio(one.groups, one.given, one.base_outputs)
        if step.key == "clip_id" and work.asked_clips is not None:
            came = np.minimum(came, work.asked_clips)
        share = _share_through(work, step, one, resampling) if came[0] or unpassed else 1.0
        through = (came + unpassed) * share + passed
        rows = came + unpassed + passed
        estimate = _of_rows(step, one, rows, through, resampling, len(work.pending[step.label]))
        made[step.label] = estimate.outputs
        found.append(estimate)
    return found


def _of_rows(
    step: PlannedStep,
    one: Measured | None,
    rows: Values,
    through: Values,
    resampling: Resampling,
    shards: int,
) -> StepEstimate:
    """The work on `rows`, of which `through` pass the gate."""
    nothing = resampling.constant(0)
    if one is None:
        makes_rows = step.key != "clip_id" and "clip_id" in step.columns
        unknown = nothing if through[0] == 0 else resampling.unknown()
        amounts = dict.fromkeys(AMOUNTS, unknown)
        if not step.stage.gpus:
            amounts["gpu_seconds"] = nothing
        # As long as nothing else is known, every row goes on.
        outputs = unknown if makes_rows else through
        return StepEstimate(
            step, None, shards, rows, through, through, outputs, unknown, nothing, amounts
        )
    worked = one.rows["inputs"] - one.rows["skipped"]

    def per_row(of: Values, by: Values = worked) -> Values:
        found = through * resampling.ratio(one.groups, of, by)
        return nothing if through[0] == 0 else found

    def timed(name: str) -> Values:
        by_row, by_shard = resampling.per_row_and_shard(
            one.groups, one.amounts[name], one.worked[name], one.timed
        )
        return nothing if through[0] == 0 else through * by_row + shards * by_shard

    amounts = {
        name: timed(name) if name in TIMES else per_row(one.amounts[name], one.worked[name])
        for name in AMOUNTS
    }
    seconds = timed("seconds")
    amounts["gpu_seconds"] = seconds * step.stage.gpus
    fixed = resampling.ratio(one.groups, one.fixed_seconds, one.shards) * shards
    fixed_cpu = resampling.ratio(one.groups, one.fixed_cpu_seconds, one.shards) * shards
    amounts["cpu_seconds"] = amounts["cpu_seconds"] + fixed_cpu
    kept, outputs = per_row(one.rows["kept"]), per_row(one.rows["outputs"])
    return StepEstimate(step, one, shards, rows, through, kept, outputs, seconds, fixed, amounts)


def _share_through(
    work: Work, step: PlannedStep, one: Measured | None, resampling: Resampling
) -> Values:
    """The share of rows that the step's gate lets in; not a number if that is unknown."""
    gate = step.gate
    if gate is None:
        return resampling.constant(1)
    if one is not None and one.at_gate.any():
        return resampling.ratio(one.groups, one.at_gate - one.by_gate, one.at_gate)
    if gate.best is not None and gate.predicate is None:
        return resampling.constant(gate.best)
    if gate.best is None and work.looks_at_rows:
        (checked,) = (one for one in check_gates(work.plan.steps) if one.step == step)
        found = let_through(work.plan, checked, work.footers.dataset)
        if found is not None and found[1]:
            return resampling.constant(found[0] / found[1])
    return resampling.unknown()


def _left(
    work: Work, measured: dict[str, Measured | None], waiting: dict[str, tuple[float, float, float]]
) -> float:
    """How much is to be done relative to what was measured, at the first step with both."""
    for step in work.steps:
        one, rows = measured[step.label], sum(waiting[step.label])
        if one is not None and rows:
            done = float((one.rows["inputs"] - one.rows["not_asked"]).sum())
            return rows / done
    return 1.0


def known_range(values: Values, steps: Sequence[StepEstimate]) -> Range | None:
    """A range; without limits if one of the steps that it depends on was hardly measured."""
    return range_of(values, known=all(step.has_range for step in steps))


def total(parts: Sequence[Values]) -> Any:
    """The sum of what is known of the parts."""
    known = [part for part in parts if np.isfinite(part[0])]
    return sum(known) if known else None
