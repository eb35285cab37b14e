"""Adds sound to a video file; the pictures and their times stay the same, to the tick."""

from __future__ import annotations

import errno
import os
import subprocess
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.isolation.ffmpeg_program import ffmpeg_program
from clipmill.stages.media.isolation.isolated import Limits, run_isolated
from clipmill.stages.media.read.decode import open_container, video_stream
from clipmill.stages.media.read.opening import packets
from clipmill.stages.media.read.probe import Probe, probe

if TYPE_CHECKING:
    from clipmill.stages.media.fetch.ytdlp_calls import YtDlp
    from clipmill.stages.media.fetch.ytdlp_process import Worker


@dataclass(frozen=True)
class _PictureTimes:
    """Where a file's clock starts, and each picture's time and whether it is discarded."""

    start_time: int
    shown: list[tuple[Fraction | None, bool]]


def add_sound(
    source: Path, facts: Probe, sound: Path, target: Path, *, limits: Limits, yt_dlp: YtDlp
) -> Probe:
    """Copies the pictures of `source` and the sound of another file into `target`.

    Returns what is known about the new file. Both begin at the same time, as if they had been
    merged at once; sound before that time is left out, since it would move second 0. The file is
    written in the process of `yt_dlp`, with its limits. Raises RowFailed of kind bad_media if
    there is no sound, if it doesn't fit into such a file, or if a picture or its time would
    change.
    """
    before = run_isolated(_pictures, source, limits=limits)
    starts = Fraction(before.start_time, av.time_base)
    later = starts - run_isolated(_start_of_sound, sound, limits=limits)
    yt_dlp.call(_write, source, sound, target, float(starts), float(later), most_retries=0)
    found = run_isolated(probe, target, limits=limits)
    # The last picture's duration may be rounded.
    same = replace(
        found,
        duration_seconds=facts.duration_seconds,
        fps=facts.fps,
        has_audio=facts.has_audio,
        suffix=facts.suffix,
    )
    if same != facts or run_isolated(_pictures, target, limits=limits) != before:
        raise RowFailed("bad_media", "the sound can't be added without changing the pictures")
    return replace(facts, has_audio=found.has_audio)


def _write(_: Worker, source: Path, sound: Path, target: Path, starts: float, later: float) -> None:
    """Copies with ffmpeg, which preserves everything that a container states about its streams."""
    run = subprocess.run(
        [
            str(ffmpeg_program()),
            "-nostdin",
            "-v",
            "error",
            "-y",
            "-copyts",
            "-i",
            f"file:{source}",
            "-itsoffset",
            f"{later:.6f}",
            "-i",
            f"file:{sound}",
            "-map",
            "0:v",
            "-map",
            "1:a",
            "-c",
            "copy",
            "-map_metadata",
            "0",
            "-bsf:a",
            f"noise=drop=lt(pts*tb\\,{starts:.6f})",
            "-avoid_negative_ts",
            "disabled",
            "-movflags",
            "+faststart",
            f"file:{target}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if run.returncode == 0:
        return
    if os.strerror(errno.ENOSPC) in run.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    said = (run.stderr.strip().splitlines() or [f"ffmpeg ended with {run.returncode}"])[-1]
    raise RowFailed("bad_media", f"the sound can't be added: {said}")


def _pictures(path: Path) -> _PictureTimes:
    with open_container(path) as container:
        shown = [
            (None if packet.pts is None else packet.pts * packet.time_base, packet.is_discard)
            for packet in packets(container, video_stream(container, path))
            if packet.size
        ]
        return _PictureTimes(container.start_time or 0, shown)


def _start_of_sound(path: Path) -> Fraction:
    with open_container(path) as container:
        if not container.streams.audio:
            raise RowFailed("bad_media", "the sound's file contains no sound")
        return Fraction(container.start_time or 0, av.time_base)
