"""Determines where in its video a downloaded part begins.

Every timestamp of the part is read while the file is rewritten to begin at 0 with its first key
frame. A part whose times can't be explained is not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.fetch.sections import NoSection, Section
from clipmill.stages.media.isolation.isolated import run_isolated
from clipmill.stages.media.read.decode import open_container
from clipmill.stages.media.read.framing import framing_of, keep_shape
from clipmill.stages.media.read.opening import first_video_stream, packets
from clipmill.stages.media.read.packets import PacketIndex, read_packets

# How far the end of the last frame may fall short of the span's end.
_ROUNDING_SECONDS = 0.001


def take(section: Section, source: Path, target: Path) -> float:
    """Writes the downloaded part so that it begins at 0; returns where it begins in the video.

    Raises NoSection if the timestamps are in doubt.
    """
    try:
        begins, written = run_isolated(rebase, source, target, limits=section.reading)
    except (av.FFmpegError, OSError, ValueError, OverflowError, RowFailed) as error:
        raise NoSection(f"the part can't be rewritten: {error}") from error
    if written.seconds(0) > max(section.first_seconds, _first_frame_reach(section)):
        raise NoSection(f"the part begins at {written.seconds(0):.3f} s")
    if written.end_seconds < section.last_seconds - _ROUNDING_SECONDS:
        raise NoSection(f"the part ends at {written.end_seconds:.3f} s")
    return begins


def _first_frame_reach(section: Section) -> float:
    """The latest start of a part requested from 0 on: the first frame may come late."""
    return 1.0 if section.start_seconds == 0 else 0.0


def rebase(source: Path, target: Path) -> tuple[float, PacketIndex]:
    """Copies a file so that its first key frame is shown at 0; returns that frame's former time.

    Also returns the copy's index, in the former times. Frames that are shown before it can't be
    decoded, and sound before it has no picture: both are dropped. Raises NoSection if a frame's
    time or display changes, to the tick.
    """
    with open_container(source) as reader:
        video = first_video_stream(reader)
        if video is None:
            raise NoSection("the part contains no video")
        shown: list[Fraction] = []
        options = {"avoid_negative_ts": "disabled"}
        with av.open(f"file:{target}", "w", format=_format_of(target), options=options) as writer:
            picture = writer.add_stream_from_template(video)
            keep_shape(picture, video)
            copies: dict[int, av.stream.Stream] = {video.index: picture}
            for stream in reader.streams.audio:
                copies[stream.index] = writer.add_stream_from_template(stream)
            shape = framing_of(video)
            first: Fraction | None = None
            for packet in _held_back(reader, video, copies):
                if first is None:
                    if not packet.is_keyframe or packet.pts is None:
                        raise NoSection("the part does not begin with a key frame")
                    first = packet.pts * Fraction(packet.time_base)
                if packet.pts is None or packet.pts * packet.time_base < first:
                    continue
                if packet.stream_index == video.index:
                    shown.append(packet.pts * Fraction(packet.time_base))
                shift = round(first / Fraction(packet.time_base))
                packet.pts -= shift
                packet.dts = None if packet.dts is None else packet.dts - shift
                packet.stream = copies[packet.stream_index]
                writer.mux(packet)
        if first is None:
            raise NoSection("the part contains no frame")
    with open_container(target) as written:
        if framing_of(written.streams.video[0]) != shape:
            raise NoSection("the shape of the part's pixels was lost when it was rewritten")
    begins = float(first)
    index = read_packets(target, begins)
    if [(pts + index.offset_pts) * index.time_base for pts in index.pts] != sorted(shown):
        raise NoSection("the part's timestamps changed when it was rewritten")
    if not index.entries or index.entries[0].first_number:
        raise NoSection("the part does not begin with a picture that needs no others")
    return begins, index


def _held_back(
    reader: av.container.InputContainer, video: av.VideoStream, copies: Mapping[int, Any]
) -> Iterator[av.Packet[Any]]:
    """The packets of the copied streams; sound before the first picture is held back until it."""
    waiting: list[av.Packet[Any]] | None = []
    for packet in packets(reader, *(reader.streams[index] for index in copies)):
        if packet.size == 0:
            continue
        if waiting is None:
            yield packet
        elif packet.stream_index == video.index:
            yield packet
            yield from waiting
            waiting = None
        else:
            waiting.append(packet)


def _format_of(path: Path) -> str | None:
    """The container format for the file's name; only those in which yt-dlp writes parts."""
    return {".mkv": "matroska", ".webm": "webm"}.get(path.suffix.lower(), "mp4")
