"""Re-reads a dataset from end to end and reports what is wrong with it.

All tables are checked for one base shard at a time, so memory holds one group of shards, not the
dataset. What a concurrent run has not done yet is pending, not missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import duckdb

from clipmill.pipeline.dataset.commit_fence import is_held
from clipmill.pipeline.dataset.steps import Step
from clipmill.pipeline.verify.audit_checks import check_audits
from clipmill.pipeline.verify.findings import Book, Finding, Remake, Verification
from clipmill.pipeline.verify.fit_checks import check_fits
from clipmill.pipeline.verify.groups import GroupChecks
from clipmill.pipeline.verify.layout import SOURCES_STEP, Survey, check_notes, read_survey
from clipmill.pipeline.verify.media_checks import MediaChecks
from clipmill.pipeline.verify.removed_checks import check_removed_in_index
from clipmill.pipeline.verify.shard_checks import ShardChecks, ShardRows
from clipmill.pipeline.verify.shown import Shown, find_layout
from clipmill.pipeline.verify.strays import Names, StrayChecks
from clipmill.pipeline.verify.subset_checks import SubsetChecks, check_index
from clipmill.schemas.folders import REMOVED, RUNS, json_files
from clipmill.schemas.scratch import ScratchFolder

__all__ = ["Finding", "Verification", "verify"]

_BY_COMPARING = frozenset(
    ("accounting", "orphan", "missing", "media_missing", "removal", "subset", "index")
)

MEMORY_LIMIT = "1GB"
"""What DuckDB may use for names over the whole dataset before it spills to disk."""
THREADS = 2


def verify(
    dataset: Path,
    *,
    shown_as: str | None = None,
    media: bool = True,
    holds_lock: bool = False,
    say: Callable[[str], None] = lambda said: None,
) -> Verification:
    """Checks a dataset; `holds_lock` says that the caller holds its lock.

    `shown_as` names the dataset in next steps. Without `media`, files of videos are not opened.
    """
    dataset = dataset.absolute()
    book = Book(shown_as or str(dataset))
    was_running, newest = _is_used(dataset, holds_lock), _newest_record(dataset)
    removals = _names(dataset / REMOVED)
    say("listing")
    survey = read_survey(dataset, book)
    check_notes(dataset, book)
    with (
        ScratchFolder("verify") as spill,
        duckdb.connect(
            ":memory:",
            config={
                "temp_directory": str(spill.path),
                "memory_limit": MEMORY_LIMIT,
                "threads": THREADS,
            },
        ) as connection,
    ):
        connection.execute("SET GLOBAL TimeZone = 'UTC'")
        _check(survey, book, connection, media=media, say=say)
    report = book.report
    report.is_running = (
        was_running or _is_used(dataset, holds_lock) or newest != _newest_record(dataset)
    )
    if report.is_running:
        book.drop_what_is_at_work()
    if removals != _names(dataset / REMOVED):
        # Some tables were read before the videos were removed from them, and some after.
        report.is_running = True
        report.faults = [fault for fault in report.faults if fault.check not in _BY_COMPARING]
    return report


def _is_used(dataset: Path, holds_lock: bool) -> bool:
    return not holds_lock and is_held(dataset)


def _names(folder: Path) -> set[str]:
    return {path.name for path in json_files(folder)}


def _newest_record(dataset: Path) -> tuple[str, int] | None:
    """Changes when a run starts or ends."""
    paths = json_files(dataset / RUNS)
    return (paths[-1].name, os.lstat(paths[-1]).st_mtime_ns) if paths else None


def _check(
    survey: Survey,
    book: Book,
    connection: duckdb.DuckDBPyConnection,
    *,
    media: bool,
    say: Callable[[str], None],
) -> None:
    names = Names(connection)
    files = MediaChecks(survey, book, say)

    def seen(rows: dict[Step, dict[str, ShardRows]]) -> None:
        names.take(rows)
        if media:
            files.check(rows)

    shards = ShardChecks(survey, book)
    groups = GroupChecks(survey, shards, book, seen)
    for number, base in enumerate(survey.bases, 1):
        say(f"shard {number} of {len(survey.bases)}")
        groups.check(base)
    shards.finish()
    check_fits(survey, book)
    open_ = _open_steps(book, groups)
    say("names of files")
    sources_known = SOURCES_STEP.id not in open_
    media_known = sources_known and not any(
        "path" in step.columns and step.id in open_ for step in survey.ordered
    )
    StrayChecks(survey, book, names, sources_known, media_known).check()
    layout = find_layout(survey.dataset)
    shown = Shown(survey, shards, book, connection, layout)
    say("doubled keys")
    shown.check_doubles()
    say("subsets")
    has_all_clips = not any(
        name in open_
        for name in survey.current
        if "clip_id" not in survey.steps[name].key and "video_id" in survey.steps[name].columns
    )
    SubsetChecks(survey, book, connection, shown.clips if has_all_clips else None).check()
    check_audits(survey, book)
    check_removed_in_index(survey, book)
    if layout is not None:
        say("the index")
        check_index(survey, layout, book)


def _open_steps(book: Book, groups: GroupChecks) -> set[tuple[str, str]]:
    """Steps with missing or faulty shards."""
    return {
        *groups.pending,
        *(
            (remedy.label, remedy.fingerprint)
            for fault in book.report.faults
            for remedy in fault.remedies
            if isinstance(remedy, Remake)
        ),
    }
