"""A run's progress: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import re
import time
from collections import Counter

import pytest
from rich.console import Console

from clipmill.jobs.progress_bars import TerminalProgress
from clipmill.pipeline.engine.activity import Beat, Place, Process
from clipmill.pipeline.engine.standstill import Seen


def console(columns: int = 100, terminal: bool = True) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=columns,
        height=30,
        color_system=None,
        legacy_windows=False,
    )


def screen(progress: TerminalProgress, to: Console) -> str:
    to.print(progress._screen())
    return to.file.getvalue()


def worker(still_seconds: float = 1.0, is_standing: bool = False) -> Seen:
    place = Place("split_clips", "000003", "at", ("file-1", "file-2"))
    beat = Beat(0, "node", 0, "host7", Process(4321, 1), 1, place, "S")
    return Seen(beat, place, still_seconds, "T" if is_standing else "S", is_standing, False)


def half_done(progress: TerminalProgress) -> None:
    progress.report("download_videos", Counter(begun=1, inputs=16))
    progress.report("download_videos", Counter(kept=10, seconds=5400.0, share=10 / 16))
    progress.report("download_videos", Counter(rejected=4, failed=2, share=6 / 16, shards=1))
    progress.report("split_clips", Counter(begun=1, inputs=10))
    progress.report("split_clips", Counter(share=1))  # its first step is done


def test_one_bar_per_stage_with_rows_hours_and_workers():
    to = console()
    progress = TerminalProgress({"download_videos": [2], "split_clips": [2, 2]}, console=to)
    half_done(progress)
    progress.show([worker()])
    shown = screen(progress, to)
    download, split = (
        next(line for line in shown.splitlines() if line.startswith(label + " "))
        for label in ("download_videos", "split_clips")
    )
    assert "━" in download
    assert "16/~32" in download
    assert "1.50 h" in download
    assert re.search(r"\b4 +2 *$", download)
    assert re.search(r"0/~20\b", split)
    assert "split_clips worker 4321 on host7: at file-1 and 1 more (shard 000003)" in shown


def test_short_films_have_a_duration():
    progress = TerminalProgress({"download_videos": [1]}, console=console(terminal=False))
    progress.report("download_videos", Counter(kept=1, seconds=14.2, share=1))
    assert ", 14 s, " in progress.line()


def test_progress_fits_80_columns():
    to = console(80)
    progress = TerminalProgress({"score_video_similarity": [2], "split_clips": [2, 2]}, console=to)
    half_done(progress)
    progress.show([worker(700, is_standing=True)])
    assert max(map(len, screen(progress, to).splitlines())) <= 80


@pytest.mark.parametrize("columns", [30, 40, 50, 60])
def test_numbers_are_not_truncated_on_narrow_terminals(columns):
    to = console(columns)
    progress = TerminalProgress({"download_videos": [2], "split_clips": [2, 2]}, console=to)
    half_done(progress)
    lines = screen(progress, to).splitlines()
    assert all(len(line) <= columns for line in lines)
    assert not any("…" in line for line in lines)
    assert "16/~32" in lines[1]
    assert re.search(r"\b2 *$", lines[1])


def test_stalled_worker_comes_first():
    to = console(200)
    progress = TerminalProgress({"split_clips": [2]}, console=to)
    progress.show([worker() for _ in range(40)] + [worker(700, is_standing=True)])
    lines = [line for line in screen(progress, to).splitlines() if "4321" in line]
    assert "stopped (T), no progress for 12 min, at file-1" in lines[0]
    assert "and 33 more workers" in to.file.getvalue()


def test_pipe_gets_an_occasional_line():
    to = console(terminal=False)
    with TerminalProgress(
        {"download_videos": [2], "split_clips": [2, 2]}, line_seconds=0.05, console=to
    ) as progress:
        half_done(progress)
        end = time.monotonic() + 60
        while "split_clips" not in to.file.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    line = next(one for one in to.file.getvalue().splitlines() if "split_clips" in one)
    assert re.match(
        r"\[0:00:\d\d\] download_videos 16/~32 rows \(50%\), 1\.50 h, \S+, \S+ left, "
        r"4 rejected, 2 failed \| split_clips 0/~20 rows \(25%\), ",
        line,
    ), line


def test_short_run_in_a_pipe_prints_nothing():
    to = console(terminal=False)
    with TerminalProgress({"download_videos": [2]}, console=to) as progress:
        half_done(progress)
    assert to.file.getvalue() == ""
