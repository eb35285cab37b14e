"""Finds gaps with neither picture nor sound: parts that were never received.

A stream that lost a segment, or had an advertisement inserted, has times without frames. So does a
screen recording in which nothing moved, but there the previous picture is what the viewer saw. The
sound distinguishes the two: it continues over a still picture, but not over a hole.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from clipmill.stages.media.read.decode import VideoFacts
from clipmill.stages.media.read.opening import open_media, packets, passing_over

# Gaps between frames are examined from this length on, if this many times the usual distance.
_LEAST_SECONDS = 0.5
_LEAST_FRAMES = 5
# Sound may extend this far into a hole, or cover this share of it.
_SOUND_SHARE = 0.25


def find_holes(
    path: Path, facts: VideoFacts, seconds: Sequence[float], *, in_pieces: bool = False
) -> list[tuple[float, float]]:
    """Pairs of times, each from the end of the last frame to the start of the next one.

    `seconds` are the times of all frames. Without any sound, gaps prove nothing, unless the
    video was sent `in_pieces`, which normally follow each other without gaps.
    """
    gaps = _gaps(seconds)
    if not gaps:
        return []
    sounds = _sounds(path, facts)
    if not sounds:
        return gaps if in_pieces else []
    return [
        (start, end)
        for start, end in gaps
        if _covered(sounds, start, end) <= _SOUND_SHARE * (end - start)
    ]


def _gaps(seconds: Sequence[float]) -> list[tuple[float, float]]:
    distances = [after - at for at, after in itertools.pairwise(seconds)]
    if not distances:
        return []
    usual = statistics.median(distances)
    least = max(_LEAST_SECONDS, _LEAST_FRAMES * usual)
    return [
        (seconds[i] + usual, seconds[i + 1])
        for i, distance in enumerate(distances)
        if distance > least
    ]


def _sounds(path: Path, facts: VideoFacts) -> list[tuple[float, float]]:
    """Start and end of sound packets, in the video's time."""
    stamps: dict[int, list[tuple[Fraction, Fraction]]] = {}
    with open_media(path) as container, passing_over():
        streams = list(container.streams.audio)
        for packet in packets(container, *streams) if streams else ():
            if packet.size and packet.pts is not None:
                stamps.setdefault(packet.stream_index, []).append(
                    (packet.pts * packet.time_base, (packet.duration or 0) * packet.time_base)
                )
    found = []
    for stream in stamps.values():
        # In MP4 the packet before a hole lasts until the next one; no real packet is this long.
        usual = statistics.median_low(
            [length or after - at for (at, length), (after, _) in itertools.pairwise(stream)]
            or [Fraction(1, 50)]
        )
        found += [(at, at + min(length or usual, 2 * usual)) for at, length in stream]
    return [
        (facts.seconds(round(begin / facts.time_base)), facts.seconds(round(end / facts.time_base)))
        for begin, end in found
    ]


def _covered(sounds: Sequence[tuple[float, float]], start: float, end: float) -> float:
    return sum(max(0.0, min(last, end) - max(first, start)) for first, last in sounds)
