"""Sets aside what is broken and can be made again; nothing is ever deleted.

quarantine/<time>/why.json     what was found, what was moved, what a run must make again
quarantine/<time>/…            the files, under the paths that they had in the dataset

`why.json` is written before the first file is moved, so that an interrupted repair can be told
apart from data loss; the next repair moves the rest.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from clipmill.pipeline.dataset.locks import dataset_lock
from clipmill.pipeline.dataset.shards import base_shard, shard_order, write_json
from clipmill.pipeline.dataset.steps import Step
from clipmill.pipeline.dataset.tombstones import tombstones, write_tombstone
from clipmill.pipeline.verify import verify
from clipmill.pipeline.verify.findings import Book, Remake, Reopen, Repaired, SetAside, Verification
from clipmill.pipeline.verify.layout import SOURCES_STEP, Survey, read_survey
from clipmill.schemas.errors import storable
from clipmill.schemas.folders import QUARANTINE, QUARANTINE_REASON, RETRIES, SOURCES
from clipmill.schemas.storage import writing_to


def verify_and_repair(
    dataset: Path,
    *,
    shown_as: str | None = None,
    media: bool = True,
    wait: bool = False,
    say: Callable[[str], None] = lambda said: None,
) -> Verification:
    """Verifies a dataset under its lock, and sets aside what can be made again."""

    with dataset_lock(dataset, "verify --repair", wait=wait):
        found = verify(dataset, shown_as=shown_as, media=media, holds_lock=True, say=say)
        if found.faults:
            say("setting aside")
            with writing_to(dataset):
                found.repaired = repair(dataset, found)
    return found


def repair(dataset: Path, report: Verification) -> Repaired:
    """Carries out the remedies of a report's faults; the caller holds the dataset's lock.

    `left` are the faults without remedies.
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
                        "where": storable(fault.where),
                        "what": storable(fault.what),
                    }
                    for fault in report.faults
                    if fault.remedies
                ],
                "moved": [storable(name) for name in files],
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
    """A shard, and the shards of its base in all steps that depend on its step."""
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
