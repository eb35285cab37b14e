"""Decodes only the pictures of a video that show something which others don't.

Pictures that no other needs are left out where nothing seems to happen (see `needed_packets`). If
the decoded pictures on both sides of some then differ more than those around them, these are
decoded after all, by a second decoder that starts at the entry before. Every frame keeps its
number and its time. Where a file turns out to be damaged or odd, all the rest of it is decoded.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import statistics
from collections import deque
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import cv2

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.read.decode import open_container, video_stream
from clipmill.stages.media.read.entries import PacketReader
from clipmill.stages.media.read.fast import FastVideo, Order
from clipmill.stages.media.read.forward import Forward, numbered
from clipmill.stages.media.read.labels import place_of, put_place
from clipmill.stages.media.read.lean_measures import GROWTH
from clipmill.stages.media.read.needed_packets import left_out
from clipmill.stages.media.read.packets import PacketIndex, read_packets
from clipmill.stages.media.read.picture import Picture
from clipmill.stages.media.read.strict_decoding import Damaged, be_strict

# Codecs whose packets say whether others need them.
_CODECS = frozenset(("h264", "hevc"))
# Pictures that differ by this many levels of 255, this many times as much as the ones before them
# usually do, and this many times as much as those next to them, are not left with a gap in between.
_DOUBT_LEVELS, _DOUBT_TIMES, _PEAK_TIMES = 2.0, 1.6, 1.3
_DISTANCES = 8
# Both decoders together return at most this many times the frames of the file, or this many more.
_MOST_DECODED, _MOST_MORE = 1.02, 12


class NeededVideo(FastVideo):
    """Decodes with PyAV, but only the pictures that are needed."""

    def __init__(
        self, path: Path, starts_at_seconds: float | None = None, *, threads: int = 0
    ) -> None:
        super().__init__(path, starts_at_seconds, lean=True, threads=threads)
        self._index: PacketIndex | None = None
        # Places and numbers of what is left out; places are empty once all is decoded.
        self._places: frozenset[int] = frozenset()
        self._numbers: frozenset[int] = frozenset()
        self._number_of: dict[int, int] = {}
        self._has_looked = False
        self._budget: _Budget | None = None

    def follows(self, before: int, after: int) -> bool:
        return all(number in self._numbers for number in range(before + 1, after))

    def left_out(self, numbers: Sequence[int]) -> list[tuple[int, float]]:
        given, facts, index = set(numbers), self.facts, self._index
        if index is None or facts is None or not numbers:
            return []
        last = max(given)
        return [
            (number, facts.seconds(index.pts[number]))
            for number in sorted(self._numbers - given)
            if number < last
        ]

    def _frames(self) -> Generator[Picture, None, None]:
        with contextlib.closing(super()._frames()) as pictures:
            first = next(pictures, None)  # by then the packets have been read
            if first is not None and self._index is not None:
                yield from self._without_doubts(first, pictures, self._index)
            elif first is not None:
                yield first
                yield from pictures

    def _without_doubts(
        self, first: Picture, others: Iterator[Picture], index: PacketIndex
    ) -> Iterator[Picture]:
        """The pictures, with those that were left out where something may have happened."""
        doubts = _Doubts()
        before: Picture | None = None
        held = first
        budget = self._budget
        assert budget is not None
        with contextlib.closing(_Again(self.path, index, self._places)) as again:
            # Each picture waits for the next one, which decides with it.
            for following in itertools.chain(others, (None,)):
                if before is not None and doubts.are_there(before, held, following):
                    missing = range(before.number + 1, held.number)
                    frames = again.frames(missing) if budget.affords(missing) else ()
                    for number, frame in frames:
                        yield self._picture(number, frame, index.pts[number])
                    budget.sent_place = again.sent_place
                    more = again.newly_decoded()
                    budget.again += more
                    self.decoded_frames += more
                yield held
                if following is not None:
                    before, held = held, following

    def _prepare(self, stream: av.VideoStream) -> None:
        super()._prepare(stream)
        if not self._has_looked and stream.codec_context.codec.canonical_name in _CODECS:
            self._plan()
        self._has_looked = True

    def _plan(self) -> None:
        """Reads the packets, and decides which of them are left out."""
        try:
            index = read_packets(self.path, self.starts_at_seconds, uses=True)
        except RowFailed:
            return  # times don't identify frames; decoding says what is wrong
        self._places = left_out(index)
        if self._places:
            self._index = index
            self._number_of = {place: number for number, place in enumerate(index.places)}
            self._numbers = frozenset(self._number_of[place] for place in self._places)
            self._budget = _Budget(index, self._places)

    def _decoded(
        self, container: av.container.InputContainer, stream: av.VideoStream
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        if self._index is None:
            yield from super()._decoded(container, stream)
            return
        last = -1
        be_strict(stream)
        try:
            for frame in self._run(container, stream, strictly=True):
                place = place_of(frame)
                number = None if place is None else self._number_of.get(place)
                if number is None or number <= last or not self.follows(last, number):
                    raise Damaged("pictures come in another order than their times say")
                yield number, frame
                last = number
            if not self._waiting:
                return
        except Damaged:
            pass
        self._places = frozenset()
        with open_container(self.path) as again:
            stream = video_stream(again, self.path)
            self._prepare(stream)
            for number, frame in super()._decoded(again, stream):
                if number > last:
                    yield number, frame

    def _labelled(
        self, found: Iterator[av.Packet[Any]], reader: PacketReader, order: Order | None
    ) -> Iterator[av.Packet[Any]]:
        budget = self._budget
        if not self._places or budget is None:
            yield from super()._labelled(found, reader, order)
            return
        for place, packet in numbered(found):
            self._count_bytes(packet, packet.pts)
            if place is not None and budget.leaves_out(place):
                continue
            if place in self._number_of and packet.pts is not None:
                self._packets += 1
                self._waiting[place] = packet.pts
            put_place(packet, place)
            yield packet


class _Doubts:
    """Says between which pictures something may have happened that neither shows."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_DISTANCES)

    def are_there(self, before: Picture, after: Picture, following: Picture | None) -> bool:
        """Whether pictures were left out between two that differ unlike those around them."""
        levels = _levels(before, after)
        step = levels / _frames_apart(before, after)
        usual = statistics.median(self._last) if self._last else 0.0
        last = self._last[-1] if self._last else 0.0
        self._last.append(step)
        if after.number == before.number + 1 or levels < _DOUBT_LEVELS:
            return False
        if step < max(_DOUBT_TIMES * usual, _PEAK_TIMES * last):
            return False
        return following is None or step >= _PEAK_TIMES * _levels(after, following) / _frames_apart(
            after, following
        )


def _levels(before: Picture, after: Picture) -> float:
    """The mean absolute difference of two pictures."""
    return cv2.norm(before.tiny, after.tiny, cv2.NORM_L1) / before.tiny.size


def _frames_apart(before: Picture, after: Picture) -> float:
    """By how much more pictures differ than neighbouring ones, because of their distance."""
    return float((after.number - before.number) ** GROWTH)


class _Budget:
    """Sees to it that both decoders return no more frames than `_MOST_DECODED` allows.

    What a frame costs that is wanted after all is known from the packets. The first time that it
    is too much, the frame stays left out; from then on, only packets are left out whose frames
    could be paid for. `again` counts the second decoder's frames, `sent_place` is how far it is.
    """

    def __init__(self, index: PacketIndex, places: Collection[int]) -> None:
        self._index = index
        self._places = places
        self._entries = sorted({0, *(entry.place for entry in index.entries)})
        # How many of the packets before each place the second decoder can't leave out.
        kept = (place not in places for place in range(len(index.stamps)))
        self._before = list(itertools.accumulate(kept, initial=0))
        self._more = max(_MOST_MORE, int((_MOST_DECODED - 1) * index.n_frames))
        self._spared = self._in_a_row = self.again = 0
        self._is_careful = False
        self.sent_place = -1

    def leaves_out(self, place: int) -> bool:
        if place not in self._places:
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        if self._is_careful and self._cost(place) + self._in_a_row > self._left + 1:
            return False
        self._spared += 1
        return True

    def affords(self, numbers: range) -> bool:
        """Whether the second decoder may return these frames."""
        place = max(self._index.places[number] for number in numbers)
        is_paid = self._cost(place) + len(numbers) <= self._left
        self._is_careful |= not is_paid
        return is_paid

    @property
    def _left(self) -> int:
        return self._more + self._spared - self.again

    def _cost(self, place: int) -> int:
        entry = self._entries[bisect.bisect_right(self._entries, place) - 1]
        return self._before[place] - self._before[max(entry, self.sent_place + 1)]


class _Again:
    """A second decoder, which returns pictures that the first one left out.

    It goes on from where it is, unless it has left them out, too, or a later entry is nearer.
    """

    def __init__(self, path: Path, index: PacketIndex, places: Collection[int]) -> None:
        self._index = index
        self._places = places
        self._wanted: Collection[int] = ()
        self._last_wanted = -1
        self._dropped: set[int] = set()
        self._forward = Forward(path, index, _with_one_thread, self._leaves_out)
        self._running = self._forward.frames(0)
        self._from_place = -1
        self._counted = 0

    @property
    def sent_place(self) -> int:
        """The last packet that it was given."""
        return self._forward.sent_place

    def _leaves_out(self, place: int) -> bool:
        # What follows may be wanted next.
        is_out = place in self._places and place not in self._wanted and place < self._last_wanted
        if is_out:
            self._dropped.add(place)
        return is_out

    def newly_decoded(self) -> int:
        """The number of frames that were decoded since the last call."""
        before, self._counted = self._counted, self._forward.decoded_frames
        return self._counted - before

    def close(self) -> None:
        self._running.close()

    def frames(self, numbers: range) -> Iterator[tuple[int, av.VideoFrame]]:
        places = {self._index.places[number] for number in numbers}
        self._wanted, self._last_wanted = places, max(places)
        entry = self._index.entry_before(numbers[0])
        if not self._dropped.isdisjoint(places) or entry.place > self._from_place:
            self._from_place = entry.place
            self._dropped.clear()
            self._running = self._forward.frames(numbers[0])
        last = numbers[-1]
        for number, frame in self._running:
            if number in numbers:
                yield number, frame
            if number >= last:
                return


def _with_one_thread(stream: av.VideoStream) -> None:
    stream.codec_context.thread_count = 1
