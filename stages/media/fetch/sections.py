"""Downloads part of a video, and determines where in the video the part begins.

ffmpeg cuts at key frames, so a part begins before the time that was asked for. Left to itself it
counts the part's times from the first frame that was asked for and hides the others, by up to a
frame from what the address says. Here it keeps the video's own time stamps, counted from
the start of the container as players do. They are read back, every one, while the part is written
again to begin at 0 with its first key frame. A part whose times can't be accounted for is not used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.fetch.extractors import NO_PLATFORM, names_videos
from clipmill.stages.media.isolation.isolated import Limits, run_isolated
from clipmill.stages.media.read.decode import open_container
from clipmill.stages.media.read.framing import framing_of, keep_shape
from clipmill.stages.media.read.opening import first_video_stream, packets
from clipmill.stages.media.read.packets import PacketIndex, read_packets

# yt-dlp options by which a part is asked for; with sections on, a recipe can't set them.
RESERVED = frozenset(
    (
        "download_ranges",
        "force_keyframes_at_cuts",
        "external_downloader_args",
        "external_downloader",
    )
)
# What the time stamps of a last frame may lack of the time that its span ends at.
_ROUNDING_SECONDS = 0.001


class NoSection(Exception):
    """The part is not available, or not certain; the whole file will do."""


@dataclass
class Section:
    """The part of a video that contains its spans, from `first_seconds` to `last_seconds`."""

    first_seconds: float
    last_seconds: float
    padding_seconds: float
    timeout_seconds: float
    is_identified: bool
    reading: Limits
    video_seconds: float | None = field(default=None, init=False)
    is_asked: bool = field(default=False, init=False)
    refused: str | None = field(default=None, init=False)

    @property
    def start_seconds(self) -> float:
        return max(0.0, self.first_seconds - self.padding_seconds)

    @property
    def end_seconds(self) -> float:
        return self.last_seconds + self.padding_seconds

    def options(self) -> dict[str, Any]:
        """yt-dlp's options for this part."""
        return {"download_ranges": self._ranges}

    def _ranges(self, info: Mapping[str, Any], downloader: Any) -> Iterator[dict[str, Any]]:
        self.video_seconds = info.get("duration")
        if not self.is_identified and not _is_platform(info):
            self.refused = "the video has no id: it would be identified by the part's bytes"
        elif not self.video_seconds:
            self.refused = "the site does not say how long the video is"
        elif self.start_seconds > 0 or self.end_seconds < self.video_seconds:
            self.is_asked = True
            yield {"start_time": self.start_seconds, "end_time": self.end_seconds}
            return
        yield {}

    def prepare(self, downloader: Any) -> None:
        """Tells ffmpeg, once the rendition is chosen, whose time stamps to keep."""
        if not self.is_asked:
            return
        arguments = [
            "-copyts",
            "-start_at_zero",
            "-rw_timeout",
            str(round(self.timeout_seconds * 1_000_000)),
        ]
        downloader.params["external_downloader_args"] = {"ffmpeg_i": arguments}

    def take(self, source: Path, target: Path) -> float:
        """Writes the downloaded part so that it begins at 0; gives its beginning in the video.

        Raises NoSection if the timestamps are in doubt.
        """
        try:
            begins, written = run_isolated(rebase, source, target, limits=self.reading)
        except (av.FFmpegError, OSError, ValueError, OverflowError, RowFailed) as error:
            raise NoSection(f"the part can't be rewritten: {error}") from error
        if written.seconds(0) > max(self.first_seconds, _first_frame_reach(self)):
            raise NoSection(f"the part begins at {written.seconds(0):.3f} s")
        if written.end_seconds < self.last_seconds - _ROUNDING_SECONDS:
            raise NoSection(f"the part ends at {written.end_seconds:.3f} s")
        return begins


def _first_frame_reach(section: Section) -> float:
    """Until when a part that was asked for from 0 on may begin: a first frame may be late."""
    return 1.0 if section.start_seconds == 0 else 0.0


def _is_platform(info: Mapping[str, Any]) -> bool:
    return bool(info.get("id")) and names_videos(str(info.get("extractor_key") or NO_PLATFORM))


def rebase(source: Path, target: Path) -> tuple[float, PacketIndex]:
    """Copies a file so that its first key frame is shown at 0; gives that frame's time before.

    Also gives the copy's index, in the times before.
    Frames that are shown before it can't be decoded, sound before it has no picture: both go.
    Raises NoSection where a frame's time is not what it was, to the tick, or how it is shown.
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
    """The packets of the copied streams; sound that comes before the first picture waits for it."""
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
    """The container by the file's name; only those that yt-dlp makes of parts."""
    return {".mkv": "matroska", ".webm": "webm"}.get(path.suffix.lower(), "mp4")


def widest(spans: list[dict[str, Any]] | None) -> tuple[float, float] | None:
    """From when to when some spans reach; None where one of them has no end, or there are none."""
    ends = [span["end_seconds"] for span in spans or []]
    if not ends or None in ends:
        return None
    return min(span["start_seconds"] or 0.0 for span in spans or []), max(ends)


def discard(folder: Path, but: Path | None = None) -> None:
    """Removes the files of what won't do, so that what is taken instead is begun with nothing."""
    for path in folder.iterdir():
        if path != but:
            with contextlib.suppress(OSError):
                path.unlink()
