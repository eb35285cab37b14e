"""Decodes a file's sound track from one time to another, over whatever is broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import av

from clipmill.stages.media.isolation.out_of_memory import raise_if_out
from clipmill.stages.media.read.opening import packets
from clipmill.stages.media.read.sound import Sound

LEAST_GAP_SECONDS = 0.1
"""Shorter gaps and overlaps are a container's rounding, or a lost packet."""

# What headers say beyond these is wrong, and would take gigabytes.
_LOWEST_RATE, _HIGHEST_RATE = 1_000, 768_000
# The same as FFmpeg's.
_USUAL = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}

Span = tuple[float | None, float | None]


def joined_spans(spans: Sequence[Span] | None) -> list[tuple[float, float]]:
    """The spans in time order, without overlaps; one without ends for the whole file."""
    if spans is None:
        return [(float("-inf"), float("inf"))]
    joined: list[tuple[float, float]] = []
    for start, end in sorted(
        (float("-inf") if a is None else a, float("inf") if b is None else b) for a, b in spans
    ):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


class TrackReader:
    """Decodes a track from one time of the file to another, over whatever is broken."""

    def __init__(self, sound: Sound, start_seconds: float, end_seconds: float) -> None:
        self._sound = sound
        self._start, self._end = start_seconds, end_seconds
        self.first_error: str | None = None

    def frames(self) -> Iterator[av.AudioFrame]:
        stream = self._sound.stream
        assert stream is not None
        stream.codec_context.flush_buffers()
        try:
            for packet in self._packets():
                try:
                    decoded = packet.decode()
                except av.FFmpegError as error:
                    raise_if_out(error)
                    self.first_error = self.first_error or error.strerror
                    continue
                for frame in decoded:
                    if frame.samples and frame.time is not None and self._is_inside(frame):
                        yield frame
        except av.FFmpegError as error:
            raise_if_out(error)
            self.first_error = self.first_error or error.strerror

    def _packets(self) -> Iterator[av.Packet[av.AudioStream]]:
        stream = self._sound.stream
        assert stream is not None
        if self._start == float("-inf"):
            yield from packets(self._sound.container, stream)
        else:
            yield from self._sound.packets(self._start, self._end)

    def _is_inside(self, frame: av.AudioFrame) -> bool:
        assert frame.time is not None
        middle = frame.time + frame.samples / frame.sample_rate / 2
        return self._start <= middle < self._end


def check_rate(frame: av.AudioFrame) -> None:
    """ValueError for a number of samples per second that no file has."""
    if not _LOWEST_RATE <= frame.sample_rate <= _HIGHEST_RATE:
        raise ValueError(f"{frame.sample_rate:,} samples per second")


def format_of(frame: av.AudioFrame) -> tuple[int, str, str]:
    return frame.sample_rate, frame.format.name, frame.layout.name


def usual_layout(frame: av.AudioFrame) -> str:
    """The frame's layout; the usual one for its number of channels if the file doesn't say."""
    is_told = all(channel.name != "NONE" for channel in frame.layout.channels)
    return frame.layout.name if is_told else _USUAL.get(frame.layout.nb_channels, frame.layout.name)
