"""Opens untrusted files: only formats that contain the media, never references to other files.

Playlists, concatenation lists and session descriptions are "media" to FFmpeg and make it open
whatever they name. They are refused here, like pictures larger than any video's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream

from clipmill.stages.media.isolation.out_of_memory import raise_if_out
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.media.read.kinds import READ_FORMATS, what_it_is

MAX_PIXELS = 8192 * 8192
"""Pictures with more pixels are not decoded; 8K video has half as many."""

_VIDEO_FORMATS = (
    "mov",
    "matroska",
    "webm",
    "mpegts",
    "mpeg",
    "mpegvideo",
    "avi",
    "flv",
    "live_flv",
    "kux",
    "asf",
    "asf_o",
    "ogg",
    "mxf",
    "gxf",
    "nut",
    "rm",
    "dv",
    "wtv",
    "nsv",
    "nuv",
    "swf",
    "dhav",
    "ivf",
    "obu",
    "av1",
    "yuv4mpegpipe",
    "h261",
    "h263",
    "h264",
    "hevc",
    "vvc",
    "evc",
    "m4v",
    "vc1",
    "vc1test",
    "mjpeg",
    "mjpeg_2000",
    "dirac",
    "cavsvideo",
    "avs2",
    "avs3",
    "dnxhd",
    "smjpeg",
    "ipmovie",
    "ifv",
    "pva",
    "ty",
    "lxf",
    "cine",
    "roq",
    "bink",
    "smk",
    "flic",
    "vivo",
    "gif",
    "apng",
    "apv",
)
# Opened only to say what they are: sound, or one picture.
_OTHER_FORMATS = (
    "mp3",
    "aac",
    "ac3",
    "eac3",
    "ac4",
    "wav",
    "w64",
    "flac",
    "aiff",
    "amr",
    "amrnb",
    "amrwb",
    "caf",
    "dts",
    "dtshd",
    "wv",
    "ape",
    "tta",
    "au",
    "truehd",
    "mlp",
    "loas",
    "oma",
    "iamf",
)
_PICTURE_MARK = "_pipe"  # single-picture formats, each named by its codec


class NotOpened(Exception):
    """The file is in an unsupported format; the text says why."""


def open_media(path: Path, **options: str) -> InputContainer:
    """The opened file; NotOpened if it is not a media file. The error text does not name the file.

    `options` are FFmpeg's for the format.
    """
    try:
        # With an explicit protocol, no file name is treated as a URL. It is the only one allowed,
        # and no allowed format opens a second file.
        return av.open(
            f"file:{path}",
            metadata_errors="replace",
            options={
                "protocol_whitelist": "file",
                "format_whitelist": ",".join((*_VIDEO_FORMATS, *_OTHER_FORMATS, *_pictures())),
                "max_pixels": str(MAX_PIXELS),
                **options,
            },
        )
    except av.FFmpegError as error:
        raise_if_out(error)
        text = what_it_is(path)
        if text is None:
            text = (
                f"in an unsupported format, or broken ({error.strerror}); supported are "
                f"{READ_FORMATS}"
            )
        raise NotOpened(text) from error
    except (OSError, ValueError) as error:
        raise NotOpened(str(error)) from error


def first_video_stream(container: InputContainer) -> VideoStream | None:
    """The stream that all stages use: the first one that is not a cover picture.

    Its decoder refuses pictures of more than MAX_PIXELS, whatever the header says.
    """
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            if stream.codec_context is not None:
                stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            return stream
    return None


def from_its_start(container: InputContainer, seconds: float) -> float:
    """A duration declared by a container, relative to its first timestamp.

    FFmpeg's muxers count Matroska's and FLV's from 0, others from the first frame; if both are
    possible, it is the shorter.
    """
    start = (container.start_time or 0) / av.time_base
    if container.format.name.startswith(("matroska", "flv")) and 0 < start < seconds:
        return seconds - start
    return seconds


def time_base_of(stream: Stream) -> Fraction:
    """The unit of a stream's timestamps, in seconds; demuxers set one for every stream."""
    assert stream.time_base is not None
    return Fraction(stream.time_base)


def too_large(stream: VideoStream) -> str | None:
    """The problem with a stream's declared size; None if it is fine."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height <= MAX_PIXELS:
        return None
    return f"declares pictures of {width}×{height}; at most {MAX_PIXELS:,} pixels are decoded"


def packets(container: InputContainer, *streams: Stream) -> Iterator[av.Packet[Any]]:
    """The packets of these streams, or of all, in file order; empty ones at the end."""
    found = container.demux(*streams)
    while True:
        try:
            packet = next(found)
        except StopIteration:
            return
        except IndexError:
            # A stream that began midway, for which PyAV has no object; the others are all read.
            return
        beat()
        yield packet


def frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """The decoded pictures of a stream, in the decoder's order."""
    for packet in packets(container, stream):
        yield from packet.decode()


@contextlib.contextmanager
def passing_over() -> Iterator[None]:
    """Skips what FFmpeg finds broken; raises if memory ran out."""
    try:
        yield
    except av.FFmpegError as error:
        raise_if_out(error)


def _pictures() -> list[str]:
    return sorted(name for name in av.formats_available if name.endswith(_PICTURE_MARK))
