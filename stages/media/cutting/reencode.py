"""Cuts clips by re-encoding: a clip holds exactly the frames whose time is in the span.

Clips that overlap or lie close together are cut in one forward pass; it seeks only if a later key
frame saves decoding. Frames keep their spacing (variable frame rates stay variable) and are
converted to upright 8-bit 4:2:0 with even sides, which every H.264 decoder supports: an odd last
column or row is cut off. Each clip may keep another part of the picture.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Generator, Iterator, Sequence
from fractions import Fraction
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
from clipmill.stages.media.cutting.encoders import VideoEncoder, find_encoder, open_encoder
from clipmill.stages.media.cutting.pictures import PicturePreparer
from clipmill.stages.media.cutting.requests import CutOptions, CutRequest, CutResult, Rectangle
from clipmill.stages.media.read.decode import bad_media
from clipmill.stages.media.read.forward import Forward
from clipmill.stages.media.read.packets import PacketIndex, read_packets
from clipmill.stages.media.read.sound import Sound, aac_track

# encoders of overlapping clips that are open at once, each of which takes memory
MAX_OPEN_CLIPS = 8
_OPEN_PIXELS = MAX_OPEN_CLIPS * 4096 * 2304  # and more of it for larger pictures


class _FrameRange:
    """One request as frame numbers of the file: `first` up to `last`, exclusive."""

    def __init__(self, request: CutRequest, index: PacketIndex) -> None:
        self.request = request
        check_reach(request, index.end_seconds)
        frames = index.within(
            request.start_seconds - ROUNDING_SECONDS, request.end_seconds - ROUNDING_SECONDS
        )
        if not frames:
            raise nothing_inside(
                request.start_seconds, request.end_seconds, index.seconds(0), index.end_seconds
            )
        self.first, self.last = frames.start, frames.stop
        self.first_pts = index.pts[self.first]
        self.last_pts = index.pts[self.last - 1]
        self.end_seconds = min(request.end_seconds, index.end_seconds)
        if self.last < index.n_frames:
            after = index.seconds(self.last)
            if abs(after - request.end_seconds) <= ROUNDING_SECONDS:
                self.end_seconds = after
        self.key = index.entry_before(self.first).first_number


def encode_clips(
    source: Path, requests: Sequence[CutRequest], options: CutOptions
) -> Iterator[CutResult]:
    """Cuts clips from one file exactly; times are the file's own."""
    encoder = find_encoder(options.encoder, options.crf, options.preset)
    index = read_packets(source)
    wanted = []
    for request in requests:
        try:
            wanted.append(_FrameRange(request, index))
        except RowFailed as problem:
            yield CutResult(request.clip_id, problem=problem)
    with contextlib.ExitStack() as stack:
        sound = stack.enter_context(Sound(source)) if options.audio else None
        open_at_once = max(1, min(MAX_OPEN_CLIPS, _OPEN_PIXELS // max(1, index.pixels)))
        for clips in passes(wanted, open_at_once):
            yield from _Pass(source, index, clips, options, encoder, sound).run()


def passes(wanted: Sequence[Any], open_at_once: int) -> Iterator[list[Any]]:
    """Groups of clips that are decoded in one pass, ordered by start.

    A clip joins the previous pass unless decoding can restart at a key frame between them, or too
    many clips of that pass are open where it begins.
    """
    left = sorted(wanted, key=lambda clip: (clip.first, clip.last))
    while left:
        group: list[Any] = []
        later: list[Any] = []
        for clip in left:
            end = max((other.last for other in group), default=None)
            open_then = sum(other.last > clip.first for other in group)
            if (end is not None and (clip.key >= end or later)) or open_then >= open_at_once:
                later.append(clip)
            else:
                group.append(clip)
        yield group
        left = later


class _Pass:
    """One pass of the decoder over the clips of a group."""

    def __init__(
        self,
        source: Path,
        index: PacketIndex,
        clips: list[_FrameRange],
        options: CutOptions,
        encoder: VideoEncoder,
        sound: Sound | None,
    ) -> None:
        self._source = source
        self._index = index
        self._clips = clips
        self._options = options
        self._encoder = encoder
        self._sound = sound
        self._pictures: dict[Rectangle | None, PicturePreparer] = {}

    def run(self) -> Iterator[CutResult]:
        waiting = list(self._clips)
        active: list[_Writing] = []
        forward = Forward(self._source, self._index, self._prepare)
        try:
            with contextlib.closing(self._frames(forward)) as frames:
                for pts, frame in frames:
                    while waiting and waiting[0].first_pts <= pts:
                        active.append(
                            _Writing(
                                waiting.pop(0),
                                self._encoder,
                                self._options,
                                self._sound,
                                self._index,
                            )
                        )
                    for writing in [w for w in active if w.clip.last_pts < pts]:
                        active.remove(writing)
                        yield writing.finish(forward.first_error)
                    if active:
                        made: dict[Rectangle | None, av.VideoFrame | RowFailed] = {}
                        for writing in active:
                            crop = writing.clip.request.crop
                            if crop not in made:
                                made[crop] = self._picture(crop, frame)
                            writing.take(made[crop], self._pictures[crop])
                    elif not waiting:
                        break
            while active:
                yield active.pop(0).finish(forward.first_error)
            for clip in waiting:
                reason = f" ({forward.first_error})" if forward.first_error else ""
                yield CutResult(
                    clip.request.clip_id,
                    problem=bad_media(
                        self._source,
                        f"gives no frame from {clip.request.start_seconds:.3f} s on{reason}",
                    ),
                )
        finally:
            for writing in active:
                writing.discard()

    def _prepare(self, stream: av.VideoStream) -> None:
        for other in stream.container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        stream.codec_context.thread_count = self._options.threads
        stream.thread_type = "FRAME"
        self._pictures = {
            crop: PicturePreparer(stream, self._options.short_side, self._encoder.pixels, crop)
            for crop in dict.fromkeys(clip.request.crop for clip in self._clips)
        }

    def _picture(self, crop: Rectangle | None, frame: av.VideoFrame) -> av.VideoFrame | RowFailed:
        """The picture of the clips with one crop, or why there is none."""
        try:
            return self._pictures[crop](frame)
        except RowFailed as problem:
            return problem

    def _frames(self, forward: Forward) -> Generator[tuple[int, av.VideoFrame], None, None]:
        """Frames in time order, by timestamp, from the group's first one or a little before it."""
        last = None
        for number, frame in forward.frames(self._clips[0].first):
            pts = self._index.pts[number]
            if last is not None and pts <= last:
                pts = last + self._index.usual_pts  # time must advance, as in the decode pass
            frame.pts = last = pts
            yield pts, frame


class _Writing:
    """One clip being written to its file. Its problem, if any, is kept for later."""

    def __init__(
        self,
        clip: _FrameRange,
        encoder: VideoEncoder,
        options: CutOptions,
        sound: Sound | None,
        index: PacketIndex,
    ) -> None:
        self.clip = clip
        self._encoder = encoder
        self._options = options
        self._sound = sound
        self._index = index
        self._stamps: list[int] = []
        self._track: av.VideoStream | None = None
        self._problem: RowFailed | None = None
        self._crop: Rectangle | None = None
        self._file: ClipFile | None = None

    def take(self, picture: av.VideoFrame | RowFailed, pictures: PicturePreparer) -> None:
        if self._problem is not None:
            return
        try:
            if isinstance(picture, RowFailed):
                raise picture
            if self._track is None:
                self._open(picture, pictures)
            assert self._file is not None
            assert self._track is not None
            stamp = picture.pts
            assert stamp is not None  # every picture has a timestamp
            self._stamps.append(stamp)
            # Other clips use the same picture, but the encoder copies its fields.
            picture.pts = stamp - self._stamps[0]
            with self._file.writing():
                packets = self._track.encode(picture)
            picture.pts = stamp
            self._mux(packets)
        except RowFailed as problem:
            self._problem = problem
            self.discard()

    def _open(self, picture: av.VideoFrame, pictures: PicturePreparer) -> None:
        self._file = ClipFile(self.clip.request.target, ".mp4")
        self._crop = pictures.crop
        output = self._file.output
        rate = pictures.stream.average_rate or pictures.stream.guessed_rate or Fraction(25)
        with self._file.writing():
            track = self._encoder.add_stream(
                output,
                (picture.width, picture.height),
                Fraction(rate),
                Fraction(self._index.time_base),
                self._options.threads,
            )
            context = track.codec_context
            context.color_range = picture.color_range
            context.colorspace = picture.colorspace
            context.color_primaries = picture.color_primaries
            context.color_trc = picture.color_trc
            if (aspect := pictures.aspect()) is not None:
                context.sample_aspect_ratio = aspect
            open_encoder(track)
            sound = self._sound
            beside = aac_track(output, sound.stream) if sound and sound.stream else None
            if beside is not None:
                assert sound is not None
                assert picture.pts is not None
                start = exact_seconds(picture.pts, self._index.time_base)
                for packet in sound.encoded(beside, start, self.clip.end_seconds):
                    output.mux(packet)
        self._track = track

    def _mux(self, packets: Sequence[av.Packet[Any]]) -> None:
        assert self._file is not None
        for packet in packets:
            assert packet.pts is not None  # encoders set it to the picture's
            number = packet.pts + self._stamps[0]
            packet.duration = self._duration(number)
            with self._file.writing():
                self._file.output.mux(packet)

    def _duration(self, stamp: int) -> int:
        """How long the frame is shown: until the file's next frame, or the clip's end."""
        index = self._index
        if stamp >= self.clip.last_pts:
            return max(1, round(self.clip.end_seconds / index.time_base) - stamp)
        after = index.pts[bisect.bisect_right(index.pts, stamp)]
        return max(1, after - stamp)

    def finish(self, error: str | None) -> CutResult:
        """Finishes the clip; `error` is the decoder's error, if any."""
        clip = self.clip
        try:
            if self._problem is not None:
                raise self._problem
            expected = clip.last - clip.first
            if error and len(self._stamps) < expected:
                raise RowFailed(
                    "bad_media",
                    f"of the clip's {counted(expected, 'frame')} "
                    f"{len(self._stamps):,} can be decoded ({error})",
                )
            if self._file is None or self._track is None:
                raise RowFailed("bad_media", "no frame of the clip can be decoded")
            with self._file.writing():
                packets = self._track.encode(None)
            self._mux(packets)
            first = self._stamps[0]
            base = self._index.time_base
            start = exact_seconds(first, base)
            times = [exact_seconds(stamp - first, base) for stamp in self._stamps]
            facts = self._file.publish(times, clip.end_seconds - start)
            return CutResult(
                clip.request.clip_id,
                start_seconds=start,
                end_seconds=clip.end_seconds,
                n_frames=len(times),
                crop=self._crop,
                **facts,
            )
        except RowFailed as problem:
            return CutResult(clip.request.clip_id, problem=problem)
        finally:
            self.discard()

    def discard(self) -> None:
        if self._file is not None:
            self._file.discard()
