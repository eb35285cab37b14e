"""`clipmill export`: clips, with or without their media, as files for training."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import clipmill
from clipmill.jobs.cli_options import ExportFormat
from clipmill.pipeline.exports.units import FAILURES
from clipmill.schemas.words import counted, plain_hours, plain_size

if TYPE_CHECKING:
    from rich.progress import TaskID

_STEPS = {
    "select": "select clips",
    "cut": "cut clips",
    "render": "render samples",
    "write": "write shards",
}


def export(
    dataset: Path,
    output: Path,
    format: ExportFormat,
    *,
    memory_limit: str | None = None,
    caption: str = "caption",
    **options: Any,
) -> None:
    """Exports, and prints what became of the clips."""
    opened = clipmill.open(dataset, memory_limit=memory_limit)
    output = output.absolute()
    with _Shown() as shown:
        done = opened.export(
            output,
            format,
            caption=caption,
            watcher=clipmill.ExportWatcher(shown.begin, shown.step),
            **options,
        )
    if done.was_finished:
        print(f"{output} already contains this export, complete: nothing to do.")
    for note in done["notes"]:
        print(note, file=sys.stderr)
    counts, files = done["counts"], done["files"]
    failed = sum(counts["failed"].values())
    left_out = sum(counts["left_out"].values())
    print(
        f"{counted(counts['clips'], 'clip')}: {counts['exported']:,} exported, "
        f"{left_out:,} left out{_reasons(counts['left_out'])}, "
        f"{failed:,} failed{_reasons(counts['failed'])}"
    )
    shards = counted(len(files), "file")
    if format == "interleaved":
        shards += f" of {counted(sum(file['items'] for file in files), 'document')}"
    print(
        f"{shards}, {plain_size(sum(file['size_bytes'] for file in files))}, of "
        f"{counted(done['videos'], 'video')} and {plain_hours(done['hours'])}, in {output}"
    )
    if cropped := done.manifest.get("cropped"):
        print(f"cropped: {counted(cropped['clips'], 'clip')}, {plain_hours(cropped['hours'])}")
    if counts["left_out"].get("no caption"):
        print(
            f"Clips without {caption} are left out of this format; --keep-uncaptioned "
            "keeps them, --caption COLUMN uses another text.",
            file=sys.stderr,
        )
    if failed:
        print(f"What failed and why: {output / FAILURES}", file=sys.stderr)


def _reasons(counts: dict[str, int]) -> str:
    if not counts:
        return ""
    return " (" + ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) + ")"


class _Shown:
    """Progress on standard error, if that is a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        # A separate handle to the terminal: the Ray engine filters everything else on stderr.
        self._console = Console(file=os.fdopen(os.dup(2), "w"))
        self._progress = Progress(
            TextColumn("{task.description:14}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("clips"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[failed]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._failed: Counter[TaskID] = Counter()
        self._current: TaskID | None = None

    def __enter__(self) -> _Shown:
        self._progress.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._progress.stop()

    def begin(self, step: str, clips: int | None) -> None:
        self._current = self._progress.add_task(_STEPS[step], total=clips, failed="")

    def step(self, clips: int, failed: int) -> None:
        if self._current is None:
            return
        self._failed[self._current] += failed
        count = self._failed[self._current]
        self._progress.update(
            self._current, advance=clips, failed=f"{count:,} failed" if count else ""
        )
