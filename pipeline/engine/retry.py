"""Retries: a small new shard with only the failed keys, at the step where they failed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from clipmill.pipeline.dataset.shards import (
    base_shard,
    committed_shards,
    is_shard,
    retry_number,
    shard_name,
    shard_path,
    write_json,
)
from clipmill.pipeline.engine.step_inputs import read_group
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, RetryRequest, ShardList, beginnings
from clipmill.schemas.damage import read_json, reading
from clipmill.schemas.folders import RETRIES, json_files


def list_shards(dataset: Path, first: Sequence[str]) -> ShardList:
    """The dataset's shards: those made by ingest, and the requested retries."""
    return ShardList(tuple(first), read_requests(dataset))


LET_IN = "let in"
"""Why a shard was requested whose keys did not fail: they were skipped, and pass now."""


class Requests:
    """Writes requests for small new shards, each with the next number of its base shard."""

    def __init__(self, dataset: Path, shards: ShardList) -> None:
        self._dataset = dataset
        self._taken: dict[str, int] = {}
        for name in shards.retries:
            base = base_shard(name)
            self._taken[base] = max(self._taken.get(base, 0), retry_number(name))

    def write(
        self,
        step: PlannedStep,
        base: str,
        keys: Sequence[str],
        asked_at: str,
        why: str | None = None,
        also: Sequence[tuple[PlannedStep, Sequence[str]]] = (),
    ) -> None:
        """Requests that a step does these keys of a base shard; the steps below it follow.

        `also` are further steps with their keys.
        """
        number = self._taken[base] = self._taken.get(base, 0) + 1
        request: RetryRequest = {
            "step": step.label,
            "fingerprint": step.fingerprint,
            "keys": list(keys),
            "asked_at": asked_at,
        }
        if why is not None:
            request["why"] = why
        if also:
            request["also"] = [
                {"step": one.label, "fingerprint": one.fingerprint, "keys": list(named)}
                for one, named in also
            ]
        write_json(self._dataset / RETRIES / f"{shard_name(int(base), number)}.json", request)


def read_requests(dataset: Path) -> dict[str, RetryRequest]:
    """The retry requests, by the shard that each one makes."""
    return {path.stem: read_request(path) for path in json_files(dataset / RETRIES)}


def read_request(path: Path) -> RetryRequest:
    """A retry's request; DamagedFile if it is not one."""
    request = read_json(path)
    with reading(path):
        if not (is_shard(path.stem) and retry_number(path.stem)):
            raise ValueError("its name is not that of a retry shard")
        asked_at = request.get("asked_at")  # older requests have no time
        for one in (request, *request.get("also", ())):
            keys = one["keys"]
            if not isinstance(keys, list) or not all(
                isinstance(text, str) for text in (one["step"], one["fingerprint"], *keys)
            ):
                raise TypeError("its step, fingerprint and keys are not all texts")
        if asked_at is not None:
            datetime.fromisoformat(asked_at)
    return cast("RetryRequest", request)


def current_failures(
    step: PlannedStep, dataset: Path
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Per base shard: the keys whose newest outcome at this step is an error, with that error.

    The errors of a kept row are those of its missing parts, each with its `part`.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    parts = [name for name in step.columns if name == "failed_parts"]
    shards = committed_shards(step.folder(dataset))
    for shard, rows in read_group(step, dataset, shards, ["error", *parts]):
        failed = found.setdefault(base_shard(shard), {})
        for row in rows.to_pylist():
            key = row[step.key]
            if row["error"] is not None:
                failed[key] = [row["error"]]
            elif row.get("failed_parts"):
                failed[key] = row["failed_parts"]
            else:
                failed.pop(key, None)
    return {shard: failed for shard, failed in found.items() if failed}


@dataclass(frozen=True)
class Unfinished:
    """Retries that were requested but not done: how many shards, and since when."""

    shards: int = 0
    asked_at: datetime | None = None

    def __bool__(self) -> bool:
        return self.shards > 0

    def has_tried(self, error: dict[str, Any]) -> bool:
        """Whether a row failed after these retries were requested, that is, as part of them."""
        return (
            self.asked_at is not None and error["at"] is not None and error["at"] >= self.asked_at
        )


def unfinished_retries(plan: Plan, dataset: Path, shards: ShardList) -> Unfinished:
    """What an interrupted `retry` still had to do; running what is pending finishes it."""
    found = [
        request
        for name, request in shards.retries.items()
        if request.get("why") is None
        and any(
            not shard_path(plan.by_label[label].folder(dataset), name).exists()
            for label, fingerprint in beginnings(request)
            if (label, fingerprint) in {step.id for step in plan.steps}
        )
    ]
    times = [
        datetime.fromisoformat(asked_at)
        for request in found
        if (asked_at := request.get("asked_at")) is not None
    ]
    return Unfinished(len(found), min(times, default=None))


def request_retries(
    plan: Plan,
    dataset: Path,
    shards: ShardList,
    kinds: Sequence[str],
    finished: Unfinished = Unfinished(),
) -> dict[str, int]:
    """Writes a retry shard for every group with failures of `kinds` (all kinds when empty).

    Rows that a just `finished` retry already tried are left to the next one. Returns the number of
    keys to retry by stage, or by part of one. The caller then runs what is pending.
    """
    asked: dict[str, int] = {}
    requests = Requests(dataset, shards)
    asked_at = datetime.now(UTC).isoformat()
    for step in plan.steps:
        for base, failed in current_failures(step, dataset).items():
            again = {
                key: found
                for key, errors in sorted(failed.items())
                if (
                    found := [
                        error
                        for error in errors
                        if (not kinds or error["kind"] in kinds) and not finished.has_tried(error)
                    ]
                )
            }
            if not again:
                continue
            requests.write(step, base, list(again), asked_at)
            for error in itertools.chain.from_iterable(again.values()):
                part = error.get("part")
                name = step.stage_label if part is None else f"{step.stage_label}.{part}"
                asked[name] = asked.get(name, 0) + 1
    return asked
