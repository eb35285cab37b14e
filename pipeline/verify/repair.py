"""Sets aside what is broken and can be made again; nothing is ever deleted.

    quarantine/<time>/why.json     what was found, what was moved, what a run is to make again
    quarantine/<time>/…            the files, under the paths that they had in the dataset

`why.json` is written before the first file is moved, so that a killed repair can be distinguished
from a loss; the next one moves the rest.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from clipmill.pipeline.dataset.shards import base_shard, shard_order, write_json
from clipmill.pipeline.dataset.steps import Step
from clipmill.pipeline.dataset.tombstones import tombstones, write_tombstone
from clipmill.pipeline.verify.findings import (
    Book,
    Finding,
    Remake,
    Reopen,
    Report,
    SetAside,
    as_text,
)
from clipmill.pipeline.verify.layout import SOURCES_STEP, Survey, read_survey
from clipmill.schemas.folders import QUARANTINE, QUARANTINE_REASON, RETRIES, SOURCES


@dataclass(frozen=True)
class Repaired:
    """What a repair did: files moved, where to, and the shards that a run is to make."""

    folder: Path | None
    moved: tuple[str, ...]
    awaited: tuple[str, ...]
    reopened: int
    left: tuple[Finding, ...]

    @property
    def needs_sources(self) -> bool:
        """Whether the recipe's sources must be looked at again."""
        return any(name.startswith(f"{SOURCES}/") for name in self.awaited)


def repair(dataset: Path, report: Report) -> Repaired:
    """Carries out the remedies of a report's faults; the caller holds the dataset's lock.

    `left` are the faults that have none.
    """
    dataset = dataset.absolute()
    survey = read_survey(dataset, Book(report.dataset))
    left = tuple(fault for fault in report.faults if not fault.remedies)
    remedies = [remedy for fault in report.faults for remedy in fault.remedies]
    moved: dict[str, None] = {}
    awaited: set[str] = set()
    for remedy in remedies:
        if isinstance(remedy, Remake):
            for step, shard in _made_from(survey, remedy):
                for table in step.tables:
                    moved[step.file(shard, table)] = None
                if step.id in survey.current or step.label == SOURCES:
                    awaited.add(step.file(shard))
            if remedy.label == SOURCES:
                moved.update(
                    (f"{RETRIES}/{name}.json", None)
                    for name in survey.requests
                    if base_shard(name) == remedy.shard
                )
        elif isinstance(remedy, SetAside):
            moved.update((path, None) for path in remedy.paths)
    files = [name for name in moved if os.path.lexists(dataset / name)]
    folder = None
    if files or awaited:
        folder = _new_folder(dataset)
        write_json(
            folder / QUARANTINE_REASON,
            {
                "at": datetime.now(UTC).isoformat(),
                "faults": [
                    {
                        "check": fault.check,
                        "where": as_text(fault.where),
                        "what": as_text(fault.what),
                    }
                    for fault in report.faults
                    if fault.remedies
                ],
                "moved": [as_text(name) for name in files],
                "awaited": sorted(awaited),
            },
        )
        for name in files:
            _move(dataset / name, folder / name)
    reopened = _reopen(
        dataset, {remedy.tombstone for remedy in remedies if isinstance(remedy, Reopen)}
    )
    return Repaired(folder, tuple(files), tuple(sorted(awaited)), reopened, left)


def _made_from(survey: Survey, remedy: Remake) -> Iterator[tuple[Step, str]]:
    """A shard, and those of its base from it on in all steps that depend on its step."""
    name = (remedy.label, remedy.fingerprint)
    step = SOURCES_STEP if remedy.label == SOURCES else survey.steps[name]
    yield step, remedy.shard
    base = base_shard(remedy.shard)
    for child in survey.below(name):
        shards = {shard for table in child.tables for shard in survey.group(child, base, table)}
        for shard in sorted(shards, key=shard_order):
            if shard_order(shard) >= shard_order(remedy.shard):
                yield child, shard


def _new_folder(dataset: Path) -> Path:
    folder = dataset / QUARANTINE / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    folder.mkdir(parents=True)
    return folder


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.move(source, target)  # a folder of the dataset is a link to another disk


def _reopen(dataset: Path, names: Iterable[str]) -> int:
    wanted = set(names)
    stones = [stone for stone in tombstones(dataset) if stone.name in wanted] if wanted else []
    for stone in stones:
        write_tombstone(dataset, replace(stone, purged_at=None))
    return len(stones)
