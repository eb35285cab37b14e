"""Decodes a video with PyAV, on as many cores as it may use."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from clipmill.stages.media.read.decode import (
    ASTRAY_SECONDS,
    ASTRAY_SHARE,
    DecodedVideo,
    VideoFacts,
    bad_media,
    goes_back,
    open_container,
    read_facts,
    video_stream,
)
from clipmill.stages.media.read.entries import Kind, PacketReader, packet_reader, tells_no_order
from clipmill.stages.media.read.framing import framing_of
from clipmill.stages.media.read.labels import carrying_labels, place_of, put_place
from clipmill.stages.media.read.opening import packets
from clipmill.stages.media.read.picture import Picture
from clipmill.stages.media.read.planes import PlaneImages
from clipmill.stages.media.read.scaling import KeptImages, SmallImages
from clipmill.stages.media.read.strict_decoding import Damaged, be_alone, be_strict, decoded

# Pictures held by decoding threads: two each, and those in progress, at 12 bits per pixel.
_PICTURES_BYTES = 1 << 30
_BYTES_A_PIXEL = 4.5
_DECODERS_MOST_THREADS = 16  # FFmpeg's own limit
# At least this share of a file's packets must give an intact frame; codecs with hidden frames give
# half.
_SOUND_SHARE = 1 / 3


def _threads(stream: av.VideoStream) -> int:
    """How many threads may decode; 0 lets the decoder choose.

    Each thread holds pictures, which take gigabytes if a header claims a huge size.
    """
    pixels = max(1, stream.codec_context.width * stream.codec_context.height)
    most = max(1, int(_PICTURES_BYTES / (pixels * _BYTES_A_PIXEL)))
    return 0 if most >= _DECODERS_MOST_THREADS else min(most, os.cpu_count() or 1)


class Order:
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
    """Decodes with PyAV and scales in the decoder's own format.

    `lean`: pictures have `luma`, `chroma` and `tiny` instead of `small`; `parts`: they have both.
    `threads` may decode, 0 for as many as the decoder likes; with one, nothing is decoded ahead.
    """

    def __init__(
        self,
        path: Path,
        starts_at_seconds: float | None = None,
        *,
        lean: bool = False,
        parts: bool = False,
        threads: int = 0,
    ) -> None:
        super().__init__(path, starts_at_seconds)
        self._lean = lean
        self._has_parts = lean or parts
        self._threads = threads
        self._small: SmallImages | None = None
        self._planes: PlaneImages | None = None
        self.corrupt_seconds: list[float] = []
        self._kept_images = threading.local()
        self._held_bytes: dict[tuple[int, int], int] = {}
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
            self._prepare(stream)
            last_pts: int | None = None
            astray, first_astray, given = 0, None, 0
            for number, frame in self._decoded(container, stream):
                if self.facts is None:
                    self.facts = read_facts(
                        container, self.path, frame, self.starts_at_seconds, framing
                    )
                    facts, usual = self.facts, self.facts.usual_pts
                    self._make_small(facts, frame)
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
                yield self._picture(number, frame, pts)
                given += 1
            self._check_sound(first_astray if astray > max(1.0, ASTRAY_SHARE * given) else None)
            self._count_lost()

    def _prepare(self, stream: av.VideoStream) -> None:
        # Threads that share a picture can propagate an error that none of them reports.
        stream.thread_type = "FRAME"
        fit = _threads(stream)
        stream.codec_context.thread_count = min(self._threads or fit, fit or self._threads)

    @property
    def _is_alone(self) -> bool:
        return self._threads == 1

    def _make_small(self, facts: VideoFacts, first: av.VideoFrame) -> None:
        if self._has_parts:
            size = (facts.width, facts.height)
            self._planes = PlaneImages(size, facts.orientation, facts.framing)
        if not self._lean:
            self._small = SmallImages(first)

    def _picture(self, number: int, frame: av.VideoFrame, pts: int) -> Picture:
        facts = self.facts
        assert facts is not None
        return Picture(
            number=number,
            seconds=facts.seconds(pts),
            position_microseconds=facts.position_microseconds(pts),
            duration_seconds=facts.duration_seconds(frame.duration or facts.usual_pts),
            small=self._small(frame) if self._small else None,
            full=functools.partial(self._kept, frame),
            held_bytes=self._bytes_of(frame),
            parts=self._planes(frame) if self._planes else None,
        )

    def _bytes_of(self, frame: av.VideoFrame) -> int:
        """What the frame takes in memory: looked up once per size."""
        size = (frame.width, frame.height)
        if size not in self._held_bytes:
            self._held_bytes[size] = sum(plane.buffer_size for plane in frame.planes)
        return self._held_bytes[size]

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
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """The file's frames with their numbers, the same ones on every machine (see
        `strict_decoding`)."""
        given = 0
        be_strict(stream)
        try:
            for frame in self._run(container, stream, strictly=True):
                yield given, frame
                given += 1
        except Damaged:
            self._is_damaged = True
            with open_container(self.path) as again:
                stream = video_stream(again, self.path)
                be_alone(stream)
                frames = enumerate(self._run(again, stream, strictly=False))
                yield from itertools.islice(frames, given, None)

    def _run(
        self, container: av.container.InputContainer, stream: av.VideoStream, *, strictly: bool
    ) -> Iterator[av.VideoFrame]:
        self._packets, self._sound_frames, self._waiting = 0, 0, {}
        self.packets = []
        codec = stream.codec_context
        reader = packet_reader(codec.codec.canonical_name, codec.extradata)
        order = Order() if tells_no_order(container, stream) else None
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
        self, found: Iterator[av.Packet[Any]], reader: PacketReader, order: Order | None
    ) -> Iterator[av.Packet[Any]]:
        """The packets, counted, each labelled with its place, which its frame then carries."""
        for place, packet in enumerate(found):
            stamp = packet.dts if packet.pts is None or order is not None else packet.pts
            self._count_bytes(packet, stamp)
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

    def _count_bytes(self, packet: av.Packet[Any], stamp: int | None) -> None:
        if stamp is not None and packet.size and not packet.is_discard:
            self.packets.append((stamp, packet.size))

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
