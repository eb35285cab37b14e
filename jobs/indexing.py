"""`clipmill index`: joins clips and videos once, for faster queries."""

from __future__ import annotations

from pathlib import Path

import clipmill
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.words import counted


def index_dataset(dataset: Path, *, wait: bool = False) -> None:
    """Builds or updates a dataset's index, and reports on it."""
    opened = clipmill.open(dataset)
    report = opened.index(wait=wait)
    if report is None:
        print(
            "Nothing to index: the newest run has no videos split into clips, or a column has a "
            "type that can't be stored. Queries read the tables directly; see `clipmill status "
            f"{shell_word(opened.path)}`."
        )
        return
    if report.n_published:
        print(f"{counted(report.n_published, 'published clip')} without media so far.")
        if not report.n_parts:
            return
    print(
        f"{counted(report.n_clips, 'clip')} in {counted(report.n_parts, 'part')}, "
        f"{report.n_new:,} built now."
    )
