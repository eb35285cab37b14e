"""What a media file holds, found out by reading its packets: nothing declared is believed.

One frame is decoded, because only a decoded frame tells the rotation it is shown with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from schemas.errors import RowFailed
from stages.media.memory import raise_if_out
from stages.media.opening import (
    NotOpened,
    first_video_stream,
    from_its_start,
    open_media,
    packets,
    too_large,
)
from stages.media.suffixes import MEDIA_SUFFIXES

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
# Formats of one picture, or of a text drawn as one.
_STILL_FORMATS = ("image2", "_pipe", "tty")
# What HEIF and AVIF, which look like MP4, call a file of one picture.
_STILL_BRANDS = ("avif", "heic", "heix", "heim", "heis", "mif1", "mif2", "miaf")
# Larger pictures than 4K must have proven themselves before more than these frames are decoded.
_LARGE_PIXELS = 4096 * 2304
_LARGE_TRIES = 3
# The object of ASF's header that says how large the file is.
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_HEAD_BYTES = 1 << 16
# Where a container declares its end, the packets must come this near to it.
_MISSING_SECONDS = 1.0
_MISSING_SHARE = 0.02


@dataclass(frozen=True)
class Probe:
    """Facts of the file's first video stream; width and height as displayed.

    `first_seconds` is the time stamp of its first frame, None where it has none.
    """

    duration_seconds: float
    width: int
    height: int
    fps: float | None
    codec: str
    has_audio: bool
    suffix: str
    first_seconds: float | None = None

    @property
    def short_side(self) -> int:
        return min(self.width, self.height)


def probe(path: Path) -> Probe:
    """Reads every packet of a file; RowFailed of kind bad_media where it is no whole video."""
    try:
        with open_media(path) as container:
            return _probe(container, path)
    except NotOpened as problem:
        raise RowFailed("bad_media", f"not a readable media file: {problem}") from problem
    except av.FFmpegError as error:
        raise RowFailed("bad_media", f"not a readable media file: {error.strerror}") from error
    except (ArithmeticError, AttributeError, LookupError, ValueError) as error:
        # PyAV's, of headers that make no sense: a time base of 1/0, a stream that is none.
        raise RowFailed("bad_media", f"not a readable media file: {error}") from error


def _probe(container: InputContainer, path: Path) -> Probe:
    if any(mark in container.format.name for mark in _STILL_FORMATS):
        raise RowFailed("bad_media", f"a still image or text, not a video "
                        f"({container.format.name})")
    if (brand := container.metadata.get("major_brand", "").strip()) in _STILL_BRANDS:
        raise RowFailed("bad_media", f"a still image, not a video ({brand})")
    stream = first_video_stream(container)
    if stream is None:
        kinds = sorted({other.type for other in container.streams}) or ["nothing"]
        raise RowFailed("bad_media", f"no video stream; the file holds {', '.join(kinds)}")
    if stream.codec_context is None:
        raise RowFailed("bad_media", "no decoder for the video stream")
    if problem := too_large(stream):
        raise RowFailed("bad_media", f"the video {problem}")
    stream.codec_context.thread_count = 1  # one frame is wanted, not a queue of them
    walk = _Walk(stream)
    try:
        for packet in packets(container):
            walk.take(packet)
    except av.FFmpegError as error:
        raise RowFailed("bad_media", f"truncated or broken after {walk.last_seconds:.2f} s: "
                        f"{error.strerror}") from error
    walk.check_whole(container, path)
    width, height = walk.size
    codec = stream.codec_context.codec.canonical_name
    return Probe(
        duration_seconds=walk.duration_seconds,
        width=width,
        height=height,
        fps=_rate(stream),
        codec=codec,
        has_audio=bool(container.streams.audio),
        suffix=_suffix(container.format.name, path),
        first_seconds=walk.first_seconds,
    )


class _Walk:
    """What is seen on the way through all packets of a file."""

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._packets = 0
        self._first: float | None = None
        self._end: float | None = None
        self._end_of_any: float | None = None
        self._lost = 0
        self._broken_frames = 0
        self._frame_size: tuple[int, int] | None = None
        self._decode_error = ""

    def take(self, packet: av.Packet) -> None:
        """Counts a packet; decodes those of the video until the first frame is out."""
        is_video = packet.stream is self._stream or packet.stream_index == self._stream.index
        if is_video and self._frame_size is None:
            self._decode(packet)
        if packet.size == 0:
            return
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
            self._first = start if self._first is None else min(start, self._first)
            self._end = end if self._end is None else max(end, self._end)

    def _decode(self, packet: av.Packet) -> None:
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            raise_if_out(error)
            # A stream may begin between key frames.
            self._decode_error = self._decode_error or str(error.strerror)
            return
        if frames:
            frame = frames[0]
            self._broken_frames += frame.is_corrupt
            if frame.is_corrupt and frame.width * frame.height > _LARGE_PIXELS:
                if self._broken_frames >= _LARGE_TRIES:
                    raise RowFailed("bad_media", f"declares pictures of {frame.width}×"
                                    f"{frame.height}, but the first {_LARGE_TRIES} that the "
                                    "decoder gives are broken")
                return
            turned = round(frame.rotation / 90) % 2 == 1
            size = (frame.width, frame.height)
            self._frame_size = (size[1], size[0]) if turned else size

    @property
    def first_seconds(self) -> float | None:
        return self._first

    @property
    def last_seconds(self) -> float:
        return self._end_of_any or 0.0

    @property
    def size(self) -> tuple[int, int]:
        if self._frame_size is None:
            raise RowFailed("bad_media", "no frame of the video can be decoded"
                            + (f": {self._decode_error}" if self._decode_error else ""))
        return self._frame_size

    @property
    def duration_seconds(self) -> float:
        if self._first is not None and self._end is not None and self._end > self._first:
            return self._end - self._first
        rate = _rate(self._stream)
        if rate and self._packets:
            return self._packets / rate
        raise RowFailed("bad_media", "the video has no time stamps")

    def check_whole(self, container: InputContainer, path: Path) -> None:
        """The packets must be as many, and reach as far, as the container declares."""
        if not self._packets:
            raise RowFailed("bad_media", "the video stream is empty")
        declared = self._stream.frames
        missing = declared - self._packets
        allowed = max(1, _MISSING_SHARE * declared)
        if missing > allowed and container.format.name.startswith("mov,"):
            # Those that an edit list leaves out are declared, too.
            missing = declared - _stored_packets(path, self._stream.index)
        # Where transport streams were joined, the first packet counts as corrupt.
        joints = max(1, _MISSING_SHARE * self._packets) * (container.format.name == "mpegts")
        if self._lost > joints or missing > allowed:
            raise RowFailed("bad_media", f"truncated: {self._packets} of {declared or '?'} "
                            "declared frames are there")
        if container.duration is None and container.format.name == "asf":
            _check_bytes(path)
        if container.duration is None or self._end_of_any is None:
            return
        seconds = from_its_start(container, container.duration / av.time_base)
        end = seconds + (container.start_time or 0) / av.time_base
        if end - self._end_of_any > max(_MISSING_SECONDS, _MISSING_SHARE * seconds):
            raise RowFailed("bad_media", f"truncated: the packets end at {self._end_of_any:.2f} s "
                            f"of the declared {end:.2f} s")


def _check_bytes(path: Path) -> None:
    """Fails an ASF file that is smaller than it says: then FFmpeg doesn't tell its length."""
    with open(path, "rb") as file:
        head = file.read(_ASF_HEAD_BYTES)
    at = head.find(_ASF_PROPERTIES)
    if at < 0 or at + 92 > len(head) or head[at + 88] & 1:
        return  # says nothing, as what was recorded from a broadcast
    declared, there = int.from_bytes(head[at + 40 : at + 48], "little"), path.stat().st_size
    if there < declared * (1 - _MISSING_SHARE):
        raise RowFailed("bad_media", f"truncated: {there:,} of {declared:,} declared bytes are "
                        "there")


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
