"""Which engine a run has: the one that is asked for, or with `auto` the one that fits it.

Ray's processes survive what a row does to them, and use all nodes of a cluster, but starting them
takes longer than a small run does. Stages that do all risky work in helper processes need none of
that, so a run of only such stages over a few videos stays in this process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clipmill.pipeline.engine.named_cluster import has_cluster
from clipmill.pipeline.recipes.plan import PlannedStep
from clipmill.pipeline.recipes.recipe import RaySettings, Recipe
from clipmill.schemas.processors import usable_cpus
from clipmill.schemas.words import counted

MOST_VIDEOS = 512
"""On a few CPUs one process feeds them all; a longer run should outlive the loss of a process."""
MANY_CPUS = 16
MOST_VIDEOS_ON_MANY_CPUS = 64
"""Beyond these CPUs one process may not feed them all, and Ray's start is soon made up for."""


@dataclass(frozen=True)
class Engine:
    """The engine of a run; `why` says why it was chosen, None if it was asked for."""

    name: Literal["ray", "local"]
    why: str | None = None

    @property
    def said(self) -> str:
        return "" if self.why is None else f" (engine auto: {self.why})"


def engine_for(recipe: Recipe, steps: Sequence[PlannedStep], videos: int) -> Engine:
    """The engine for the pending `steps` of a run over so many sources."""
    if recipe.engine != "auto":
        return Engine(recipe.engine)
    if address := recipe.ray.address or os.environ.get("RAY_ADDRESS"):
        return Engine("ray", f"the cluster at {address} is named")
    if recipe.ray != RaySettings():
        return Engine("ray", "the recipe has settings for Ray")
    if has_cluster():
        return Engine("ray", "this program has started Ray")
    for step in steps:
        if not step.stage.robust:
            return Engine("ray", f"{step.stage_label} needs processes of its own")
    most = MOST_VIDEOS if usable_cpus() <= MANY_CPUS else MOST_VIDEOS_ON_MANY_CPUS
    if videos > most:
        return Engine("ray", f"more than {most} videos")
    few = counted(videos, "video")
    return Engine("local", f"Ray would take longer to start than it saves for {few}")


def calls_here(steps: Sequence[PlannedStep], videos: int) -> dict[str, int]:
    """How many calls at a time steps have in the local engine, by label, so that they use all CPUs.

    Never more than there are `videos`. None have if a stage may not bear that others run beside it:
    then all run one after the other.
    """
    if not all(step.stage.robust for step in steps):
        return {}
    found = {}
    for step in steps:
        if step.stage.in_helpers:
            fit = max(1, int(usable_cpus() / step.stage.resources.cpus))
            found[step.label] = max(1, min(fit, videos, step.stage.workers or fit))
    return found
