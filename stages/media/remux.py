"""Cuts clips by copying packets: quick, lossless, and only from key frame on.

A clip is the packets from its key frame up to the last one that a frame of the span needs. Frames
that come first in the file but are shown before the key frame are left out: they hang on pictures
that are not there. Where the last frames need one that is shown after the span's end, it stays in,
with all that lies between: so the clip is without gaps, and its true span is recorded.
"""

from __future__ import annotations

import bisect
import functools
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.stream import Discard

from schemas.errors import RowFailed
from schemas.words import counted
from stages.media.clip_files import (
    ROUNDING_SECONDS,
    ClipFile,
    CutOptions,
    CutRequest,
    CutResult,
    check_reach,
    exact_seconds,
    nothing_inside,
)
from stages.media.decode import bad_media, open_container, video_stream
from stages.media.memory import raise_if_out
from stages.media.opening import frames, packets
from stages.media.orientation import Orientation, orientation_of
from stages.media.sound import Sound

# How far before a key frame to seek, where seeking by its time stamp overshoots.
_BACK_SECONDS = (0, 1, 4, 16)


@dataclass(frozen=True)
class _Entry:
    """One packet; `pts` is its frame's time stamp in the units of the stream."""

    pts: int
    duration: int
    is_key: bool


@dataclass(frozen=True)
class _Span:
    """Which packets make a clip: from the key frame on those that are not shown before it.

    `dts` are their decoding times, one a packet.
    """

    key_pts: int
    dts: list[int]
    end_pts: int


class _Plan:
    """The packets of a file, in the order in which they lie there."""

    def __init__(self, path: Path) -> None:
        with open_container(path) as container:
            stream = video_stream(container, path)
            if stream.codec_context is None:
                raise bad_media(path, "has video of an unknown codec")
            self.time_base = Fraction(stream.time_base)
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            usual = max(1, round(1 / (Fraction(rate) * self.time_base)))
            self.entries = list(self._read(container, stream, path))
        self.orientation = self._orientation(path)
        if not any(entry.is_key for entry in self.entries):
            raise bad_media(path, "has no key frame")
        self.shown = sorted(entry.pts for entry in self.entries)
        last = max(self.entries, key=lambda entry: entry.pts)
        self.end_pts = last.pts + (last.duration or usual)
        self.keys = sorted((entry.pts, place) for place, entry in enumerate(self.entries)
                           if entry.is_key)

    @staticmethod
    def _read(container: Any, stream: av.VideoStream, path: Path) -> Iterator[_Entry]:
        try:
            for packet in packets(container, stream):
                stamp = packet.pts if packet.pts is not None else packet.dts
                if packet.size and stamp is not None:
                    yield _Entry(stamp, packet.duration or 0, packet.is_keyframe)
        except av.FFmpegError as error:
            raise_if_out(error)
            raise bad_media(path, f"cannot be read ({error})") from error

    @staticmethod
    def _orientation(path: Path) -> Orientation:
        # Opened anew: not every file can be sought back to where it begins.
        with open_container(path) as container:
            stream = video_stream(container, path)
            stream.codec_context.thread_count = 1
            try:
                first = next(frames(container, stream), None)
            except av.FFmpegError as error:
                raise_if_out(error)
                raise bad_media(path, f"cannot be decoded ({error})") from error
        if first is None:
            raise bad_media(path, "gives no frame")
        return orientation_of(first)

    def seconds(self, stamp: int) -> float:
        return exact_seconds(stamp, self.time_base)

    def span(self, start_seconds: float, end_seconds: float, nearest: bool) -> _Span:
        """The packets of a clip; RowFailed where the file has none of it."""
        unit = float(self.time_base)
        start = (start_seconds - ROUNDING_SECONDS) / unit
        end = (end_seconds - ROUNDING_SECONDS) / unit
        if bisect.bisect_left(self.shown, start) == bisect.bisect_left(self.shown, end):
            raise nothing_inside(start_seconds, end_seconds, self.seconds(self.shown[0]),
                                 self.seconds(self.end_pts))
        at = bisect.bisect_right(self.keys, (start + 2 * ROUNDING_SECONDS / unit, 1 << 62))
        choices = self.keys[max(0, at - 1) : at] or self.keys[:1]
        if nearest:
            choices = choices + [key for key in self.keys[at : at + 1] if key[0] < end]
        key_pts, place = min(choices, key=lambda key: abs(key[0] - start))
        return self._packets(key_pts, place, end)

    def _packets(self, key_pts: int, place: int, end: float) -> _Span:
        first = bisect.bisect_left(self.shown, key_pts)
        top = self.shown[max(first, bisect.bisect_left(self.shown, end) - 1)]
        taken: list[int] = []
        for entry in itertools.islice(self.entries, place, None):
            if entry.pts < key_pts:
                continue
            taken.append(entry.pts)
            top = max(top, entry.pts)
            # What is shown before the latest picture that was taken must be there, too.
            after = bisect.bisect_right(self.shown, top)
            if len(taken) == after - first:
                break
        end_pts = self.shown[after] if after < len(self.shown) else self.end_pts
        return _Span(key_pts, _decoding_times(taken), end_pts)


def _decoding_times(pts: list[int]) -> list[int]:
    """Decoding times for pictures in the order of the file.

    Made anew, because Matroska stores none and leaves the first ones after a seek unknown: the
    sorted time stamps, all early enough that no picture is shown before it is decoded. They
    advance where two pictures have the same time, too.
    """
    ordered = sorted(pts)
    delay = max(stamp - own for stamp, own in zip(ordered, pts, strict=True))
    times = [stamp - delay for stamp in ordered]
    for at in reversed(range(len(times) - 1)):
        times[at] = min(times[at], times[at + 1] - 1)
    return times


def copy_clips(
    source: Path, requests: Sequence[CutRequest], options: CutOptions
) -> Iterator[CutResult]:
    """Cuts clips of one file without encoding; times are the file's own."""
    plan = _Plan(source)
    with Sound(source) as sound, open_container(source) as container:
        stream = video_stream(container, source)
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        for request in requests:
            try:
                check_reach(request, plan.seconds(plan.end_pts))
                span = plan.span(request.start_seconds, request.end_seconds,
                                 options.start == "nearest")
                yield _copy(container, stream, sound if options.audio else None, plan, span,
                            request)
            except RowFailed as problem:
                yield CutResult(request.clip_id, problem=problem)


def _copy(container: Any, stream: av.VideoStream, sound: Sound | None, plan: _Plan, span: _Span,
          request: CutRequest) -> CutResult:
    start_seconds, end_seconds = plan.seconds(span.key_pts), plan.seconds(span.end_pts)
    heard = sound.stream if sound else None
    file = ClipFile(request.target, suffix_for(stream, heard))
    try:
        with file.holding(stream.codec_context.codec.canonical_name):
            track = file.output.add_stream_from_template(stream, opaque=True)
            if not plan.orientation.is_upright:
                track.set_display_matrix(plan.orientation.display_matrix)
            beside = file.output.add_stream_from_template(heard, opaque=True) if heard else None
            file.output.start_encoding()
        if beside is not None:
            assert sound is not None
            for packet in sound.inside(start_seconds, end_seconds):
                shift = round(start_seconds / packet.time_base)
                packet.pts -= shift
                packet.dts = packet.pts
                _write(file, packet, beside)
        times = []
        for packet in _from_key(container, stream, span):
            packet.pts, packet.dts = packet.pts - span.key_pts, packet.dts - span.key_pts
            times.append(exact_seconds(packet.pts, plan.time_base))
            _write(file, packet, track)
        if len(times) != len(span.dts):
            raise RowFailed("bad_media", f"of the clip's {counted(len(span.dts), 'frame')} "
                            f"only {len(times):,} can be read again")
        facts = file.publish(times, end_seconds - start_seconds)
    finally:
        file.discard()
    return CutResult(request.clip_id, start_seconds=start_seconds, end_seconds=end_seconds,
                     n_frames=len(times), **facts)


def suffix_for(video: av.VideoStream, audio: av.AudioStream | None) -> str:
    """`.mp4` where mp4 holds these codecs, else `.webm` (VP8, say), else `.mkv`."""
    names = {stream.codec_context.codec.canonical_name for stream in (video, audio) if stream}
    for suffix, form in ((".mp4", "mp4"), (".webm", "webm")):
        if names <= _codecs_of(form):
            return suffix
    return ".mkv"


@functools.cache
def _codecs_of(form: str) -> frozenset[str]:
    with av.open(io.BytesIO(), "w", format=form) as output:
        return frozenset(output.supported_codecs)


def _from_key(container: Any, stream: av.VideoStream, span: _Span) -> Iterator[av.Packet]:
    """The packets of a span, in the file's order."""
    times = iter(span.dts)
    left = len(span.dts)
    for packet in _seek(container, stream, span.key_pts):
        packet.pts = packet.pts if packet.pts is not None else packet.dts
        if packet.pts >= span.key_pts:
            packet.dts = next(times)
            yield packet
            left -= 1
        if not left:
            return


def _seek(container: Any, stream: av.VideoStream, key_pts: int) -> Iterator[av.Packet]:
    """All packets from the key frame with this time stamp on."""
    for back in (*_BACK_SECONDS, None):
        target = key_pts - round(back / stream.time_base) if back is not None else None
        try:
            if target is None:
                start = stream.start_time or 0
                container.seek(min(start, key_pts) - round(3600 / stream.time_base),
                               stream=stream)
            else:
                container.seek(target, stream=stream)
            begun = False
            for packet in packets(container, stream):
                stamp = packet.pts if packet.pts is not None else packet.dts
                if not packet.size or stamp is None:
                    continue
                if not begun and packet.is_keyframe and stamp > key_pts:
                    break  # too late: seek further back
                begun = begun or (packet.is_keyframe and stamp == key_pts)
                if begun:
                    yield packet
            if begun:
                return
        except av.FFmpegError as error:
            raise_if_out(error)
            continue


def _write(file: ClipFile, packet: av.Packet, track: Any) -> None:
    packet.stream = track
    with file.writing():
        file.output.mux(packet)
