"""Decodes possibly damaged files with the same result on every machine.

What a decoder makes of a damaged picture, and which ones it drops, depends on how many threads it
has. So it is made to stop at the first error that it sees; whoever reads the file then begins again
with one thread, which conceals what it can, and passes over the frames that were given already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import av
from av.video.stream import VideoStream

from clipmill.stages.media.isolation.out_of_memory import raise_if_out


class Damaged(Exception):
    """The decoder has found an error, or returned a picture marked as corrupt."""


def be_strict(stream: VideoStream) -> None:
    """Makes the decoder stop at errors; call it before its first use."""
    stream.codec_context.options = {**stream.codec_context.options, "err_detect": "explode"}


def be_alone(stream: VideoStream) -> None:
    """Makes one thread decode."""
    stream.codec_context.thread_count = 1


def decoded(
    found: Iterator[av.Packet[Any]], complain: Callable[[str], None], *, strictly: bool
) -> Iterator[av.VideoFrame]:
    """The frames of every packet that decodes; a damaged packet costs its own frames only.

    Raises Damaged at the first damage where `strictly`; otherwise `complain` is given the errors.
    """
    while True:
        try:
            packet = next(found)
            frames = packet.decode()
        except StopIteration:
            return
        except av.FFmpegError as error:
            raise_if_out(error)
            if strictly:
                raise Damaged(str(error)) from error
            complain(str(error))
            if isinstance(error, av.InvalidDataError):
                continue
            return
        for frame in frames:
            if strictly and frame.is_corrupt:
                raise Damaged("a picture is corrupt")
            yield frame
