"""The local engine: runs every shard through every step in this process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from clipmill.pipeline.dataset.run_logs import LogLimits
from clipmill.pipeline.engine.activity import Activity, Beat, ProcessFinding
from clipmill.pipeline.engine.engines import calls_here
from clipmill.pipeline.engine.runner import Report, Worker
from clipmill.pipeline.engine.standstill import Lookout, Standstills
from clipmill.pipeline.engine.step_inputs import pending_sources, rows_a_shard
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, ShardList, pending
from clipmill.schemas.processors import usable_cpus
from clipmill.stages.media.isolation.terminal import null_input

_LOOK_SECONDS = 1.0


def run_locally(
    plan: Plan,
    steps: tuple[PlannedStep, ...],
    shards: ShardList,
    dataset: Path,
    run_id: str,
    report: Report,
    log_limits: LogLimits,
    lookout: Lookout,
) -> None:
    """Runs what is pending; returns when everything is committed.

    Shards run one after the other, or several at a time where steps take calls at once or compute
    in helper processes. Those that were kept back come last.
    """
    todo = pending(plan, steps, shards, dataset)
    names = sorted({shard for missing in todo.values() for shard in missing})
    plan = replace(plan, keeps_back=plan.stop_after > 0 and len(names) > 1)
    videos = pending_sources(dataset, shards, todo, usable_cpus())
    with null_input():
        worker = Worker(
            plan,
            steps,
            dataset,
            run_id,
            shards,
            report,
            log_limits=log_limits,
            calls=calls_here([step for step in steps if todo[step.label]], videos),
        )
        try:
            with _looked_after(worker.activity, lookout):
                size = rows_a_shard(dataset, names)
                worker.run_all(names, size)
                kept_back = list(dict.fromkeys(worker.kept_back))
                worker.keep_nothing_back()
                worker.run_all(kept_back, size)
        finally:
            worker.close()


@contextlib.contextmanager
def _looked_after(activity: Activity, lookout: Lookout) -> Iterator[None]:
    """Lets a thread report the row at which this process hangs; nothing is killed."""
    standstills = Standstills(
        lookout, lambda beat: ProcessFinding(False, beat.state, activity.place)
    )
    stopping = threading.Event()

    def look() -> None:
        while not stopping.wait(_LOOK_SECONDS):
            standstills.heard({"this one": Beat.of(activity, 0, "", 0)}, time.monotonic())
            standstills.check()

    thread = threading.Thread(target=look, name="lookout", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
