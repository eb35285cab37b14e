"""Determines what a media file contains by reading its packets, trusting no declaration.

Decodes one frame, because only a decoded frame knows its rotation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.isolation.out_of_memory import raise_if_out
from clipmill.stages.media.read.framing import framing_of
from clipmill.stages.media.read.hdr import colours_of
from clipmill.stages.media.read.kinds import encryption_of, what_it_holds, what_it_is
from clipmill.stages.media.read.opening import (
    NotOpened,
    first_video_stream,
    from_its_start,
    open_media,
    packets,
    passing_over,
    too_large,
)
from clipmill.stages.media.read.orientation import orientation_of
from clipmill.stages.media.read.suffixes import MEDIA_SUFFIXES
from clipmill.stages.media.read.wholeness import is_cut_off, missing_share

_SUFFIX_OF_FORMAT = {
    "mov,mp4,m4a,3gp,3g2,mj2": ".mp4",
    "matroska,webm": ".webm",
    "mpegts": ".ts",
    "avi": ".avi",
    "flv": ".flv",
    "asf": ".wmv",
    "mpeg": ".mpg",
    "ogg": ".ogv",
}
# Formats with one picture, or with text rendered as one.
_STILL_FORMATS = ("image2", "_pipe", "tty")
# Brands of HEIF and AVIF, which look like MP4, for single pictures.
_STILL_BRANDS = ("avif", "heic", "heix", "heim", "heis", "mif1", "mif2", "miaf")
# Files larger than 4K must pass checks before more than these frames are decoded.
_LARGE_PIXELS = 4096 * 2304
_LARGE_TRIES = 3
# If a container declares its end, the packets must come this close to it.
_MISSING_SECONDS = 1.0
_MISSING_SHARE = 0.02
# How many frames may be missing if a file is known to be truncated: the one that was cut through,
# and those that are shown before it but stored after it.
_MISSING_FRAMES = 2
# Formats whose length FFmpeg takes from the last packets, or guesses from the bit rate.
_LENGTH_IS_NOT_DECLARED = (
    "mpegts",
    "mpeg",
    "mpegvideo",
    "ogg",
    "dv",
    "h261",
    "h263",
    "h264",
    "hevc",
    "vvc",
    "evc",
    "m4v",
    "vc1",
    "mjpeg",
    "obu",
    "av1",
    "dirac",
    "cavsvideo",
    "avs2",
    "avs3",
    "dnxhd",
    "apv",
)


@dataclass(frozen=True)
class Probe:
    """Facts of the file's first video stream; width and height as displayed.

    `first_seconds` is the timestamp of its first frame, None if it has none, and
    `clock_starts_at_seconds` the one that players call second 0, None in notes of older versions.
    """

    duration_seconds: float
    width: int
    height: int
    fps: float | None
    codec: str
    has_audio: bool
    suffix: str
    first_seconds: float | None = None
    clock_starts_at_seconds: float | None = None
    pixel_format: str | None = None
    color_transfer: str | None = None
    color_primaries: str | None = None

    @property
    def short_side(self) -> int:
        return min(self.width, self.height)


def probe(path: Path) -> Probe:
    """Reads every packet of a file; RowFailed of kind bad_media if it is not a complete video."""
    try:
        with open_media(path) as container:
            return _probe(container, path)
    except NotOpened as problem:
        raise RowFailed("bad_media", f"not a readable media file: {problem}") from problem
    except av.FFmpegError as error:
        raise RowFailed("bad_media", f"not a readable media file: {error.strerror}") from error
    except (ArithmeticError, AttributeError, LookupError, ValueError) as error:
        # Raised by PyAV for nonsensical headers: a time base of 1/0, an invalid stream.
        raise RowFailed("bad_media", f"not a readable media file: {error}") from error


def _probe(container: InputContainer, path: Path) -> Probe:
    if any(mark in container.format.name for mark in _STILL_FORMATS):
        raise RowFailed(
            "bad_media",
            f"{what_it_is(path) or 'a picture or a text'}, not a video ({container.format.name})",
        )
    if (brand := container.metadata.get("major_brand", "").strip()) in _STILL_BRANDS:
        raise RowFailed("bad_media", f"a still image, not a video ({brand})")
    stream = first_video_stream(container)
    if stream is None:
        raise RowFailed("bad_media", f"no video stream; the file holds {what_it_holds(container)}")
    if container.format.name.startswith("mov,") and (scheme := encryption_of(path)):
        raise RowFailed(
            "bad_media",
            f"the video is encrypted ({scheme}), and there is no key; get a copy without DRM",
        )
    if stream.codec_context is None:
        raise RowFailed("bad_media", "the video's codec is not supported by FFmpeg")
    if problem := too_large(stream):
        raise RowFailed("bad_media", f"the video {problem}")
    stream.codec_context.thread_count = 1  # one frame is needed, not a queue of them
    walk, first = _Walk(stream), _FirstFrame(stream)
    try:
        for packet in packets(container):
            # The empty packets at the end have no index.
            if first.size is None and packet.stream.index == stream.index:
                first.look(packet)
            walk.take(packet)
    except av.FFmpegError as error:
        raise RowFailed(
            "bad_media", f"truncated or broken after {walk.last_seconds:.2f} s: {error.strerror}"
        ) from error
    walk.check_whole(container, path)
    width, height = first.required_size
    # Earlier packets may be useless to a decoder, because their references are missing.
    first_seconds = walk.first_seconds if first.seconds is None else first.seconds
    return Probe(
        duration_seconds=walk.duration_seconds(first_seconds),
        width=width,
        height=height,
        fps=_rate(stream),
        codec=stream.codec_context.codec.canonical_name,
        has_audio=bool(container.streams.audio),
        suffix=_suffix(container.format.name, path),
        first_seconds=first_seconds,
        clock_starts_at_seconds=(container.start_time or 0) / av.time_base,
        **first.colours,
    )


def check_whole(path: Path) -> None:
    """Fails a file that ends before its container's declared end, by its packets, without
    decoding."""
    with open_media(path) as container:
        stream = first_video_stream(container)
        if stream is None:
            return
        walk = _Walk(stream)
        with passing_over():
            for packet in packets(container):
                walk.take(packet)
        walk.check_whole(container, path)


class _FirstFrame:
    """The decoder's first frame of a stream: only frames know how they are displayed."""

    def __init__(self, stream: VideoStream) -> None:
        self.size: tuple[int, int] | None = None
        self.seconds: float | None = None
        self.colours: dict[str, str | None] = {}
        self._stream = stream
        self._broken = 0
        self._error = ""

    @property
    def required_size(self) -> tuple[int, int]:
        if self.size is None:
            raise RowFailed(
                "bad_media",
                "no frame of the video can be decoded"
                + (f": {self._error}" if self._error else ""),
            )
        return self.size

    def look(self, packet: av.Packet[Any]) -> None:
        try:
            frames = self._stream.decode(packet)
        except av.FFmpegError as error:
            raise_if_out(error)
            # A stream may begin between key frames.
            self._error = self._error or str(error.strerror)
            return
        if not frames:
            return
        frame = frames[0]
        self._broken += frame.is_corrupt
        if frame.is_corrupt and frame.width * frame.height > _LARGE_PIXELS:
            if self._broken >= _LARGE_TRIES:
                raise RowFailed(
                    "bad_media",
                    f"declares pictures of {frame.width}×{frame.height}, "
                    f"but the first {_LARGE_TRIES} decoded ones are broken",
                )
            return
        self.colours = colours_of(frame)
        self.size = orientation_of(frame).shown(
            *framing_of(self._stream).size(frame.width, frame.height)
        )
        self.seconds = frame.time


class _Walk:
    """What is recorded while reading all packets of a file."""

    def __init__(self, stream: VideoStream) -> None:
        self.first_seconds: float | None = None
        self._stream = stream
        self._packets = 0
        self._end: float | None = None
        self._end_of_any: float | None = None
        self._lost = 0

    def take(self, packet: av.Packet[Any]) -> None:
        if packet.size == 0:
            return
        is_video = packet.stream_index == self._stream.index
        if is_video:
            self._lost += packet.is_corrupt
            self._packets += 1
        if packet.is_discard:  # decoded, never shown
            return
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None:
            return
        start = float(stamp * packet.time_base)
        end = start + float((packet.duration or 0) * packet.time_base)
        self._end_of_any = end if self._end_of_any is None else max(end, self._end_of_any)
        if is_video:
            first = self.first_seconds
            self.first_seconds = start if first is None else min(start, first)
            self._end = end if self._end is None else max(end, self._end)

    @property
    def last_seconds(self) -> float:
        return self._end_of_any or 0.0

    def duration_seconds(self, first_seconds: float | None) -> float:
        """The duration of the video from its first frame on."""
        if first_seconds is not None and self._end is not None and self._end > first_seconds:
            return self._end - first_seconds
        rate = _rate(self._stream)
        if rate and self._packets:
            return self._packets / rate
        raise RowFailed("bad_media", "the video has no time stamps")

    def check_whole(self, container: InputContainer, path: Path) -> None:
        """Fails a file that ends before its container does.

        What counts is how far its packets reach, and whether its bytes are complete; the header's
        duration alone does not, because it is often too long.
        """
        if not self._packets:
            raise RowFailed(
                "bad_media",
                "the video stream is declared, but has no frames; the "
                "recording or download ended before its first one",
            )
        format_name = container.format.name
        # Where transport streams were joined, the first packet counts as corrupt; where a file was
        # cut off, the last one does.
        if self._lost > max(1, _MISSING_SHARE * self._packets):
            raise RowFailed(
                "bad_media", f"damaged: {self._lost} of {self._packets} frames are not complete"
            )
        if format_name.startswith("mov,"):
            self._check_samples(path)
            return
        is_cut = is_cut_off(path, format_name)
        if is_cut and container.duration is None and missing_share(path) > _MISSING_SHARE:
            raise RowFailed(
                "bad_media",
                f"truncated: the file is smaller than it declares, by {missing_share(path):.0%}",
            )
        if (
            is_cut is False
            or container.duration is None
            or self._end_of_any is None
            or format_name in _LENGTH_IS_NOT_DECLARED
        ):
            return
        seconds = from_its_start(container, container.duration / av.time_base)
        end = seconds + (container.start_time or 0) / av.time_base
        reached, least = self._end_of_any, _MISSING_SECONDS
        frame_seconds = 1 / (_rate(self._stream) or 25)
        if is_cut:
            least = _MISSING_FRAMES * frame_seconds
        if format_name == "avi" and self._end is not None:
            # FFmpeg's own count ends with the file; the header's also includes hidden frames.
            end, reached = self._stream.frames * frame_seconds, self._end
            least = _MISSING_FRAMES * frame_seconds
        if end - reached > max(least, _MISSING_SHARE * seconds):
            raise RowFailed(
                "bad_media",
                f"truncated: the packets end at {reached:.2f} s of the declared {end:.2f} s",
            )

    def _check_samples(self, path: Path) -> None:
        """Fails a file that lacks samples listed in its index."""
        size = path.stat().st_size
        entries = self._stream.index_entries
        declared = max(self._stream.frames, len(entries))
        allowed = max(1, _MISSING_SHARE * declared)
        cut, empty = 0, 0
        for entry in entries:
            cut += entry.pos + entry.size > size
            empty += entry.size == 0  # some recorders repeat a frame this way
        if cut > allowed:
            raise RowFailed(
                "bad_media",
                f"truncated: only {declared - cut} of {declared} declared frames are present",
            )
        # Those hidden by an edit list are declared, too.
        if declared - empty - self._packets > allowed:
            stored = _stored_packets(path, self._stream.index)
            if declared - empty - stored > allowed:
                raise RowFailed(
                    "bad_media", f"damaged: {stored} of {declared} declared frames can be found"
                )


def _stored_packets(path: Path, index: int) -> int:
    """How many packets of a stream are in the file, shown or not."""
    with open_media(path, ignore_editlist="1") as container:
        return sum(packet.size > 0 for packet in packets(container, container.streams[index]))


def _rate(stream: VideoStream) -> float | None:
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else None


def _suffix(format_name: str, path: Path) -> str:
    if path.suffix.lower() in MEDIA_SUFFIXES:
        return path.suffix.lower()
    return _SUFFIX_OF_FORMAT.get(format_name, ".video")
