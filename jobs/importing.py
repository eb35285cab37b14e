"""`clipmill import`: turns published metadata into a dataset's sources."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from clipmill.pipeline.dataset.locks import dataset_lock, remove_if_empty
from clipmill.pipeline.dataset.run_records import check_place
from clipmill.pipeline.ingest.sources import fixed_shards_note
from clipmill.pipeline.ingest.span_import import ImportReport, import_spans
from clipmill.pipeline.recipes.recipe import SHARD_VIDEOS
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.words import counted


def import_internvid(
    dataset: Path,
    files: Sequence[Path],
    *,
    shard_videos: int | None = None,
    limit: int | None = None,
    exclude_ids: Path | None = None,
    wait: bool = False,
) -> None:
    """Imports InternVid's published rows, and prints what became of each.

    `shard_videos` is the number of videos per shard, if given.
    """
    dataset = dataset.expanduser().absolute()
    check_place(dataset)
    is_new = not dataset.exists()
    dataset.mkdir(parents=True, exist_ok=True)
    try:
        with dataset_lock(dataset, "import", wait=wait):
            if shard_videos is not None:
                note = fixed_shards_note(dataset, shard_videos, "--shard-videos", by_hand=True)
                if note is not None:
                    Console(stderr=True, highlight=False).print(note, soft_wrap=True)
            with _progress(files, passes=1 if limit is None else 2) as report:
                found = import_spans(
                    dataset,
                    files,
                    shard_videos=shard_videos or SHARD_VIDEOS,
                    limit=limit,
                    exclude_ids=exclude_ids,
                    report_bytes=report,
                )
    except BaseException:
        if is_new:
            remove_if_empty(dataset)
        raise
    for line in describe(found, limit):
        print(line)
    if found.kept:
        print(f"Next: clipmill run internvid-metadata --dataset {shell_word(dataset)}")


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
