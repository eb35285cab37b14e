"""`clipmill export`: clips, with or without their media, as files for training."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import TYPE_CHECKING

from clipmill.pipeline.dataset.versions import code_version
from clipmill.pipeline.exports.request import ExportRequest
from clipmill.pipeline.exports.run_export import Exported, ExportWatcher, run_export
from clipmill.pipeline.exports.units import FAILURES
from clipmill.schemas.words import counted, plain_hours

if TYPE_CHECKING:
    from rich.progress import TaskID

_STEPS = {
    "select": "select clips",
    "cut": "cut clips",
    "render": "render samples",
    "write": "write shards",
}


def export(request: ExportRequest, *, memory_limit: str | None = None) -> None:
    """Exports, and prints what became of the clips."""
    with _Shown() as shown:
        done = run_export(
            request,
            code_version=code_version(),
            memory_limit=memory_limit,
            watcher=ExportWatcher(shown.begin, shown.step),
        )
    _say(request, done)


def _say(request: ExportRequest, done: Exported) -> None:
    manifest = done.manifest
    if done.was_finished:
        print(f"{request.output} already contains this export, complete: nothing to do.")
    for note in manifest["notes"]:
        print(note, file=sys.stderr)
    counts = manifest["counts"]
    failed = sum(counts["failed"].values())
    left_out = sum(counts["left_out"].values())
    print(
        f"{counted(counts['clips'], 'clip')}: {counts['exported']:,} exported, "
        f"{left_out:,} left out{_reasons(counts['left_out'])}, "
        f"{failed:,} failed{_reasons(counts['failed'])}"
    )
    files = manifest["files"]
    size = sum(file["size_bytes"] for file in files)
    shards = counted(len(files), "file")
    if request.format == "interleaved":
        shards += f" of {counted(sum(file['items'] for file in files), 'document')}"
    print(
        f"{shards}, {_size(size)}, of {counted(manifest['videos'], 'video')} and "
        f"{plain_hours(manifest['hours'])}, in {request.output}"
    )
    if counts["left_out"].get("no caption"):
        print(
            f"Clips without {request.caption} are left out of this format; --keep-uncaptioned "
            "keeps them, --caption COLUMN uses another text.",
            file=sys.stderr,
        )
    if failed:
        print(f"What failed and why: {request.output / FAILURES}", file=sys.stderr)


def _reasons(counts: dict[str, int]) -> str:
    if not counts:
        return ""
    return " (" + ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) + ")"


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


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
