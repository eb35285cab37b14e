"""How long a run takes by the clock, from its workers' time and how many work at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipmill.pipeline.costs.estimate import StepEstimate
from clipmill.pipeline.costs.rates import Values
from clipmill.pipeline.engine.pools import Leg, Machine, plan_legs
from clipmill.pipeline.engine.thresholds import phases
from clipmill.pipeline.recipes.recipe import Recipe
from clipmill.schemas.processors import usable_cpus

RAY_STARTS_SECONDS = 6.0
"""Starting and ending Ray and a pool's processes; more on a slow disk."""


def machine_of(recipe: Recipe) -> Machine | None:
    """The machine that a run would have; None for a cluster, which isn't asked."""
    if recipe.ray.address or os.environ.get("RAY_ADDRESS"):
        return None
    cpus = recipe.ray.num_cpus or usable_cpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = len([one for one in visible.split(",") if one.strip() not in ("", "-1")])
    else:
        gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return Machine(cpus, gpus)


def legs_of(recipe: Recipe, steps: Sequence[StepEstimate], dataset: Path) -> tuple[Leg, ...] | None:
    """The phases and pools of a run with Ray; none if its machine is unknown."""
    machine = machine_of(recipe)
    busy = tuple(one.step for one in steps if one.shards)
    if machine is None or not busy:
        return None if machine is None else ()
    most = max(one.shards for one in steps)
    return tuple(leg for phase in phases(busy, dataset) for leg in plan_legs(phase, machine, most))


def wall_seconds(recipe: Recipe, steps: Sequence[StepEstimate], dataset: Path) -> Values | None:
    """The run's time; None if it depends on a cluster. Unknown times are not numbers."""
    by_label = {one.step.label: one for one in steps}
    if recipe.engine == "local":
        return np.asarray(sum(_seconds(one) + _opening(one) for one in steps))
    legs = legs_of(recipe, steps, dataset)
    if legs is None:
        return None
    whole = np.full_like(steps[0].rows, RAY_STARTS_SECONDS if legs else 0.0)
    for leg in legs:
        pools = []
        fill = np.zeros_like(whole)
        for pool in leg:
            parts = [by_label[step.label] for step in pool.steps]
            own = np.asarray(sum(map(_seconds, parts)))
            workers = min(pool.workers, max(one.shards for one in parts))
            pools.append(own / workers + sum(map(_opening, parts)))
            # Until the last shard has passed through all pools, some of them have nothing to do.
            fill = fill + own / max(one.shards for one in parts)
        slowest = np.maximum.reduce(pools)
        whole = whole + slowest + (fill if len(leg) > 1 else 0)
    return whole


def workers_of(recipe: Recipe, steps: Sequence[StepEstimate], dataset: Path) -> dict[str, int]:
    """How many workers load each step's models, by its label; 1 where that is unknown."""
    legs = legs_of(recipe, steps, dataset) if recipe.engine == "ray" else ()
    found = {one.step.label: 1 for one in steps}
    for leg in legs or ():
        for pool in leg:
            for step in pool.steps:
                found[step.label] = pool.workers
    return found


def _seconds(one: StepEstimate) -> Values:
    return one.seconds + one.fixed_seconds


def _opening(one: StepEstimate) -> float:
    return one.measured.opening_seconds if one.measured and one.shards else 0.0
