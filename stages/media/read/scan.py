"""The decode pass over one file: yields its kept frames, then returns its statistics.

Runs in a helper process (see `isolated`), so it only imports what decoding needs.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.media.read import measures
from clipmill.stages.media.read.decode import DecodedVideo
from clipmill.stages.media.read.exact import ExactVideo
from clipmill.stages.media.read.fast import FastVideo
from clipmill.stages.media.read.filling import fill
from clipmill.stages.media.read.frame_selector import FrameKeeper
from clipmill.stages.media.read.holes import find_holes
from clipmill.stages.media.read.lean_measures import LeanMeasures
from clipmill.stages.media.read.measures import Measures, WantedMeasures
from clipmill.stages.media.read.needed import NeededVideo
from clipmill.stages.media.read.observers import Observer, finished
from clipmill.stages.media.read.seek import SpannedVideo
from clipmill.stages.media.read.shots.measures import ShotMeasures
from clipmill.stages.media.read.signals.camera import CameraMotion
from clipmill.stages.media.read.signals.picture_signals import PictureSignals
from clipmill.stages.media.read.signals.places import bytes_of_pictures, fill_signals
from clipmill.stages.media.read.signals.sound_levels import measure_sound


@dataclass(frozen=True)
class ScanSettings:
    """How a file is read and what is kept; see the settings of scan_videos.

    `spans` are the pairs of seconds to read, None for all; `starts_at_seconds` is the video time
    of the file's time 0; `in_pieces` means that it was downloaded as segments of a stream.
    `lean`: pictures are measured from the decoder's planes, without BGR images; `wanted` and
    PySceneDetect's detectors need those. Such a scan leaves pictures out in which nothing seems
    to happen, unless `decode_all`. `signals`: what docs/signals.md defines is kept, too. `threads`
    may decode, 0 for as many as there are cores.
    """

    exact: bool
    spans: Sequence[tuple[float | None, float | None]] | None
    starts_at_seconds: float | None
    keep_frames: bool
    frame_short_side: int
    frame_quality: int
    frames_per_second: float
    wanted: WantedMeasures
    in_pieces: bool = False
    lean: bool = False
    decode_all: bool = False
    signals: bool = False
    threads: int = 0


def scan_video(
    path: Path, settings: ScanSettings
) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """Yields the kept frames as columns of FRAME, then returns the columns of SCANS.

    Raises RowFailed (`bad_media`) if the file can't be decoded, at any point.
    """
    # Small images are not worth a thread pool, and the decoder needs the cores.
    cv2.setNumThreads(1)
    video = _opened(path, settings)
    measured = LeanMeasures() if settings.lean else Measures(settings.wanted)
    observers = _observers(settings, measured)
    numbers: list[int] = []
    seconds: list[float] = []
    positions: list[float] = []
    size = (0, 0)
    try:
        with FrameKeeper(settings.frames_per_second, settings.frame_quality) as keeper:
            for picture in video.pictures():
                beat(video.decoded_frames)
                begins = not numbers or not video.follows(numbers[-1], picture.number)
                if begins:
                    for observer in observers:
                        observer.interrupt()
                    assert video.facts is not None
                    size = video.facts.frame_size(settings.frame_short_side)
                for observer in observers:
                    observer.add(picture)
                if settings.keep_frames:
                    keeper.add(picture, size, measured.score, begins)
                    yield from keeper.ready()
                numbers.append(picture.number)
                seconds.append(picture.seconds)
                positions.append(float(picture.position_microseconds))
            yield from keeper.finish(size)
    finally:
        beat(video.decoded_frames)
    columns = _columns(video, finished(observers), numbers, seconds, positions)
    left_out = video.left_out(numbers)
    columns["source_frames"] += len(left_out)
    fill(columns, left_out)
    if settings.signals and video.facts is not None:
        fill_signals(columns, numbers)
        packets = [(video.facts.seconds(stamp), size) for stamp, size in video.packets]
        columns["packet_bytes"] = bytes_of_pictures(packets, columns["seconds"])
        columns |= measure_sound(path, settings.spans, settings.starts_at_seconds)
    if settings.spans is None and video.facts is not None:
        found = find_holes(path, video.facts, columns["seconds"], in_pieces=settings.in_pieces)
        columns["holes"] = [{"start_seconds": a, "end_seconds": b} for a, b in found] or None
    return columns


def _opened(path: Path, settings: ScanSettings) -> DecodedVideo:
    if settings.spans is not None:
        parts = settings.lean or settings.signals
        return SpannedVideo(path, settings.spans, settings.starts_at_seconds, parts=parts)
    if settings.exact:
        return ExactVideo(path, settings.starts_at_seconds, parts=settings.signals)
    if settings.lean and not settings.decode_all:
        return NeededVideo(path, settings.starts_at_seconds, threads=settings.threads)
    return FastVideo(
        path,
        settings.starts_at_seconds,
        lean=settings.lean,
        parts=settings.signals,
        threads=settings.threads,
    )


def _observers(settings: ScanSettings, measured: Measures | LeanMeasures) -> list[Observer]:
    """All that look at the pictures; they are asked in this order."""
    observers: list[Observer] = [measured]
    if settings.lean:
        observers.append(ShotMeasures())
    if settings.signals:
        observers += [PictureSignals(), CameraMotion()]
    return observers


def _columns(
    video: DecodedVideo,
    observed: dict[str, Any],
    numbers: list[int],
    seconds: list[float],
    positions: list[float],
) -> dict[str, Any]:
    facts = video.facts
    assert facts is not None
    statistics = dict(observed["statistics"])
    statistics[measures.POSITION] = positions
    rate = facts.frame_rate
    statistics[measures.FRAME_RATE] = [float(rate.numerator), float(rate.denominator)]
    return {
        **observed,
        "width": facts.width,
        "height": facts.height,
        "fps": float(rate),
        "source_frames": video.source_frames,
        "decoded_frames": video.decoded_frames,
        "end_seconds": video.end_seconds,
        "frame_numbers": numbers,
        "seconds": seconds,
        "statistics": list(statistics.items()),
        "tone_mapped": facts.tone_map is not None,
        "corrupt_seconds": video.corrupt_seconds,
        "corrupt_frames": None if video.corrupt_seconds is None else len(video.corrupt_seconds),
    }
