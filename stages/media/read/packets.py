"""Reads the timestamps of a file's frames, and where decoding may start, without decoding."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from clipmill.stages.media.isolation.out_of_memory import raise_if_out
from clipmill.stages.media.read.decode import (
    ASTRAY_SECONDS,
    ASTRAY_SHARE,
    bad_media,
    goes_back,
    offset_pts,
    open_container,
    video_stream,
)
from clipmill.stages.media.read.entries import (
    NEEDED,
    Kind,
    PacketReader,
    Start,
    Use,
    packet_reader,
    tells_no_order,
)
from clipmill.stages.media.read.opening import packets, time_base_of

# Maximum distance between a frame's storage position and its display position.
_REORDERED_FRAMES = 16
# Codecs that decord reads correctly if all else fits: tried on files of each kind.
_DECORD_CODECS = frozenset(("h264", "hevc", "vp8", "vp9", "mjpeg", "prores", "dnxhd"))


@dataclass(frozen=True)
class Mark:
    """Identifies a packet when the file is read from another place."""

    pts: int | None
    dts: int | None
    size: int
    position: int | None

    @classmethod
    def of(cls, packet: av.Packet[Any]) -> Mark:
        position = packet.pos if packet.pos is not None and packet.pos >= 0 else None
        return cls(packet.pts, packet.dts, packet.size, position)

    def is_of(self, packet: av.Packet[Any]) -> bool:
        other = Mark.of(packet)
        if self.size != other.size:
            return False
        # Some demuxers make up timestamps, which differ after a seek.
        if self.position is not None and other.position is not None:
            return self.position == other.position
        return (self.pts, self.pts or self.dts) == (other.pts, other.pts or other.dts)


@dataclass(frozen=True)
class EntryPacket:
    """A packet with which decoding may begin.

    `place` is its place among the file's video packets. From it on, pictures are correct from
    number `first_number` on. `is_proven` says whether the packet's own bytes verify that; if not,
    the decoder must report its first picture as a key frame. `pts` is where to seek.
    """

    place: int
    first_number: int
    pts: int
    mark: Mark | None
    is_proven: bool = True
    is_own: bool = True


@dataclass(frozen=True)
class PacketIndex:
    """One entry per frame, in presentation order, of the stream chosen by `video_stream`.

    Codecs with hidden frames have more packets than frames; if they can't be told apart,
    `n_frames` is an upper bound. Timestamps are the file's; seconds are the video's, `offset_pts`
    later (see schemas/clocks.py). `places` are the video packets that hold each frame, and
    `entries` where decoding may start, in time order. `is_plain` means that a reader that counts
    frames between key frames counts correctly. `pixels` is a picture's size according to the
    header, `usual_pts` the distance of frames at the nominal frame rate, `stamps` the timestamps
    of all packets in file order. With `counts`, the file does not store the display order (see
    `tells_no_order`). `sizes` are those of all packets, and `unneeded` the places of those that no
    other picture needs: both only if asked for.
    """

    time_base: Fraction
    start_pts: int
    pts: list[int]
    places: list[int]
    entries: list[EntryPacket]
    end_pts: int
    is_plain: bool
    offset_pts: int = 0
    pixels: int = 0
    usual_pts: int = 1
    stamps: Sequence[int] = ()
    counts: bool = False
    sizes: Sequence[int] = ()
    unneeded: frozenset[int] = frozenset()

    @property
    def n_frames(self) -> int:
        return len(self.pts)

    def seconds(self, number: int) -> float:
        return float((self.pts[number] + self.offset_pts) * self.time_base)

    @property
    def end_seconds(self) -> float:
        return float((self.end_pts + self.offset_pts) * self.time_base)

    def entry_before(self, number: int) -> EntryPacket:
        """The last place from which decoding gives a correct frame `number`."""
        at = bisect.bisect_right(self.entries, number, key=lambda entry: entry.first_number)
        for entry in reversed(self.entries[:at]):
            if entry.place <= self.places[number]:
                return entry
        return self.beginning

    @property
    def beginning(self) -> EntryPacket:
        """The beginning of the file, from which all is right that can be decoded at all."""
        return EntryPacket(0, 0, self.start_pts, None)

    def nearest_pts(self, pts: int) -> int:
        """The file's timestamp nearest to `pts`."""
        at = bisect.bisect_left(self.pts, pts)
        near = self.pts[max(0, at - 1) : at + 1]
        return min(near, key=lambda candidate: abs(candidate - pts))

    def within(self, start_seconds: float, end_seconds: float) -> range:
        """Numbers of the frames shown from `start_seconds` on and before `end_seconds`."""
        numbers = range(self.n_frames)
        return range(
            bisect.bisect_left(numbers, start_seconds, key=self.seconds),
            bisect.bisect_left(numbers, end_seconds, key=self.seconds),
        )


@dataclass
class _Key:
    place: int
    start: Start
    mark: Mark
    # The number of reference pictures that must follow, and the position of the last one.
    awaited: int = 0
    right_from: int | None = None


class _Reading:
    """Records each packet of a stream while the file is read."""

    def __init__(
        self, reader: PacketReader, *, cut_off: bool, counts: bool, uses: bool = False
    ) -> None:
        self.reader = reader
        self._asks_uses = uses
        self.sizes: list[int] = []
        self.uses: list[Use] = []  # one object per kind: there are millions of packets
        self._cut_off = cut_off
        self._counts = counts
        self._awaiting: list[_Key] = []
        self.stamps: list[int] = []
        self.durations: list[int] = []
        self.hidden: set[int] = set()
        self.keys: list[_Key] = []
        self.is_stamped = True
        self.flags_closed_only = True

    def add(self, packet: av.Packet[Any]) -> None:
        stamps = (packet.dts, packet.pts) if self._counts else (packet.pts, packet.dts)
        stamp = stamps[1] if stamps[0] is None else stamps[0]
        if stamp is None:
            return  # without a display time
        place = len(self.stamps)
        self.is_stamped &= packet.pts is not None
        self.stamps.append(stamp)
        self.durations.append(packet.duration or 0)
        if self._asks_uses:
            self.sizes.append(packet.size)
            is_odd = packet.is_corrupt or packet.is_keyframe
            self.uses.append(NEEDED if is_odd else self.reader.use(bytes(packet)))
        first = self.keys[0] if self.keys else None
        led = first if first and first.place == 0 and stamp < self.stamps[0] else None
        if (packet.is_discard and self._cut_off) or not self.reader.is_shown(packet):
            self.hidden.add(place)
        if not (packet.is_keyframe or self._awaiting or led):
            return
        data = bytes(packet)
        if led and led.start.kind in _LOSING and self.reader.needs_earlier(data):
            self.hidden.add(place)
        if self._awaiting and self.reader.is_reference(data):
            for key in self._awaiting:
                key.awaited -= 1
                key.right_from = None if key.awaited else place
            self._awaiting = [key for key in self._awaiting if key.awaited]
        if packet.is_keyframe:
            self._add_key(place, self.reader.start(data), Mark.of(packet))

    def _add_key(self, place: int, start: Start, mark: Mark) -> None:
        self.flags_closed_only &= start.kind is Kind.CLOSED
        if start.kind is Kind.NONE:
            return
        key = _Key(place, start, mark, start.after_references)
        if key.awaited:
            self._awaiting.append(key)
        else:
            key.right_from = place
        self.keys.append(key)

    def unneeded(self) -> frozenset[int]:
        """Places of the packets that no other picture needs; none if times don't identify them."""
        are_plain = self.is_stamped and not self._counts and self.reader.has_whole_frames
        if not are_plain or len(set(self.stamps)) < len(self.stamps):
            return frozenset()
        highest = max((use.layer for use in self.uses), default=0)
        return frozenset(
            place
            for place, use in enumerate(self.uses)
            if not use.is_needed and use.layer == highest and place not in self.hidden
        )

    def hide_what_begins_unsound(self) -> None:
        """Hides pictures that decoders withhold if a file begins with a gradual refresh."""
        first = self.keys[0] if self.keys else None
        if first is None or first.place or first.start.kind is not Kind.GRADUAL:
            return
        if first.right_from is not None:
            right = self.stamps[first.right_from]
            self.hidden.update(place for place, stamp in enumerate(self.stamps) if stamp < right)


# If the file begins with such a key frame, what is shown before it is lost.
_LOSING = (Kind.OPEN, Kind.GRADUAL)


def read_packets(
    path: Path, starts_at_seconds: float | None = None, *, cut_off: bool = True, uses: bool = False
) -> PacketIndex:
    """The index of a file; RowFailed (`bad_media`) if a time does not identify one frame.

    That is a file without video packets, or with timestamps that restart midway.
    `starts_at_seconds` is the video time of the file's time 0, null if it is 0. Frames that an
    edit list cuts off are left out, except with `cut_off=False`. `uses` asks for `sizes` and
    `unneeded`.
    """
    with open_container(path) as container:
        stream = video_stream(container, path)
        codec = stream.codec_context
        counts = tells_no_order(container, stream)
        reading = _Reading(
            packet_reader(codec.codec.canonical_name, codec.extradata),
            cut_off=cut_off,
            counts=counts,
            uses=uses,
        )
        try:
            for packet in packets(container, stream):
                if packet.size:
                    reading.add(packet)
        except av.FFmpegError as error:
            raise_if_out(error)
            if not reading.stamps:
                raise bad_media(path, f"cannot be read ({error})") from error
        stamps = reading.stamps
        reading.hide_what_begins_unsound()
        places = [place for place in range(len(stamps)) if place not in reading.hidden]
        if not places:
            raise bad_media(path, "has no video packets")
        time_base = time_base_of(stream)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        usual = max(1, round(1 / (Fraction(rate.numerator, rate.denominator) * time_base)))
        _check_order(path, [stamps[place] for place in places], time_base, usual)
        places.sort(key=stamps.__getitem__)
        pts = [stamps[place] for place in places]
        entries = [
            _entry(key, reading, pts)
            for key in reading.keys
            if key.right_from is not None and (key.start.kind is Kind.CLOSED or not counts)
        ]
        last = places[-1]
        best = container.streams.best("video")
        return PacketIndex(
            time_base=time_base,
            start_pts=stream.start_time or 0,
            pts=pts,
            places=places,
            entries=sorted(entries, key=lambda entry: (entry.first_number, entry.place)),
            end_pts=stamps[last] + (reading.durations[last] or usual),
            is_plain=(
                codec.codec.canonical_name in _DECORD_CODECS
                and best is not None
                and best.index == stream.index
                and container.format.name.startswith(("mov,", "matroska,"))
                and _groups_are_apart(reading, places)
            ),
            offset_pts=offset_pts(starts_at_seconds, time_base),
            pixels=codec.width * codec.height,
            usual_pts=usual,
            stamps=stamps,
            counts=counts,
            sizes=reading.sizes,
            unneeded=reading.unneeded(),
        )


def _entry(key: _Key, reading: _Reading, pts: list[int]) -> EntryPacket:
    assert key.right_from is not None
    stamps = reading.stamps
    own = bisect.bisect_left(pts, stamps[key.place])
    first = max(own, bisect.bisect_left(pts, stamps[key.right_from])) + key.start.after_shown
    return EntryPacket(
        key.place,
        first,
        stamps[key.place],
        key.mark,
        is_proven=key.start.kind is not Kind.UNPROVEN,
        is_own=first == own and key.place not in reading.hidden,
    )


def _groups_are_apart(reading: _Reading, places: list[int]) -> bool:
    """Whether frames can be counted from any packet that is flagged as a key frame.

    They can if nothing stored before it is shown after it or needed there, nothing stored after it
    is shown before it, and each packet gives one frame with its own time.
    """
    reader = reading.reader
    if (
        reading.hidden
        or not reading.is_stamped
        or not reading.flags_closed_only
        or not reading.keys
        or reading.keys[0].place
    ):
        return False
    if not reader.has_whole_frames or not (reader.says_order or places == sorted(places)):
        return False
    if len(set(reading.stamps)) < len(places):
        return False
    keys = {key.place for key in reading.keys}
    latest = -1
    for number, place in enumerate(places):
        # Everything stored before a key frame has been shown by then.
        if place in keys and (place != number or latest != number - 1):
            return False
        latest = max(latest, place)
    return True


def _check_order(path: Path, stamps: list[int], time_base: Fraction, usual: int) -> None:
    """Fails a file that stores packets of more than a few frames after far later ones."""
    allowed = max(round(Fraction(ASTRAY_SECONDS) / time_base), _REORDERED_FRAMES * usual)
    latest = stamps[0]
    astray, first = 0, None
    for stamp in stamps:
        if latest - stamp > allowed:
            astray += 1
            first = first or (float(stamp * time_base), float(latest * time_base))
        latest = max(latest, stamp)
    if first is not None and astray > max(1.0, ASTRAY_SHARE * len(stamps)):
        raise goes_back(path, *first)
