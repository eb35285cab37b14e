"""Reads a clip's sound separately, because files interleave it loosely with the pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Discard

from clipmill.stages.media.read.decode import open_container
from clipmill.stages.media.read.opening import packets, passing_over, time_base_of

# Decoders need a little preceding data, and seeking is not exact.
_RUN_UP_SECONDS = 0.5
# Timestamps in milliseconds jitter, so smaller gaps are ignored.
_JITTER_SECONDS = 0.02
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "7.1")
_BITS_PER_CHANNEL = 96_000


class Sound:
    """The best sound track of a file, opened once for all its clips; a context manager.

    `stream` is None if no track can be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.container = open_container(path)
        best = self.container.streams.best("audio")
        self.stream: av.AudioStream | None = None
        if isinstance(best, av.AudioStream) and best.codec_context is not None:
            self.stream = best
        for other in self.container.streams:
            if self.stream is None or other.index != self.stream.index:
                other.discard = Discard.all

    def __enter__(self) -> Sound:
        return self

    def __exit__(self, *details: object) -> None:
        self.container.close()

    def packets(
        self, start_seconds: float, end_seconds: float
    ) -> Iterator[av.Packet[av.AudioStream]]:
        """Packets that begin inside the span, after some preceding ones (for the decoder)."""
        stream = self.stream
        if stream is None:
            return
        with passing_over():
            position = (start_seconds - _RUN_UP_SECONDS) / time_base_of(stream)
            self.container.seek(int(position), stream=stream)
        with passing_over():
            for packet in packets(self.container, stream):
                if packet.size and packet.pts is not None:
                    if float(packet.pts * packet.time_base) >= end_seconds:
                        return
                    yield packet

    def inside(self, start_seconds: float, end_seconds: float) -> Iterator[av.Packet[Any]]:
        """Packets that begin inside the span."""
        for packet in self.packets(start_seconds, end_seconds):
            if packet.pts is not None and float(packet.pts * packet.time_base) >= start_seconds:
                yield packet

    def encoded(
        self, track: av.AudioStream, start_seconds: float, end_seconds: float
    ) -> Iterator[av.Packet[Any]]:
        """The span's samples, encoded for `track`, whose time 0 is the span's start."""
        context = track.codec_context
        resampler = av.AudioResampler(format="fltp", layout=context.layout, rate=context.rate)
        writer = _SampleWriter(track, round((end_seconds - start_seconds) * context.rate))
        if self.stream is None:
            return
        self.stream.codec_context.flush_buffers()
        for packet in self.packets(start_seconds, end_seconds):
            with contextlib.suppress(av.InvalidDataError):
                for frame in packet.decode():
                    if frame.pts is None or frame.time_base is None:
                        continue
                    began = float(frame.pts * frame.time_base) - start_seconds
                    for samples in _resampled(resampler, frame):
                        yield from writer.take(round(began * context.rate), samples)
                        began += samples.shape[1] / context.rate
        yield from writer.end()


def aac_track(output: av.container.OutputContainer, sound: av.AudioStream) -> av.AudioStream:
    """An AAC track of `output` with the rate and channels of `sound`, or the nearest supported
    ones."""
    context = sound.codec_context
    rate = min(_AAC_RATES, key=lambda known: abs(known - context.sample_rate))
    layout = (
        context.layout.name
        if context.layout.name in _LAYOUTS
        else ("mono" if context.layout.nb_channels == 1 else "stereo")
    )
    track = output.add_stream("aac", rate=rate, layout=layout)
    track.codec_context.bit_rate = _BITS_PER_CHANNEL * track.codec_context.layout.nb_channels
    track.time_base = Fraction(1, rate)
    return track


def _resampled(resampler: av.AudioResampler, frame: av.AudioFrame) -> Iterator[np.ndarray]:
    for made in resampler.resample(frame):
        yield made.to_ndarray()


class _SampleWriter:
    """Places samples in the clip: fills gaps with silence and drops overlaps."""

    def __init__(self, track: av.AudioStream, length: int) -> None:
        self._track = track
        self._length = length
        self._at = 0
        self._sent = 0
        self._jitter = round(_JITTER_SECONDS * track.codec_context.rate)
        channels = track.codec_context.layout.nb_channels
        self._waiting = np.zeros((channels, 0), np.float32)

    def take(self, began: int, samples: np.ndarray) -> Iterator[av.Packet[Any]]:
        """Adds `samples` that begin at sample `began` of the clip."""
        # There is nothing before the first sample to be continuous with.
        jitter = self._jitter if self._at else 0
        if began + samples.shape[1] <= 0:
            return
        if began - self._at > jitter:
            gap = min(began, self._length) - self._at
            yield from self._add(np.zeros((samples.shape[0], max(0, gap)), np.float32))
        elif self._at - began > jitter:
            samples = samples[:, self._at - began :]
        yield from self._add(samples[:, : max(0, self._length - self._at)])

    def end(self) -> Iterator[av.Packet[Any]]:
        if self._waiting.shape[1]:
            yield from self._send(self._waiting)
        if self._sent:
            yield from self._track.encode(None)

    def _add(self, samples: np.ndarray) -> Iterator[av.Packet[Any]]:
        self._at += samples.shape[1]
        waiting = np.concatenate([self._waiting, samples], axis=1)
        size = self._track.codec_context.frame_size or 1024
        while waiting.shape[1] >= size:
            yield from self._send(waiting[:, :size])
            waiting = waiting[:, size:]
        self._waiting = waiting

    def _send(self, samples: np.ndarray) -> Iterator[av.Packet[Any]]:
        context = self._track.codec_context
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples), format="fltp", layout=context.layout.name
        )
        frame.sample_rate = context.rate
        frame.time_base = Fraction(1, context.rate)
        frame.pts = self._sent
        self._sent += samples.shape[1]
        yield from self._track.encode(frame)
