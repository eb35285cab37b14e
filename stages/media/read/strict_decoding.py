"""Decodes possibly damaged files with the same result on every machine.

How a decoder renders a damaged picture, and which ones it drops, depends on its number of threads.
So it is set to stop at the first error. The reader then starts again with a single thread, which
conceals damage where possible, and skips the frames that were already returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import av
from av.video.stream import VideoStream

from clipmill.stages.media.isolation.out_of_memory import raise_if_out


class Damaged(Exception):
    """The decoder found an error, or returned a picture marked as corrupt."""


def be_strict(stream: VideoStream) -> None:
    """Makes the decoder stop at errors; call it before its first use."""
    stream.codec_context.options = {**stream.codec_context.options, "err_detect": "explode"}


def be_alone(stream: VideoStream) -> None:
    """Makes the decoder use a single thread."""
    stream.codec_context.thread_count = 1


def decoded(
    found: Iterator[av.Packet[Any]], complain: Callable[[str], None], *, strictly: bool
) -> Iterator[av.VideoFrame]:
    """The frames of every packet that decodes; a damaged packet loses only its own frames.

    With `strictly`, raises Damaged at the first damage; otherwise passes the errors to `complain`.
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
