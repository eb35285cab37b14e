"""What a dataset has cost so far, by stage, and what its next clips would cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import duckdb
import numpy as np

from clipmill.pipeline.costs.footers import AMOUNTS, Footers
from clipmill.pipeline.costs.rates import LEAST_SHARDS, Values
from clipmill.pipeline.costs.resampling import Resampling, range_of
from clipmill.pipeline.dataset.run_records import latest_run
from clipmill.pipeline.dataset.shards import base_shard
from clipmill.pipeline.dataset.steps import Step, recorded_steps
from clipmill.pipeline.recipes.prices import Prices
from clipmill.schemas.sql_text import escaped_for_glob, literal

CLIPS = 1000
_SUMMED = ("seconds", *AMOUNTS)
Amount = dict[str, float | None]
Ranges = dict[str, dict[str, float | None] | None]


class StageCost(TypedDict):
    """What a stage has used: `spent` in all, per 1,000 kept clips, and for the next 1,000.

    `spent` includes work with earlier settings, and the loading of models; `next_1000` doesn't.
    An amount is null if it was not measured, and `money` if the recipe has no prices.
    """

    stage: str
    shards: int
    spent: Amount
    per_1000: Amount
    next_1000: Ranges


class Cost(TypedDict):
    """The result of `Dataset.cost`; a stage's amounts added up are those of `totals`.

    `kept_clips` have passed every gate and are kept by every stage. `unmeasured_shards` were made
    by versions that measured less.
    """

    currency: str | None
    kept_clips: int
    unmeasured_shards: int
    stages: list[StageCost]
    totals: StageCost


def cost_report(dataset: Path, prices: Prices | None = None) -> Cost:
    """Sums over all footers; `prices` are by default those of the newest run's recipe."""
    record = latest_run(dataset)
    steps = recorded_steps(dataset, record)
    if prices is None and record is not None and record["recipe"].get("prices"):
        prices = Prices.model_validate(record["recipe"]["prices"])
    priced = prices if prices is not None and prices.has_any else None
    sums, unmeasured = _sums(dataset)
    footers = Footers(dataset, most_groups=1000)
    clips = _kept_clips(footers, steps)
    next_ones = _next(footers, steps)
    labels = list(dict.fromkeys([step.stage_label for step in steps] + list(sums)))
    empty = {"shards": 0, **dict.fromkeys(_SUMMED, 0.0)}
    stages = [
        _stage(label, sums.get(label, empty), next_ones.get(label), clips, priced)
        for label in labels
    ]
    whole = {name: _sum([found.get(name) for found in sums.values()]) for name in empty}
    all_next = None
    if next_ones:
        every = list(next_ones.values())
        all_next = {name: np.asarray(sum(found[name] for found in every)) for name in _SUMMED}
        all_next["groups"] = every[0]["groups"]
    return {
        "currency": priced.currency if priced else None,
        "kept_clips": clips,
        "unmeasured_shards": unmeasured,
        "stages": stages,
        "totals": _stage("all", whole, all_next, clips, priced),
    }


def _sums(dataset: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """What all footers add up to, by stage, and how many measured less than they do now."""
    if not any(dataset.glob("*/*/[0-9]*.parquet")):
        return {}, 0
    pattern = literal(f"{escaped_for_glob(str(dataset))}/*/*/[0-9]*.parquet")
    columns = ", ".join(f"sum((m->>'{name}')::DOUBLE)" for name in _SUMMED)
    with duckdb.connect(":memory:") as connection:
        rows = connection.execute(
            f"""
            SELECT m->>'stage', count(*), count(*) FILTER (m->>'cpu_seconds' IS NULL), {columns}
            FROM (SELECT decode(value)::JSON AS m, split_part(file_name, '/', -3) AS folder
                  FROM parquet_kv_metadata({pattern}) WHERE decode(key) = 'clipmill')
            WHERE folder = m->>'step'  -- not the further tables of a step
            GROUP BY ALL ORDER BY 1
            """
        ).fetchall()
    sums = {
        stage: {"shards": shards, **dict(zip(_SUMMED, amounts, strict=True))}
        for stage, shards, _, *amounts in rows
    }
    return sums, sum(row[2] for row in rows)


def _kept_clips(footers: Footers, steps: Sequence[Step]) -> int:
    """The clips that the strictest of the steps over clips has kept."""
    kept = [
        footers.outputs(step.place(), sorted(footers.committed(step.place())))
        for step in steps
        if "clip_id" in step.columns
    ]
    return round(min(kept, default=0))


def _next(footers: Footers, steps: Sequence[Step]) -> dict[str, dict[str, Values]]:
    """Per stage, what the next clips take, in all replicates; `groups` is how many were measured.

    Only groups of shards that have been through all steps count.
    """
    makers = [step for step in steps if "clip_id" in step.columns]
    if not makers:
        return {}
    done = [{base_shard(name) for name in footers.committed(step.place())} for step in steps]
    complete = set.intersection(*done)
    per_step = {
        step.id: [
            (base_shard(shard), footers.of(step.place(), shard))
            for shard in footers.sampled(step.place())
            if base_shard(shard) in complete
        ]
        for step in steps
    }
    groups = sorted({group for found in per_step.values() for group, _ in found})
    at = {group: number for number, group in enumerate(groups)}

    def by_group(step: Step, name: str) -> Values:
        found = np.zeros(len(groups))
        for group, footer in per_step[step.id]:
            amount = getattr(footer, name)
            opening = {
                "seconds": footer.opening_seconds,
                "cpu_seconds": footer.opening_cpu_seconds,
            }.get(name)
            found[at[group]] += math.nan if amount is None else amount - (opening or 0)
        return found

    clips = min((by_group(step, "outputs") for step in makers), key=lambda kept: float(kept.sum()))
    if not clips.sum():
        return {}
    resampling = Resampling(groups, CLIPS / float(clips.sum()))
    stages: dict[str, dict[str, Values]] = {}
    for step in steps:
        found = stages.setdefault(step.stage_label, {"groups": np.asarray(float(len(groups)))})
        for name in _SUMMED:
            amounts = CLIPS * resampling.ratio(groups, by_group(step, name), clips)
            found[name] = found[name] + amounts if name in found else amounts
    return stages


def _stage(
    label: str,
    sums: Mapping[str, Any],
    coming: Mapping[str, Values] | None,
    clips: int,
    prices: Prices | None,
) -> StageCost:
    spent: Amount = {name: _rounded(sums.get(name)) for name in _SUMMED}
    if prices is not None:
        known = {name: math.nan if value is None else value for name, value in spent.items()}
        spent["money"] = _rounded(prices.of(known))
    following: Ranges = {}
    if coming is not None:
        values = {name: coming[name] for name in _SUMMED}
        if prices is not None:
            values["money"] = np.broadcast_to(prices.of(values), values["seconds"].shape)
        for name, value in values.items():
            found = range_of(value, known=bool(coming["groups"] >= LEAST_SHARDS))
            following[name] = None if found is None else found.as_json()
    return {
        "stage": label,
        "shards": int(sums["shards"]),
        "spent": spent,
        "per_1000": {
            name: None if value is None or not clips else _rounded(value * CLIPS / clips)
            for name, value in spent.items()
        },
        "next_1000": following,
    }


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) if known or not values else None


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(f"{value:.6g}")
