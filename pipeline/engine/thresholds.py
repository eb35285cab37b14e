"""Finds the thresholds of gates that let the best share of all rows through, and when they can be
found: after a phase in which the steps before have done every shard. So it is with what a stage
finds once in all rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from clipmill.pipeline.engine.fitting import needs_fit
from clipmill.pipeline.engine.left_out import broken, gate_connection
from clipmill.pipeline.recipes.gates import Gate, check_gates, gate_rows
from clipmill.pipeline.recipes.plan import Plan, PlannedStep
from clipmill.schemas.words import counted

Phase = tuple[PlannedStep, ...]


@dataclass(frozen=True)
class Threshold:
    """What a gate's best share came to: `passed` of `rows` rows are at least `value`."""

    stage: str
    gate: Gate
    value: float | None
    passed: int
    rows: int

    def says(self) -> str:
        if self.value is None:
            return f"Gate of {self.stage}: {self.gate.says()}: no row has a value, so none passes."
        return (
            f"Gate of {self.stage}: {self.gate.says()}: {self.passed:,} of "
            f"{counted(self.rows, 'row')} pass."
        )


def phases(steps: Sequence[PlannedStep], dataset: Path) -> list[Phase]:
    """Steps that may run at once; a gate over all rows, or a fit to them, begins a new phase."""
    found: list[list[PlannedStep]] = [[]]
    for step in steps:
        waits = (step.gate is not None and step.gate.of_all) or needs_fit(step, dataset)
        if waits and found[-1]:
            found.append([])
        found[-1].append(step)
    return [tuple(phase) for phase in found]


def describe_phases(steps: Sequence[PlannedStep], dataset: Path) -> list[str]:
    """Which stages must end on all shards before what needs all rows; empty if none must."""
    found = phases(steps, dataset)
    lines = []
    for before, phase in itertools.pairwise(found):
        names = ", ".join(dict.fromkeys(step.stage_label for step in before))
        gate = phase[0].gate
        why = [gate.says()] if gate is not None and gate.of_all else []
        why += ["it is fitted to all rows"] if needs_fit(phase[0], dataset) else []
        lines.append(
            f"  {phase[0].stage_label} begins when all shards have been through {names}: "
            f"{', and '.join(why)}"
        )
    return lines


def with_threshold(plan: Plan, label: str, dataset: Path) -> tuple[Plan, Threshold]:
    """The plan with the threshold of one step's gate, over the rows that are there now."""
    step = plan.by_label[label]
    gate = step.gate
    assert gate is not None  # the caller asks for steps with such gates
    assert gate.best is not None
    assert gate.of is not None
    columns = {one.step.label: set(one.columns) for one in check_gates(plan.steps)}
    rows = gate_rows(plan.steps, step, dataset, None, columns[label])
    ranked = rows.ranked(gate.of, gate.predicate)
    with closing(gate_connection(dataset)) as connection:
        try:
            # At least this share: rows equal to the last one pass, too.
            found = connection.execute(
                f"WITH ranked AS MATERIALIZED ({ranked}), "
                f"whole AS (SELECT count(*) AS n FROM ranked), "
                "cut AS (SELECT score AS value FROM ranked ORDER BY score DESC LIMIT 1 "
                f"OFFSET (SELECT greatest(ceil({gate.best!r} * n)::BIGINT, 1) - 1 FROM whole)) "
                "SELECT value, (SELECT count(*) FROM ranked WHERE score >= value), n "
                "FROM cut, whole"
            ).fetchall()
        except duckdb.Error as error:
            raise broken(step, error) from error
    value, passed, count = found[0] if found else (None, 0, 0)
    # Without any value nothing passes, now and in later shards of this run.
    known = replace(gate, threshold=math.inf if value is None else value)
    steps = tuple(replace(one, gate=known) if one.label == label else one for one in plan.steps)
    threshold = Threshold(step.stage_label, known, value, passed, count)
    return replace(plan, steps=steps), threshold
