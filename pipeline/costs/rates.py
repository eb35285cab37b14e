"""Rates of steps: rows that go on, time and other amounts per row, from footers of earlier work.

A step's rates come from its own footers in this dataset, otherwise from those of another dataset
that the user named, otherwise from the same stage with other settings. Where they come from is
kept with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipmill.pipeline.costs.footers import AMOUNTS, Footers
from clipmill.pipeline.dataset.shards import ShardMetadata, base_shard
from clipmill.pipeline.dataset.steps import Step, inputs_of, recorded_steps
from clipmill.pipeline.recipes.plan import PlannedStep
from clipmill.schemas.folders import SOURCES
from clipmill.schemas.tables import SOURCES as SOURCES_SCHEMA
from clipmill.stages.protocol import Stage

Values = np.ndarray[Any, np.dtype[np.float64]]
ROWS = ("inputs", "not_asked", "skipped", "rejected", "failed", "kept", "outputs")
TIMES = ("seconds", "cpu_seconds")
PER_ROW = ("seconds", *AMOUNTS)
LEAST_SHARDS = 3
"""From fewer groups of shards than this, no range is given."""


@dataclass(frozen=True)
class Measured:
    """A step's footers as arrays, one number per group of a shard and its retries.

    `given` and `base_outputs` are its input rows and the kept rows of the table that determines
    its keys, over the shards that both have done; `by_gate` of the rows `at_gate` were skipped by
    the step's present gate. `amounts` were used for the rows `worked` on, in as many shards as
    `timed` says. Beside its rows, each shard takes `fixed_seconds`, with its commit, and a
    worker's first one `opening_seconds`.
    `origin` says whose footers these are.
    """

    origin: str
    groups: tuple[str, ...]
    rows: Mapping[str, Values]
    given: Values
    base_outputs: Values
    at_gate: Values
    by_gate: Values
    amounts: Mapping[str, Values]
    worked: Mapping[str, Values]
    timed: Values
    shards: Values
    fixed_seconds: Values
    fixed_cpu_seconds: Values
    opening_seconds: float
    opening_cpu_seconds: float


def base_of(step: Step, columns: Mapping[str, Sequence[str]]) -> str:
    """The label of the table that determines a step's keys."""
    return inputs_of(step, columns).of_keys[0]


def columns_of(steps: Sequence[Step]) -> dict[str, Sequence[str]]:
    return {SOURCES: SOURCES_SCHEMA.names, **{step.label: step.columns for step in steps}}


@dataclass
class Rates:
    """Finds the rates of planned steps in this dataset and in others."""

    steps: Sequence[PlannedStep]
    here: Footers
    elsewhere: Footers | None = None

    def of(self, step: PlannedStep) -> Measured | None:
        """What is known of a step; None if it has never been measured."""
        base = base_of(step, columns_of(self.steps))
        before = next((one for one in self.steps if one.label == base), None)
        place = before.place() if before else SOURCES
        found = _measured(self.here, step, step.place(), place, "this dataset")
        if found is not None:
            return found
        datasets = [(self.here, "this dataset")]
        if self.elsewhere is not None:
            datasets.insert(0, (self.elsewhere, self.elsewhere.dataset.name))
        for same_settings in (True, False):
            for footers, name in datasets:
                if (found := _of_another(footers, step, base, name, same_settings)) is not None:
                    return found
        return None


def _of_another(
    footers: Footers, step: PlannedStep, base: str, name: str, same_settings: bool
) -> Measured | None:
    """The newest footers of the same stage in runs of a dataset."""
    for record in footers.records:
        steps = recorded_steps(footers.dataset, record)
        settings = {stage["stage"]: stage["settings"] for stage in record["stages"]}
        for one in steps:
            if (one.name, one.key) != (step.name, step.key):
                continue
            is_same = _plain(step.stage, settings.get(one.stage_label, {})) == _plain(
                step.stage, step.stage.model_dump(mode="json")
            )
            if same_settings and one.fingerprint != step.fingerprint and not is_same:
                continue
            before = next((other for other in steps if other.label == base), None)
            place = before.place() if before is not None else SOURCES
            words = name if same_settings else f"{name}, with other settings"
            if (found := _measured(footers, step, one.place(), place, words)) is not None:
                return found
    return None


def _plain(stage: Stage, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that can't change results."""
    fields = type(stage).model_fields
    resources = {
        name
        for name, info in fields.items()
        if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("resource")
    }
    return {name: settings.get(name) for name in fields if name not in resources}


def _measured(
    footers: Footers, step: PlannedStep, place: str, base: str, origin: str
) -> Measured | None:
    shards = footers.sampled(place)
    found = [(shard, footers.of(place, shard)) for shard in shards]
    if not any(footer.inputs > (footer.not_asked or 0) for _, footer in found):
        return None
    groups = tuple(dict.fromkeys(base_shard(shard) for shard in shards))
    at = {group: number for number, group in enumerate(groups)}
    done_before = footers.committed(base)

    def zeros() -> Values:
        return np.zeros(len(groups))

    rows = {name: zeros() for name in ROWS}
    amounts, worked = ({name: zeros() for name in PER_ROW} for _ in range(2))
    given, base_outputs, at_gate, by_gate, counts, commits = (zeros() for _ in range(6))
    n_timed = zeros()
    fixed_cpu = zeros()
    gate = None if step.gate is None else step.gate.as_written().says()
    timed, openings = _warm(found)
    for shard, footer in found:
        group = at[base_shard(shard)]
        for name in ROWS:
            rows[name][group] += getattr(footer, name) or 0
        if shard in done_before:
            given[group] += footer.inputs
            base_outputs[group] += footers.of(base, shard).outputs
        if footer.gate == gate:
            at_gate[group] += footer.inputs - (footer.not_asked or 0)
            by_gate[group] += footer.skipped - (footer.not_asked or 0)
        counts[group] += 1
        commits[group] += (footer.commit_seconds or 0) + (footer.fixed_seconds or 0)
        fixed_cpu[group] += footer.fixed_cpu_seconds or 0
        n_timed[group] += shard in timed and _worked(footer) > 0
        for name in PER_ROW:
            amount = _of_rows(footer, name)
            if amount is not None and (shard in timed or name not in TIMES):
                amounts[name][group] += amount
                worked[name][group] += footer.inputs - footer.skipped
    opening = {
        name: _mean(
            [
                amount - _per_row(amounts[name], worked[name]) * _worked(footer)
                for footer in openings
                if (amount := _with_opening(footer, name)) is not None
            ]
        )
        for name in TIMES
    }
    return Measured(
        origin,
        groups,
        rows,
        given,
        base_outputs,
        at_gate,
        by_gate,
        amounts,
        worked,
        n_timed,
        counts,
        commits,
        fixed_cpu,
        max(0.0, opening["seconds"]),
        max(0.0, opening["cpu_seconds"]),
    )


def _warm(found: Sequence[tuple[str, ShardMetadata]]) -> tuple[set[str], list[ShardMetadata]]:
    """The shards whose times tell what rows take, and the footers with what beginning takes.

    A worker's first shard takes longer: it loads models and starts helper processes. Only if few
    others were measured, such shards tell what rows take.
    """
    cold = [(shard, footer) for shard, footer in found if footer.opening_seconds]
    warm = {s for s, footer in found if not footer.opening_seconds and _worked(footer)}
    if len({base_shard(shard) for shard in warm}) < LEAST_SHARDS:
        return {shard for shard, _ in found}, []
    return warm, [footer for _, footer in cold]


def _of_rows(footer: ShardMetadata, name: str) -> float | None:
    """What a shard's rows took, without what it takes as a whole."""
    amount: float | None = _with_opening(footer, name)
    if name in TIMES and amount is not None:
        amount -= getattr(footer, f"opening_{name}") or 0
    return amount


def _with_opening(footer: ShardMetadata, name: str) -> float | None:
    amount: float | None = getattr(footer, name)
    if name in TIMES and amount is not None:
        amount -= getattr(footer, f"fixed_{name}") or 0
    return amount


def _worked(footer: ShardMetadata) -> int:
    return footer.inputs - footer.skipped


def _per_row(amounts: Values, worked: Values) -> float:
    return float(amounts.sum() / worked.sum()) if worked.any() else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
