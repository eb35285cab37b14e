"""`clipmill import`: turns published metadata into a dataset's sources."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

import clipmill
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.words import counted

if TYPE_CHECKING:
    from clipmill import ImportReport


def import_published(
    dataset: Path, files: Sequence[Path], format: str, *, limit: int | None = None, **asked: Any
) -> None:
    """Imports published rows, and prints what became of each."""
    with _progress(files, passes=1 if limit is None else 2) as report:
        found = clipmill.import_published(
            dataset, files, format, limit=limit, on_bytes=report, **asked
        )
    for note in (found.note, found.index_problem):
        if note is not None:
            Console(stderr=True, highlight=False).print(note, soft_wrap=True)
    for line in describe(found, limit):
        print(line)
    if found.kept:
        place = shell_word(dataset.expanduser().absolute())
        if format == "internvid":
            print(f"Next: clipmill run internvid-metadata --dataset {place}")
        else:
            print(f"Next: clipmill sql {place} 'SELECT * FROM clips LIMIT 5'")


def import_internvid(dataset: Path, files: Sequence[Path], **asked: Any) -> None:
    """`import_published` of InternVid's rows."""
    import_published(dataset, files, "internvid", **asked)


def describe(report: ImportReport, limit: int | None) -> Iterator[str]:
    """What became of the rows, as text; the numbers add up."""
    parts = [f"{report.kept:,} kept", f"{report.rejected:,} rejected", f"{report.failed:,} failed"]
    if report.known:
        parts.append(f"{report.known:,} already known")
    if report.not_taken:
        parts.append(f"{report.not_taken:,} not taken")
    if report.removed:
        parts.append(f"{report.removed:,} of removed videos")
    of = "" if limit is None else f" of the first {counted(limit, 'video')}"
    yield f"Rows{of}: {report.rows:,} = {' + '.join(parts)}."
    shards = counted(len(report.shards), "shard")
    grown = f", {report.grown_videos:,} known ones with more clips" if report.grown_videos else ""
    yield (
        f"Videos: {report.new_videos:,} new in {shards}{grown}."
        if report.shards or grown
        else "Nothing new."
    )
    if report.not_taken:
        yield (
            "Not taken: more clips of videos that a run has worked on, or that were "
            "listed as a whole; their clips are fixed. To include them, import all files into a "
            "new dataset before its first run."
        )


@contextlib.contextmanager
def _progress(files: Sequence[Path], passes: int) -> Iterator[Callable[[int], None]]:
    """Bytes read, on standard error; silent if that is not a terminal."""
    total = passes * sum(path.stat().st_size for path in files if path.is_file())
    console = Console(stderr=True)
    with Progress(
        TextColumn("reading"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("reading", total=total)
        yield lambda count: progress.advance(task, count)
