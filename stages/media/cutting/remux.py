"""Cuts clips by copying packets: fast, lossless, and only from a key frame on.

A clip consists of the packets from a key frame up to the last one that a frame of the span needs.
The key frame must be one from which a decoder immediately gives correct pictures, whatever the
container flags. Frames that are stored after the key frame but shown before it are left out: they
need pictures that are missing. If the last frames need one that is shown after the span's end, it
is included with everything in between, so the clip has no gaps, and its actual span is recorded.

The recorded span is about pictures, so the clip is decoded once to check it. This is skipped if
the whole file was decoded before without an error and its bytes show that its GOPs are
independent: any of them then decode as they did. If pictures are missing, the clip begins at an
earlier key frame.
"""

from __future__ import annotations

import bisect
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.stream import Discard

from clipmill.schemas.errors import RowFailed
from clipmill.schemas.words import counted
from clipmill.stages.media.cutting.clip_files import (
    ROUNDING_SECONDS,
    ClipFile,
    check_reach,
    exact_seconds,
    nothing_inside,
)
from clipmill.stages.media.cutting.requests import CutOptions, CutRequest, CutResult
from clipmill.stages.media.isolation.out_of_memory import raise_if_out
from clipmill.stages.media.read.decode import bad_media, open_container, video_stream
from clipmill.stages.media.read.forward import numbered, packets_from
from clipmill.stages.media.read.framing import keep_shape
from clipmill.stages.media.read.opening import frames, packets
from clipmill.stages.media.read.orientation import Orientation, orientation_of
from clipmill.stages.media.read.packets import EntryPacket, read_packets
from clipmill.stages.media.read.sound import Sound

# How many key frames before a clip are tried, in addition to the file's first one.
_TRIES = 3


@dataclass(frozen=True)
class _Span:
    """The packets of a clip: from a key frame on, without those that are shown before it.

    `dts` maps each packet's place in the file to its decoding time; `pts` are the timestamps of
    shown pictures, in order.
    """

    entry: EntryPacket
    dts: dict[int, int]
    pts: list[int]
    end_pts: int


class _Plan:
    """Where in a file clips can begin, and what they need."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The copy shows everything that it contains.
        self.index = read_packets(path, cut_off=False)
        if self.index.counts:
            raise RowFailed(
                "bad_media",
                f"{path}: does not say when its pictures are shown, which "
                "a copy needs; export with --media exact",
            )
        self.orientation = self._orientation(path)
        self.time_base = self.index.time_base
        self._numbers = {place: number for number, place in enumerate(self.index.places)}
        # A clip can't begin where pictures only become correct some frames later.
        self._entries = [entry for entry in self.index.entries if entry.is_own]
        if not self._entries:
            raise no_start(path)

    @staticmethod
    def _orientation(path: Path) -> Orientation:
        # Reopened: not every file can seek back to its beginning.
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

    def spans(self, start_seconds: float, end_seconds: float, nearest: bool) -> Iterator[_Span]:
        """The possible extents of a clip, the best first; RowFailed if the file has none of it."""
        index = self.index
        inside = index.within(start_seconds - ROUNDING_SECONDS, end_seconds - ROUNDING_SECONDS)
        if not inside:
            raise nothing_inside(start_seconds, end_seconds, index.seconds(0), index.end_seconds)
        at = bisect.bisect_right(self._entries, inside.start, key=lambda entry: entry.first_number)
        before, after = self._entries[:at], self._entries[at : at + 1]
        if nearest and after and after[0].first_number < inside.stop:
            begin = start_seconds - ROUNDING_SECONDS
            if not before or (
                index.seconds(after[0].first_number) - begin
                < begin - index.seconds(before[-1].first_number)
            ):
                yield self._packets(after[0], inside.stop)
        if not before and self._entries[0].first_number < inside.stop:
            # Nothing before the first key frame can be shown.
            yield self._packets(self._entries[0], inside.stop)
        for entry in [*reversed(before[-_TRIES:]), *before[:1]]:
            yield self._packets(entry, inside.stop)

    def _packets(self, entry: EntryPacket, stop: int) -> _Span:
        """The packets, from an entry on, that the frames before number `stop` need."""
        index = self.index
        first = entry.first_number
        top = max(first, stop - 1)
        taken: list[int] = []
        shown = 0
        for place in range(entry.place, self._n_packets):
            number = self._numbers.get(place)
            if number is not None and number < first:
                continue
            taken.append(place)
            if number is not None:
                shown += 1
                # Everything shown before the latest included picture must be included, too.
                top = max(top, number)
            if shown == top + 1 - first:
                break
        top = max(number for place in taken if (number := self._numbers.get(place)) is not None)
        end_pts = index.pts[top + 1] if top + 1 < index.n_frames else index.end_pts
        stamps = [index.stamps[place] for place in taken]
        return _Span(
            entry,
            dict(zip(taken, _decoding_times(stamps), strict=True)),
            index.pts[first : top + 1],
            end_pts,
        )

    @property
    def _n_packets(self) -> int:
        return len(self.index.stamps)


def _decoding_times(pts: list[int]) -> list[int]:
    """Decoding times for pictures in file order.

    Recomputed, because Matroska stores none and leaves the first ones after a seek unknown: the
    sorted timestamps, shifted so that no picture is shown before it is decoded. They increase even
    if two pictures have the same time.
    """
    ordered = sorted(pts)
    delay = max(stamp - own for stamp, own in zip(ordered, pts, strict=True))
    times = [stamp - delay for stamp in ordered]
    for at in reversed(range(len(times) - 1)):
        times[at] = min(times[at], times[at + 1] - 1)
    return times


def copy_clips(
    source: Path, requests: Sequence[CutRequest], options: CutOptions, *, is_sound: bool = False
) -> Iterator[CutResult]:
    """Cuts clips from one file without encoding; times are the file's own.

    `is_sound` means that the whole file was decoded before, without an error.
    """
    plan = _Plan(source)
    decode = not (is_sound and plan.index.is_plain)
    with Sound(source) as sound, open_container(source) as container:
        stream = video_stream(container, source)
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        for request in requests:
            try:
                check_reach(request, plan.index.end_seconds)
                yield _copied(
                    container,
                    stream,
                    sound if options.audio else None,
                    plan,
                    request,
                    options,
                    decode,
                )
            except RowFailed as problem:
                yield CutResult(request.clip_id, problem=problem)


def _copied(
    container: Any,
    stream: av.VideoStream,
    sound: Sound | None,
    plan: _Plan,
    request: CutRequest,
    options: CutOptions,
    decode: bool,
) -> CutResult:
    """The clip from the first of its possible starts from which all its pictures decode."""
    problem: RowFailed | None = None
    for span in plan.spans(request.start_seconds, request.end_seconds, options.start == "nearest"):
        try:
            return _copy(
                container, stream, sound, plan, span, request, options.threads, decode=decode
            )
        except RowFailed as failed:
            if failed.kind not in ("bad_media", "crash"):
                raise
            problem = problem or failed
    if problem is None:
        raise no_start(plan.path)
    raise RowFailed(
        "bad_media",
        f"no copy of the clip can be played whole: {problem.message}; export with --media exact",
    ) from problem


def no_start(path: Path) -> RowFailed:
    """The failure of a file from which no clip can be copied."""
    return RowFailed(
        "bad_media",
        f"{path}: has no key frame at which a copy could begin; export with --media exact",
    )


def _copy(
    container: Any,
    stream: av.VideoStream,
    sound: Sound | None,
    plan: _Plan,
    span: _Span,
    request: CutRequest,
    threads: int,
    *,
    decode: bool,
) -> CutResult:
    begin = span.pts[0]
    start_seconds, end_seconds = plan.seconds(begin), plan.seconds(span.end_pts)
    heard = sound.stream if sound else None
    file = ClipFile(request.target, suffix_for(stream, heard))
    try:
        with file.holding(stream.codec_context.codec.canonical_name):
            track = file.output.add_stream_from_template(stream, opaque=True)
            keep_shape(track, stream)
            if not plan.orientation.is_upright:
                track.set_display_matrix(plan.orientation.display_matrix)
            beside = file.output.add_stream_from_template(heard, opaque=True) if heard else None
            file.output.start_encoding()
        if beside is not None:
            assert sound is not None
            for packet in sound.inside(start_seconds, end_seconds):
                shift = round(start_seconds / packet.time_base)
                assert packet.pts is not None  # packets without one are not passed
                packet.pts -= shift
                packet.dts = packet.pts
                _write(file, packet, beside)
        left = dict(span.dts)
        for place, packet in _from_entry(container, stream, plan, span.entry):
            dts = None if place is None else left.pop(place, None)
            if place is not None and dts is not None:
                packet.pts = plan.index.stamps[place] - begin
                packet.dts = dts - begin
                _write(file, packet, track)
            if not left:
                break
        if left:
            raise RowFailed(
                "bad_media",
                f"{len(left):,} of the clip's "
                f"{counted(len(span.dts), 'packet')} can't be read again",
            )
        times = [exact_seconds(stamp - begin, plan.time_base) for stamp in span.pts]
        facts = file.publish(times, end_seconds - start_seconds, decode=decode, threads=threads)
    finally:
        file.discard()
    return CutResult(
        request.clip_id,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        n_frames=len(times),
        **facts,
    )


def suffix_for(video: av.VideoStream, audio: av.AudioStream | None) -> str:
    """`.mp4` if MP4 can hold these codecs, else `.webm` (VP8, for example), else `.mkv`."""
    names = {stream.codec_context.codec.canonical_name for stream in (video, audio) if stream}
    for suffix, form in ((".mp4", "mp4"), (".webm", "webm")):
        if names <= _codecs_of(form):
            return suffix
    return ".mkv"


@functools.cache
def _codecs_of(form: str) -> frozenset[str]:
    with av.open(io.BytesIO(), "w", format=form) as output:
        return frozenset(output.supported_codecs)


def _from_entry(
    container: Any, stream: av.VideoStream, plan: _Plan, entry: EntryPacket
) -> Iterator[tuple[int | None, av.Packet[Any]]]:
    """The packets from an entry on, with their places."""
    if (found := packets_from(container, stream, entry)) is not None:
        yield from found
        return
    with open_container(plan.path) as again:
        yield from numbered(packets(again, video_stream(again, plan.path)))


def _write(file: ClipFile, packet: av.Packet[Any], track: Any) -> None:
    packet.stream = track
    with file.writing():
        file.output.mux(packet)
