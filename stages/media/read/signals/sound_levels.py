"""Measures the sound of a file in blocks of 100 ms: loudness, peaks, silence, zero crossings.

FFmpeg's own filters do it, so that the results equal theirs: `ebur128` gives the loudness of the
400 ms that end with each block, from which a clip's integrated loudness is computed later.

The sound is read from a container of its own, like that of exported clips (see `sound`): files
interleave it loosely with the pictures, and its errors must not cost any of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

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

_WINDOW_BLOCKS = 4  # that a block's loudness is measured over
_SILENCE = "n=-60dB:d=0.1"
_PULLS_PER_SECOND = 2
# The loudness that the filter gives for digital silence is below this.
_NOTHING = -120.0


def measure_sound(
    path: Path, spans: Sequence[Span] | None, file_zero_seconds: float | None
) -> dict[str, Any]:
    """The columns `sound` and `sound_problem` of SCANS.

    `sound` are the uninterrupted stretches of the track that exported clips get, in time order;
    those inside the `spans` if they are given. `file_zero_seconds` is the video time of the file's
    time 0.
    """
    zero = file_zero_seconds or 0.0
    stretches: list[dict[str, Any]] = []
    first_error = None
    with Sound(path) as sound:
        if sound.stream is None:
            return {"sound": None, "sound_problem": "it has no sound track that can be decoded"}
        try:
            for start, end in joined_spans(spans):
                reader = TrackReader(sound, start - zero, end - zero)
                for stretch in _stretches(reader.frames()):
                    stretch.move(zero)
                    stretches.append(stretch.columns())
                first_error = first_error or reader.first_error
        except (av.FFmpegError, ValueError) as error:
            raise_if_out(error)
            return {"sound": None, "sound_problem": f"its sound cannot be measured ({error})"}
    if not stretches and first_error:
        return {"sound": None, "sound_problem": f"its sound cannot be decoded ({first_error})"}
    return {"sound": stretches, "sound_problem": None}


def _stretches(frames: Iterable[av.AudioFrame]) -> Iterator[_Stretch]:
    """What follows each other without a gap and in one format."""
    stretch: _Stretch | None = None
    for frame in frames:
        assert frame.time is not None
        if stretch is not None and not stretch.continues_with(frame):
            stretch.end()
            yield stretch
            stretch = None
        if stretch is None:
            stretch = _Stretch(frame)
        stretch.add(frame)
    if stretch is not None:
        stretch.end()
        yield stretch


class _Stretch:
    """Uninterrupted sound, measured by filters."""

    def __init__(self, first: av.AudioFrame) -> None:
        assert first.time is not None
        check_rate(first)
        self._began = first.time
        self._format = format_of(first)
        self._rate = first.sample_rate
        self._samples = self._waiting = 0
        self._loudness: list[float | None] = []
        self._peaks: list[float] = []
        self._crossings: list[float] = []
        self._silences: list[dict[str, float]] = []
        self._silent_from: float | None = None
        self._signs: np.ndarray | None = None
        self._graph = av.filter.Graph()
        self._graph.threads = 1
        self._source = self._graph.add_abuffer(
            sample_rate=self._rate,
            format=first.format.name,
            layout=usual_layout(first),
            time_base=Fraction(1, self._rate),
        )
        loudness = self._graph.add("ebur128", "metadata=1:framelog=quiet:peak=none")
        silence = self._graph.add("silencedetect", _SILENCE)
        self._sink = self._graph.add("abuffersink")
        self._source.link_to(loudness)
        loudness.link_to(silence)
        silence.link_to(self._sink)
        self._graph.configure()

    @property
    def _seconds(self) -> float:
        return self._samples / self._rate

    def continues_with(self, frame: av.AudioFrame) -> bool:
        assert frame.time is not None
        gap = frame.time - (self._began + self._seconds)
        return abs(gap) < LEAST_GAP_SECONDS and format_of(frame) == self._format

    def add(self, frame: av.AudioFrame) -> None:
        # Filters count from the stretch's start, over the container's rounding.
        frame.pts, frame.time_base = self._samples, Fraction(1, self._rate)
        self._samples += frame.samples
        self._source.push(frame)
        # Asking after each frame costs more than some frames that wait.
        self._waiting += frame.samples
        if self._waiting >= self._rate // _PULLS_PER_SECOND:
            self._pull()

    def end(self) -> None:
        self._source.push(None)
        self._pull()
        if self._silent_from is not None:
            self._silences.append(_silence(self._silent_from, self._seconds))

    def move(self, seconds: float) -> None:
        """Counts the stretch's time from another zero, this much earlier."""
        self._began += seconds

    def columns(self) -> dict[str, Any]:
        """A struct of the column `sound`."""
        return {
            "start_seconds": self._began,
            "end_seconds": self._began + self._seconds,
            "loudness": self._loudness,
            "peaks": self._peaks,
            "crossings": self._crossings,
            "silences": [
                {name: self._began + seconds for name, seconds in silence.items()}
                for silence in self._silences
            ],
        }

    def _pull(self) -> None:
        self._waiting = 0
        while True:
            try:
                block = self._sink.pull()
            except (BlockingIOError, EOFError):
                return
            assert isinstance(block, av.AudioFrame)
            self._measure(block)

    def _measure(self, block: av.AudioFrame) -> None:
        told = block.metadata
        samples = block.to_ndarray().reshape(-1, block.layout.nb_channels)
        loudness = float(told.get("lavfi.r128.M", _NOTHING))
        is_full = len(self._peaks) >= _WINDOW_BLOCKS - 1 and loudness > _NOTHING
        self._loudness.append(loudness if is_full else None)
        self._peaks.append(float(max(samples.max(), -samples.min())))
        self._crossings.append(self._count_crossings(samples))
        if (end := told.get("lavfi.silence_end")) and self._silent_from is not None:
            self._silences.append(_silence(self._silent_from, float(end)))
            self._silent_from = None
        if start := told.get("lavfi.silence_start"):
            self._silent_from = float(start)

    def _count_crossings(self, samples: np.ndarray) -> float:
        """How often the sign changes, the mean of the channels; 0 has none."""
        channels = int(samples.shape[1])
        if self._signs is None:
            self._signs = np.zeros(channels)
        count = 0
        if samples.all():
            below = samples < 0
            count += int(np.count_nonzero(below[1:] != below[:-1]))
            count += int(np.count_nonzero(self._signs * samples[0] < 0))
            self._signs = np.sign(samples[-1])
            return count / channels
        for channel, values in enumerate(samples.T):
            signs = np.sign(values[values != 0])
            if len(signs):
                count += int(np.count_nonzero(signs[1:] != signs[:-1]))
                count += bool(self._signs[channel] * signs[0] < 0)
                self._signs[channel] = signs[-1]
        return count / channels


def _silence(start_seconds: float, end_seconds: float) -> dict[str, float]:
    return {"start_seconds": start_seconds, "end_seconds": end_seconds}
