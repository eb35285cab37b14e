"""Starts the engine of a run, and says what it will do where."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from clipmill.pipeline.dataset.run_logs import LogLimits, RunLog, python_messages
from clipmill.pipeline.engine.engines import Engine, calls_here
from clipmill.pipeline.engine.gated_run import RunPhase
from clipmill.pipeline.engine.gpus import gpus_here, with_gpus_of
from clipmill.pipeline.engine.local import run_locally
from clipmill.pipeline.engine.runner import Report
from clipmill.pipeline.engine.standstill import Lookout
from clipmill.pipeline.engine.step_inputs import pending_sources
from clipmill.pipeline.engine.thresholds import Phase, phases
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, ShardList
from clipmill.pipeline.recipes.recipe import Recipe
from clipmill.schemas.processors import usable_cpus

Busy = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Started:
    """A started engine: the lines of its plan, and what runs a phase."""

    lines: list[str]
    run_phase: RunPhase


@dataclass(frozen=True)
class ToRun:
    """What an engine is to run, and whom it tells about it."""

    plan: Plan
    steps: tuple[PlannedStep, ...]
    shards: ShardList
    todo: Mapping[str, list[str]]
    recipe: Recipe
    dataset: Path
    run_id: str
    report: Report
    lookout: Lookout
    log: RunLog
    log_limits: LogLimits


@contextlib.contextmanager
def started(engine: Engine, run: ToRun, busy: Busy) -> Iterator[Started]:
    """The engine, from before the first phase to after the last."""
    with _here(engine, run) if engine.name == "local" else _on_ray(engine, run, busy) as found:
        yield found


@contextlib.contextmanager
def _here(engine: Engine, run: ToRun) -> Iterator[Started]:
    gpus = gpus_here() if any(step.stage.gpus for step in run.steps) else 0
    videos = pending_sources(run.dataset, run.shards, run.todo, usable_cpus())
    calls = calls_here([step for step in run.steps if run.todo[step.label]], videos)
    lines = [f"Plan: every stage in this process{engine.said}."]
    for step in run.steps:
        if calls.get(step.label, 1) > 1:
            lines.append(f"  {step.stage_label}: {calls[step.label]} videos at a time")
    lines += with_gpus_of(run.plan, gpus, run.recipe)[1]

    def run_phase(plan: Plan, steps: Phase, shards: ShardList) -> None:
        plan, _ = with_gpus_of(plan, gpus, run.recipe)
        steps = tuple(plan.by_label[step.label] for step in steps)
        run_locally(
            plan, steps, shards, run.dataset, run.run_id, run.report, run.log_limits, run.lookout
        )

    yield Started(lines, run_phase)


@contextlib.contextmanager
def _on_ray(engine: Engine, run: ToRun, busy: Busy) -> Iterator[Started]:
    recipe = run.recipe
    address = recipe.ray.address or os.environ.get("RAY_ADDRESS")
    with contextlib.ExitStack() as stack:
        with busy(f"joining the Ray cluster at {address} …" if address else "starting Ray …"):
            from clipmill.pipeline.engine.on_ray import cluster, legs_of, run_on_ray

            stack.enter_context(python_messages(run.log))
            machine = stack.enter_context(cluster(recipe.ray))
        fitted, moved = with_gpus_of(run.plan, machine.gpus, recipe)
        of_run = tuple(fitted.by_label[step.label] for step in run.steps)
        legs = [
            leg
            for phase in phases(of_run, run.dataset)
            for leg in legs_of(fitted, phase, run.shards, run.dataset, machine)
        ]
        beside = f" and {machine.gpus:g} GPUs" if machine.gpus else ""
        lines = [*moved, f"Plan for {machine.cpus:g} CPUs{beside}{engine.said}:"]
        for number, leg in enumerate(legs, 1):
            lines += [
                f"  phase {number}: {pool.describe()}" if len(legs) > 1 else f"  {pool.describe()}"
                for pool in leg
            ]
        if machine.gpus and not any(step.stage.gpus for step in run.steps):
            lines.append(
                f"  No stage asks for any of the {machine.gpus:g} GPUs; give the "
                "stages with models one, e.g. --set caption_frames.gpus=1"
            )

        def run_phase(plan: Plan, steps: Phase, shards: ShardList) -> None:
            plan, _ = with_gpus_of(plan, machine.gpus, recipe)
            steps = tuple(plan.by_label[step.label] for step in steps)
            run_on_ray(
                plan,
                steps,
                shards,
                run.dataset,
                run.run_id,
                run.report,
                machine,
                run.log_limits,
                run.lookout,
            )

        yield Started(lines, run_phase)
