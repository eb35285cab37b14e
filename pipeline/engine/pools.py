"""Fits a plan's steps to a machine: which steps share a process, how many workers each pool has,
and which pools run at once.

Consecutive steps that need the same kind of machine share a process (one import of torch, one
GPU). If the pools don't all fit at once, they run in phases, one after the other; a step that does
not fit the machine at all is refused before anything starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipmill.pipeline.recipes.plan import PlannedStep
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.words import counted
from clipmill.stages.protocol import Stage


@dataclass(frozen=True)
class Machine:
    """The total resources of a cluster."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Pool:
    """Workers that each run the same steps in one process."""

    steps: tuple[PlannedStep, ...]
    workers: int

    @property
    def cpus(self) -> float:
        """CPUs of one worker: its steps run one after the other."""
        return max(step.stage.resources.cpus for step in self.steps)

    @property
    def gpus(self) -> float:
        """GPUs of one worker: models of all its steps are loaded at once."""
        return _gpus(self.steps)

    @property
    def names(self) -> str:
        return ", ".join(dict.fromkeys(step.label for step in self.steps))

    def describe(self) -> str:
        gpus = f", {self.gpus:g} GPU" if self.gpus else ""
        return f"{counted(self.workers, 'worker')} × {self.cpus:g} CPU{gpus}: {self.names}"


Leg = tuple[Pool, ...]


def _gpus(steps: tuple[PlannedStep, ...]) -> float:
    return sum(step.stage.resources.gpus for step in steps)


def _kind(stage: Stage) -> str:
    """The kind of work of a stage, which decides which neighbours may share a process."""
    if stage.key == "source_key":
        return "fetch"
    if stage.resources.gpus:
        return "gpu"
    return "models" if stage.key == "clip_id" else "decode"


def plan_legs(steps: tuple[PlannedStep, ...], machine: Machine, n_shards: int) -> tuple[Leg, ...]:
    """Pools by phase. `n_shards` bounds the workers: more than shards would be idle.

    Raises ClipmillError if a single step asks for more than the machine has.
    """
    for step in steps:
        need = step.stage.resources
        if need.cpus > machine.cpus or need.gpus > machine.gpus:
            what, setting = ("gpus", need.gpus) if need.gpus > machine.gpus else ("cpus", need.cpus)
            have = machine.gpus if what == "gpus" else machine.cpus
            raise ClipmillError(
                f"stage {step.stage_label} asks for {setting:g} {what} per worker, but this "
                f"machine has {have:g}; set {step.stage_label}.{what} to at most {have:g}"
            )
    groups = _by_kind(steps)
    # Each pool needs at least one CPU; with fewer CPUs than pools, neighbours without GPUs join.
    while len(groups) > 1 and sum(_cpus(group) for group in groups) > machine.cpus:
        joined = _join_cheapest(groups)
        if joined is None:
            break
        groups = joined
    legs: list[list[tuple[PlannedStep, ...]]] = [[]]
    for group in groups:
        if legs[-1] and not _fits([*legs[-1], group], machine):
            legs.append([])
        legs[-1].append(group)
    return tuple(_with_workers(leg, machine, n_shards) for leg in legs)


def _by_kind(steps: tuple[PlannedStep, ...]) -> list[tuple[PlannedStep, ...]]:
    groups: list[list[PlannedStep]] = []
    for step in steps:
        last = groups[-1] if groups else None
        same = last is not None and (
            last[-1].stage_label == step.stage_label
            or (
                _kind(last[-1].stage) == _kind(step.stage)
                and last[-1].stage.most_workers == step.stage.most_workers
                and _gpus((*last, step)) <= 1
            )
        )
        if same and last is not None:
            last.append(step)
        else:
            groups.append([step])
    return [tuple(group) for group in groups]


def _cpus(group: tuple[PlannedStep, ...]) -> float:
    return max(step.stage.resources.cpus for step in group)


def _fits(groups: list[tuple[PlannedStep, ...]], machine: Machine) -> bool:
    return sum(map(_cpus, groups)) <= machine.cpus and sum(map(_gpus, groups)) <= machine.gpus


def _join_cheapest(groups: list[tuple[PlannedStep, ...]]) -> list[tuple[PlannedStep, ...]] | None:
    """Joins the first two neighbours that load no GPU; None if there are none."""
    for i in range(len(groups) - 1):
        together = (*groups[i], *groups[i + 1])
        if not _gpus(together):
            return [*groups[:i], together, *groups[i + 2 :]]
    return None


def _most_workers(group: tuple[PlannedStep, ...]) -> int | None:
    """How many workers a pool may have; None for as many as fit.

    What is set for one of its steps counts for all; what a step merely has use for, if it is the
    same with all.
    """
    if asked := [step.stage.workers for step in group if step.stage.workers is not None]:
        return max(asked)
    useful = [step.stage.most_workers for step in group]
    return None if None in useful else max(count for count in useful if count is not None)


def _with_workers(groups: list[tuple[PlannedStep, ...]], machine: Machine, n_shards: int) -> Leg:
    """One worker per pool, then one more for each pool in turn while the machine has room."""
    workers = [1] * len(groups)

    def used(what: str) -> float:
        return sum(
            n * (_cpus(g) if what == "cpus" else _gpus(g))
            for n, g in zip(workers, groups, strict=True)
        )

    grown = True
    while grown:
        grown = False
        for i, group in enumerate(groups):
            limit = min(max(1, n_shards), _most_workers(group) or max(1, n_shards))
            fits = (
                used("cpus") + _cpus(group) <= machine.cpus
                and used("gpus") + _gpus(group) <= machine.gpus
            )
            if workers[i] < limit and fits:
                workers[i] += 1
                grown = True
    return tuple(Pool(group, n) for group, n in zip(groups, workers, strict=True))
