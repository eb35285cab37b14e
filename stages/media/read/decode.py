"""Reads a video once from start to end, frame by frame, with its true timestamps.

Two ways give the same kind of `Picture`:

* `FastVideo` takes frames from PyAV, on all cores, and converts no more of them than is looked at.
* `exact.ExactVideo` takes frames from PySceneDetect's own stream, so that decoder, conversion and
  scaling are those of its command by construction.

Both read the first video stream that is not a cover picture, as PySceneDetect does. Interlaced
frames are used as they are stored.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.read.entries import Kind, PacketReader, packet_reader, tells_no_order
from clipmill.stages.media.read.framing import Framing, framing_of
from clipmill.stages.media.read.hdr import ToneMap, tone_map_of
from clipmill.stages.media.read.kinds import what_it_holds
from clipmill.stages.media.read.labels import carrying_labels, place_of, put_place
from clipmill.stages.media.read.opening import (
    NotOpened,
    first_video_stream,
    from_its_start,
    open_media,
    packets,
    time_base_of,
    too_large,
)
from clipmill.stages.media.read.orientation import Orientation, orientation_of
from clipmill.stages.media.read.picture import Picture
from clipmill.stages.media.read.planes import PlaneImages
from clipmill.stages.media.read.probe import check_whole
from clipmill.stages.media.read.scaling import KeptImages, SmallImages
from clipmill.stages.media.read.strict_decoding import Damaged, be_alone, be_strict, decoded

LOST_SHARE = 0.1
"""If frames end earlier than the declared duration by this share, the packets are examined."""

# Pictures pass between threads in small batches, because each hand-over is costly.
_BATCH = 4
_BATCHES_AHEAD = 2
# Pictures held by decoding threads: two each, and those in progress, at 12 bits per pixel.
_PICTURES_BYTES = 1 << 30
_BYTES_A_PIXEL = 4.5
_DECODERS_MOST_THREADS = 16  # FFmpeg's own limit
# How far a frame's time may be from its own timestamp, and for what share of frames further.
ASTRAY_SECONDS = 0.5
ASTRAY_SHARE = 0.02
# At least this share of a file's packets must give an intact frame; codecs with hidden frames give
# half.
_SOUND_SHARE = 1 / 3


@dataclass(frozen=True)
class VideoFacts:
    """Facts from the header. Width and height are as displayed: cropped, rotated, square pixels."""

    path: Path
    width: int
    height: int
    orientation: Orientation
    frame_rate: Fraction
    time_base: Fraction
    start_pts: int
    declared_seconds: float | None
    offset_pts: int = 0
    tone_map: ToneMap | None = None
    framing: Framing = field(default_factory=Framing)

    @property
    def is_shown_as_decoded(self) -> bool:
        """Whether a decoder's pictures only need resizing."""
        return self.orientation.is_upright and self.tone_map is None and not self.framing.crops

    def seconds(self, pts: int) -> float:
        """Presentation time in the video of a timestamp of the file.

        The timestamp 0 is `offset_pts` after the video's start, or before it if negative.
        """
        return self.duration_seconds(pts + self.offset_pts)

    def duration_seconds(self, pts: int) -> float:
        """A number of time base units in seconds."""
        # Rounded once, like the division of the exact fraction, but much faster.
        return pts * self.time_base.numerator / self.time_base.denominator

    def position_microseconds(self, pts: int) -> int:
        """The time given to PySceneDetect's detectors: relative to the first frame."""
        units = (pts - self.start_pts) * self.time_base.numerator * 1_000_000
        return round(units / self.time_base.denominator)

    @property
    def usual_pts(self) -> int:
        """The distance of frames at the nominal frame rate, in units of the time base."""
        return max(1, round(1 / (self.frame_rate * self.time_base)))

    def frame_size(self, short_side: int) -> tuple[int, int]:
        """Displayed width and height, with at most `short_side` pixels; never enlarged."""
        factor = min(1.0, short_side / min(self.width, self.height))
        return max(1, round(self.width * factor)), max(1, round(self.height * factor))


def bad_media(path: Path, what: str) -> RowFailed:
    """The failure of a file that can't be decoded, with its name and a remedy."""
    return RowFailed("bad_media", f"{path}: {what}; look at it with `ffprobe` or fetch it again")


def video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The first video stream that is not a cover picture."""
    stream = first_video_stream(container)
    if stream is None:
        raise bad_media(path, f"has no video stream; it holds {what_it_holds(container)}")
    if stream.codec_context is None:
        raise bad_media(path, "has video of an unknown codec")
    if problem := too_large(stream):
        raise bad_media(path, problem)
    return stream


def goes_back(path: Path, seconds: float, before: float) -> RowFailed:
    """The failure of a file in which one time is that of several frames."""
    return bad_media(
        path,
        f"has decreasing timestamps: {seconds:.2f} s comes after "
        f"{before:.2f} s, so its times are ambiguous; join its parts again, or "
        "remux it with `ffmpeg -fflags +genpts`",
    )


def open_container(path: Path) -> av.container.InputContainer:
    """The opened file; RowFailed `bad_media` if it is not a media file."""
    try:
        return open_media(path)
    except NotOpened as problem:
        raise bad_media(path, f"cannot be opened ({problem})") from problem


def offset_pts(starts_at_seconds: float | None, time_base: Fraction) -> int:
    """The time in the video of the file's time 0, in units of the time base.

    Whole units, so that times are bit for bit those from the whole video.
    """
    return round(Fraction(starts_at_seconds) / time_base) if starts_at_seconds else 0


def read_facts(
    container: av.container.InputContainer,
    path: Path,
    first: av.VideoFrame,
    starts_at_seconds: float | None = None,
    framing: Framing | None = None,
) -> VideoFacts:
    """The facts of an opened file whose first frame is decoded: only frames know their rotation."""
    # Imported here: it takes half a second, and only workers that decode need it.
    from scenedetect.common import framerate_to_fraction

    stream = video_stream(container, path)
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    # Through a float, like the number that PySceneDetect gets from OpenCV.
    frame_rate = framerate_to_fraction(float(rate))
    time_base = time_base_of(stream)
    orientation = orientation_of(first)
    framing = framing or framing_of(stream)
    width, height = orientation.shown(*framing.size(first.width, first.height))
    return VideoFacts(
        path,
        width,
        height,
        orientation,
        frame_rate,
        time_base,
        stream.start_time or 0,
        declared_seconds(container, stream),
        offset_pts(starts_at_seconds, time_base),
        tone_map_of(first),
        framing,
    )


def declared_seconds(
    container: av.container.InputContainer, stream: av.VideoStream
) -> float | None:
    """The duration in the header, or None if it has none."""
    if stream.duration:
        return float(stream.duration * time_base_of(stream))
    if not container.duration:
        return None
    return from_its_start(container, container.duration / av.time_base)


def _threads(stream: av.VideoStream) -> int:
    """How many threads may decode; 0 lets the decoder choose.

    Each thread holds pictures, which take gigabytes if a header claims a huge size.
    """
    pixels = max(1, stream.codec_context.width * stream.codec_context.height)
    most = max(1, int(_PICTURES_BYTES / (pixels * _BYTES_A_PIXEL)))
    return 0 if most >= _DECODERS_MOST_THREADS else min(most, os.cpu_count() or 1)


class DecodedVideo:
    """A video being decoded: iterate for its pictures, then read the results.

    All times are the video's; `starts_at_seconds` is the video time of the file's time 0, negative
    if the file's clock begins late.

    Iterating raises RowFailed if nothing can be decoded, and at the end if the frames stop short
    of the declared duration. `decoded_frames` counts every frame that the decoder returned,
    `corrupt_seconds` are the times of pictures that it returned with errors, or not at all; None
    if the decoder doesn't report errors.
    """

    def __init__(self, path: Path, starts_at_seconds: float | None = None) -> None:
        self.path = path
        self.starts_at_seconds = starts_at_seconds
        self.decoded_frames = 0
        self.facts: VideoFacts | None = None
        self.first_error: str | None = None
        self.corrupt_seconds: list[float] | None = None
        self._given_frames = 0
        self._last_seconds: float | None = None

    @property
    def end_seconds(self) -> float:
        """The end of the last frame."""
        return self._last_seconds or 0.0

    @property
    def source_frames(self) -> int:
        """The number of frames in the file."""
        return self._given_frames

    def pictures(self) -> Iterator[Picture]:
        """Every frame in presentation order. Decoding and scaling run in a separate thread."""
        ahead: queue.Queue[list[Picture] | BaseException | None] = queue.Queue(_BATCHES_AHEAD)
        stop = threading.Event()

        def work() -> None:
            # The last item says how the thread ended: None, or the exception.
            ending: BaseException | None = None
            try:
                with contextlib.closing(self._frames()) as frames:
                    while not stop.is_set():
                        batch = list(itertools.islice(frames, _BATCH))
                        if not batch:
                            break
                        ahead.put(batch)
            except BaseException as error:  # noqa: BLE001  raised again in the reading thread
                ending = error
            ahead.put(ending)

        thread = threading.Thread(target=work, name="decode", daemon=True)
        thread.start()
        ended = False
        try:
            while isinstance(item := ahead.get(), list):
                for picture in item:
                    self._given_frames += 1
                    self._last_seconds = picture.seconds + picture.duration_seconds
                    yield picture
            ended = True
        finally:
            stop.set()
            while not ended and thread.is_alive():
                with contextlib.suppress(queue.Empty):
                    ahead.get(timeout=0.05)
            thread.join()
        if item is not None:
            raise item
        self._check_end()

    def _frames(self) -> Generator[Picture, None, None]:
        raise NotImplementedError

    def _check_end(self) -> None:
        reason = f" ({self.first_error})" if self.first_error else ""
        if self.facts is None or self._last_seconds is None:
            raise bad_media(self.path, f"gives no frame{reason}")
        declared = self.facts.declared_seconds
        if not declared:
            return
        covered = self._last_seconds - self.facts.seconds(self.facts.start_pts)
        if covered >= declared * (1 - LOST_SHARE):
            return
        # The header may count a sound track that outlasts the pictures, or be wrong.
        try:
            check_whole(self.path)
        except (NotOpened, RowFailed) as problem:
            raise bad_media(
                self.path,
                f"frames end after {covered:.2f} s of {declared:.2f} s: {problem}{reason}",
            ) from problem


class _Order:
    """Assigns times to pictures in a file whose timestamps only number the packets.

    The decoder returns them in display order; at a closed key frame, picture and packet have the
    same position.
    """

    def __init__(self) -> None:
        self._stamps: dict[int, int] = {}
        self._closed: set[int] = set()
        self._number = -1

    def add(self, place: int, stamp: int, is_closed: bool) -> None:
        self._stamps[place] = stamp
        if is_closed:
            self._closed.add(place)

    def stamp(self, place: int | None) -> int | None:
        """The timestamp of the next picture, which came from this packet."""
        self._number = place if place in self._closed else self._number + 1
        return self._stamps.get(self._number)


class FastVideo(DecodedVideo):
    """Decodes with PyAV on all cores and scales in the decoder's own format.

    `lean`: pictures have `luma`, `chroma` and `tiny` instead of `small`.
    """

    def __init__(
        self, path: Path, starts_at_seconds: float | None = None, *, lean: bool = False
    ) -> None:
        super().__init__(path, starts_at_seconds)
        self._lean = lean
        self.corrupt_seconds: list[float] = []
        self._kept_images = threading.local()
        self._sound_frames = 0
        # The timestamps of packets whose pictures have not arrived yet, by place in the file.
        self._waiting: dict[int, int] = {}
        self._packets = 0
        self._first_pts: int | None = None
        self._is_damaged = False

    def _frames(self) -> Generator[Picture, None, None]:
        with open_container(self.path) as container:
            stream = video_stream(container, self.path)
            # Before decoding threads start, which must not find PyAV's log open.
            framing = framing_of(stream)
            # Threads that share a picture can propagate an error that none of them reports.
            stream.thread_type = "FRAME"
            stream.codec_context.thread_count = _threads(stream)
            small: SmallImages | None = None
            planes: PlaneImages | None = None
            last_pts: int | None = None
            astray, first_astray, given = 0, None, 0
            for number, frame in enumerate(self._decoded(container, stream)):
                if self.facts is None:
                    self.facts = read_facts(
                        container, self.path, frame, self.starts_at_seconds, framing
                    )
                    facts, usual = self.facts, self.facts.usual_pts
                    if self._lean:
                        planes = PlaneImages(
                            (facts.width, facts.height), facts.orientation, facts.framing
                        )
                    else:
                        small = SmallImages(frame)
                own = pts = frame.pts if frame.pts is not None else frame.dts
                if pts is None or (last_pts is not None and pts <= last_pts):
                    # Broken timestamps: time must advance, so the usual distance is assumed.
                    pts = facts.start_pts if last_pts is None else last_pts + usual
                last_pts = pts
                if self._first_pts is None:
                    self._first_pts = pts
                if own is not None and facts.duration_seconds(pts - own) > ASTRAY_SECONDS:
                    astray += 1
                    first_astray = first_astray or (facts.seconds(own), facts.seconds(pts))
                if frame.is_corrupt:
                    self.corrupt_seconds.append(facts.seconds(pts))
                yield Picture(
                    number=number,
                    seconds=facts.seconds(pts),
                    position_microseconds=facts.position_microseconds(pts),
                    duration_seconds=facts.duration_seconds(frame.duration or usual),
                    small=small(frame) if small else None,
                    full=functools.partial(self._kept, frame),
                    held_bytes=sum(plane.buffer_size for plane in frame.planes),
                    parts=planes(frame) if planes else None,
                )
                given = number + 1
            self._check_sound(first_astray if astray > max(1.0, ASTRAY_SHARE * given) else None)
            self._count_lost()

    def _check_sound(self, astray: tuple[float, float] | None) -> None:
        """Fails a file whose frames are mostly concealed damage, or shown at other times."""
        if self.facts is None:
            return
        if self._sound_frames < self._packets * _SOUND_SHARE:
            raise bad_media(
                self.path,
                f"of {self._packets} frames only {self._sound_frames} can "
                f"be decoded{f' ({self.first_error})' if self.first_error else ''}",
            )
        if astray is not None:
            raise goes_back(self.path, *astray)

    def _count_lost(self) -> None:
        """Adds the pictures that the decoder never returned, after the first one that it did."""
        if self.facts is not None and self._first_pts is not None and self._is_damaged:
            lost = [pts for pts in self._waiting.values() if pts > self._first_pts]
            self.corrupt_seconds += map(self.facts.seconds, lost)
            self.corrupt_seconds.sort()

    def _decoded(
        self, container: av.container.InputContainer, stream: av.VideoStream
    ) -> Iterator[av.VideoFrame]:
        """The file's frames, the same ones on every machine (see `damage`)."""
        given = 0
        be_strict(stream)
        try:
            for frame in self._run(container, stream, strictly=True):
                yield frame
                given += 1
        except Damaged:
            self._is_damaged = True
            with open_container(self.path) as again:
                stream = video_stream(again, self.path)
                be_alone(stream)
                yield from itertools.islice(self._run(again, stream, strictly=False), given, None)

    def _run(
        self, container: av.container.InputContainer, stream: av.VideoStream, *, strictly: bool
    ) -> Iterator[av.VideoFrame]:
        self._packets, self._sound_frames, self._waiting = 0, 0, {}
        codec = stream.codec_context
        reader = packet_reader(codec.codec.canonical_name, codec.extradata)
        order = _Order() if tells_no_order(container, stream) else None
        found = self._labelled(packets(container, stream), reader, order)
        # A packet with one field gives no separate frame.
        has_fields = codec.codec.canonical_name == "h264" and not reader.has_whole_frames
        with carrying_labels(codec):
            for frame in decoded(found, self._complain, strictly=strictly):
                self.decoded_frames += 1
                self._sound_frames += not frame.is_corrupt
                place = place_of(frame)
                if place is not None:
                    self._waiting.pop(place, None)
                if has_fields or place is None:
                    self._waiting.clear()
                if order is not None:
                    frame.pts = order.stamp(place)
                yield frame

    def _labelled(
        self, found: Iterator[av.Packet[Any]], reader: PacketReader, order: _Order | None
    ) -> Iterator[av.Packet[Any]]:
        """The packets, counted, each labelled with its place, which its frame then carries."""
        for place, packet in enumerate(found):
            stamp = packet.dts if packet.pts is None or order is not None else packet.pts
            if packet.size and not packet.is_discard and reader.is_shown(packet):
                self._packets += 1
                if stamp is not None:
                    put_place(packet, place)
                    self._waiting[place] = stamp
                    if order is not None:
                        order.add(
                            place,
                            stamp,
                            packet.is_keyframe
                            and (reader.start(bytes(packet)).kind is Kind.CLOSED),
                        )
            yield packet

    def _complain(self, error: str) -> None:
        self.first_error = self.first_error or error

    def _kept(self, frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
        if not hasattr(self._kept_images, "make"):
            assert self.facts is not None
            self._kept_images.make = KeptImages(
                size, self.facts.orientation, self.facts.tone_map, self.facts.framing
            )
        made: np.ndarray = self._kept_images.make(frame)
        return made
