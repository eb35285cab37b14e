"""Retries: a small new shard with just the failed keys, at the step where they failed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.plan import Plan, ShardList, Step, request_is_current
from pipeline.shards import (
    base_shard,
    committed_shards,
    retry_number,
    shard_order,
    shard_path,
    write_json,
)
from schemas.errors import UsageError

RETRIES = "retries"


def list_shards(dataset: Path, first: Sequence[str]) -> ShardList:
    """The dataset's shards: those that ingest made, and the retries that were asked for."""
    requests = {
        path.stem: json.loads(path.read_text())
        for path in sorted((dataset / RETRIES).glob("[!.]*.json"))
    }
    return ShardList(tuple(first), requests)


def current_failures(step: Step, dataset: Path) -> dict[str, dict[str, dict]]:
    """Per base shard: the keys whose newest outcome at this step is an error, with that error."""
    folder = step.folder(dataset)
    found: dict[str, dict[str, dict]] = {}
    for shard in sorted(committed_shards(folder), key=shard_order):
        failed = found.setdefault(base_shard(shard), {})
        table = pq.read_table(shard_path(folder, shard), columns=[step.stage.key, "error"])
        for row in table.to_pylist():
            key = row[step.stage.key]
            if row["error"] is not None:
                failed[key] = row["error"]
            else:
                failed.pop(key, None)
    return {shard: failed for shard, failed in found.items() if failed}


def request_retries(
    plan: Plan, dataset: Path, shards: ShardList, kinds: Sequence[str]
) -> dict[str, int]:
    """Writes a retry shard for every group with failures of `kinds` (all kinds when empty).

    Gives the number of keys to try again by stage. The caller runs what is then pending.
    """
    asked: dict[str, int] = {}
    unfinished = [name for name, request in shards.retries.items()
                  if request_is_current(plan, request)
                  and not shard_path(plan.by_label[request["step"]].folder(dataset), name).exists()]
    if unfinished:
        raise UsageError(f"{len(unfinished)} retries of an earlier `retry` are not done yet; "
                         "`clipmill run` with the same recipe finishes them")
    taken: dict[str, int] = {}
    for name in shards.retries:
        taken[base_shard(name)] = max(taken.get(base_shard(name), 0), retry_number(name))
    for step in plan.steps:
        for base, failed in current_failures(step, dataset).items():
            keys = sorted(key for key, error in failed.items()
                          if not kinds or error["kind"] in kinds)
            if not keys:
                continue
            taken[base] = taken.get(base, 0) + 1
            write_json(dataset / RETRIES / f"{base}.retry{taken[base]}.json", {
                "step": step.label, "fingerprint": step.fingerprint, "keys": keys,
            })
            asked[step.stage_label] = asked.get(step.stage_label, 0) + len(keys)
    return asked
