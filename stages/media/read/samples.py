"""A file's sound as one channel of samples at the rate that speech models take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np

from clipmill.stages.media.isolation.out_of_memory import raise_if_out
from clipmill.stages.media.read.sound import Sound
from clipmill.stages.media.read.tracks import (
    LEAST_GAP_SECONDS,
    Span,
    TrackReader,
    check_rate,
    format_of,
    joined_spans,
    usual_layout,
)

RATE = 16_000
"""Samples per second."""

NO_TRACK = "it has no sound track that can be decoded"

# Encoders that send nothing in silence leave gaps, which are silence; a longer one is a hole.
_LONGEST_FILLED_SECONDS = 1.0
_PIECE = f"asetnsamples=n={RATE}:p=0"  # fewer, longer pieces cost less
_PULLS_PER_SECOND = 2


@dataclass(frozen=True)
class Samples:
    """A piece of sound, mono and between -1 and 1. `begins` says that there is a gap before it, or
    nothing; `seconds` is its time in the video."""

    begins: bool
    seconds: float
    values: np.ndarray


class SampleReader:
    """Reads the sound track that exported clips get.

    `file_zero_seconds` is the video time of the file's time 0; with `spans`, only what is inside
    them is read. `problem` is why nothing was read, once all is.
    """

    def __init__(
        self, path: Path, file_zero_seconds: float, spans: Sequence[Span] | None = None
    ) -> None:
        self._path, self._zero, self._spans = path, file_zero_seconds, spans
        self.problem: str | None = None

    def pieces(self) -> Iterator[Samples]:
        """All of it in the file's order; a piece is about a second long."""
        found, first_error = False, None
        with Sound(self._path) as sound:
            if sound.stream is None:
                self.problem = NO_TRACK
                return
            try:
                for start, end in joined_spans(self._spans):
                    reader = TrackReader(sound, start - self._zero, end - self._zero)
                    for piece in _resampled(reader.frames()):
                        found = True
                        yield Samples(piece.begins, piece.seconds + self._zero, piece.values)
                    first_error = first_error or reader.first_error
            except (av.FFmpegError, ValueError) as error:
                raise_if_out(error)
                first_error = first_error or str(error)
        if not found:
            said = f" ({first_error})" if first_error else ", it is empty"
            self.problem = f"its sound cannot be decoded{said}"


def _resampled(frames: Iterator[av.AudioFrame]) -> Iterator[Samples]:
    stretch: _Stretch | None = None
    for frame in frames:
        if stretch is not None and not stretch.continues_with(frame):
            yield from stretch.end()
            stretch = None
        if stretch is None:
            stretch = _Stretch(frame)
        yield from stretch.add(frame)
    if stretch is not None:
        yield from stretch.end()


class _Stretch:
    """Sound in one format without a hole, resampled as a whole: each piece continues the last."""

    def __init__(self, first: av.AudioFrame) -> None:
        assert first.time is not None
        check_rate(first)
        self._began, self._format, self._rate = first.time, format_of(first), first.sample_rate
        self._layout = usual_layout(first)
        self._taken = self._waiting = self._given = 0
        self._graph = av.filter.Graph()
        self._graph.threads = 1
        self._source = self._graph.add_abuffer(
            sample_rate=self._rate,
            format=first.format.name,
            layout=self._layout,
            time_base=Fraction(1, self._rate),
        )
        wanted = f"sample_fmts=flt:sample_rates={RATE}:channel_layouts=mono"
        nodes = [
            self._source,
            self._graph.add("aformat", wanted),
            self._graph.add(*_PIECE.split("=", 1)),
            self._graph.add("abuffersink"),
        ]
        self._sink = nodes[-1]
        self._graph.link_nodes(*nodes).configure()

    def _gap(self, frame: av.AudioFrame) -> float:
        assert frame.time is not None
        return frame.time - (self._began + self._taken / self._rate)

    def continues_with(self, frame: av.AudioFrame) -> bool:
        is_near = -LEAST_GAP_SECONDS < self._gap(frame) <= _LONGEST_FILLED_SECONDS
        return is_near and format_of(frame) == self._format

    def add(self, frame: av.AudioFrame) -> Iterator[Samples]:
        gap = self._gap(frame)
        if gap >= LEAST_GAP_SECONDS:
            self._push(self._silence(frame, round(gap * self._rate)))
        self._push(frame)
        # Asking after each frame costs more than some frames that wait.
        if self._waiting >= self._rate // _PULLS_PER_SECOND:
            yield from self._pulled()

    def end(self) -> Iterator[Samples]:
        self._source.push(None)
        yield from self._pulled()

    def _push(self, frame: av.AudioFrame) -> None:
        # Filters count from the stretch's start, over the container's rounding.
        frame.pts, frame.time_base = self._taken, Fraction(1, self._rate)
        self._taken += frame.samples
        self._waiting += frame.samples
        self._source.push(frame)

    def _silence(self, like: av.AudioFrame, samples: int) -> av.AudioFrame:
        silent = av.AudioFrame(format=like.format.name, layout=self._layout, samples=samples)
        # 8-bit samples have their zero in the middle.
        zero = b"\x80" if like.format.name.startswith("u8") else b"\0"
        for plane in silent.planes:
            plane.update(zero * plane.buffer_size)
        silent.sample_rate = self._rate
        return silent

    def _pulled(self) -> Iterator[Samples]:
        self._waiting = 0
        while True:
            try:
                piece = self._sink.pull()
            except (BlockingIOError, EOFError):
                return
            assert isinstance(piece, av.AudioFrame)
            values = piece.to_ndarray().reshape(-1)
            seconds = self._began + self._given / RATE
            begins, self._given = not self._given, self._given + len(values)
            yield Samples(begins, seconds, values)
