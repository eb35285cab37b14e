"""The local engine: every shard through every step in this process, for debugging."""

from __future__ import annotations

from pathlib import Path

from pipeline.logs import LogLimits
from pipeline.plan import Plan, ShardList, Step, pending
from pipeline.runner import Report, Worker
from stages.media.terminal import null_input


def run_locally(
    plan: Plan, steps: tuple[Step, ...], shards: ShardList, dataset: Path, run_id: str,
    report: Report, log_limits: LogLimits,
) -> None:
    """Runs what is pending, shard by shard; returns when all is committed."""
    todo = pending(plan, steps, shards, dataset)
    names = sorted({shard for missing in todo.values() for shard in missing})
    with null_input():
        worker = Worker(plan, steps, dataset, run_id, shards, report, log_limits=log_limits)
        try:
            for shard in names:
                worker.run(shard)
        finally:
            worker.close()
