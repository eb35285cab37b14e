"""Decodes a video forward from the last place that gives the wanted frames correctly.

That place is from the packet index. The decoder is given the packets from exactly there on,
wherever a seek has landed, and each frame is identified by the packet that it came from, so
neither the demuxer's seeking nor missing or duplicate timestamps can swap frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from clipmill.stages.media.read.decode import open_container, video_stream
from clipmill.stages.media.read.labels import carrying_labels, place_of, put_place
from clipmill.stages.media.read.opening import packets, passing_over, time_base_of
from clipmill.stages.media.read.packets import EntryPacket, PacketIndex
from clipmill.stages.media.read.strict_decoding import Damaged, be_alone, be_strict, decoded

# How far before an entry to seek, if seeking to its timestamp overshoots.
_BACK_SECONDS = (0, 1, 4, 16, 3600)
# If a decoder starts late, this many earlier entries are tried, each twice as far back.
_TRIES = 4


class Forward:
    """One decoding pass over frames of a file; read the results afterwards.

    `decoded_frames` counts the decoder's frames, `first_error` is its first error. `leaves_out`
    says of a packet's place that it is not decoded; `sent_place` is the last one that was asked.
    """

    def __init__(
        self,
        path: Path,
        index: PacketIndex,
        prepare: Callable[[VideoStream], None] | None = None,
        leaves_out: Callable[[int], bool] | None = None,
    ) -> None:
        self._path = path
        self._index = index
        self._prepare = prepare
        self._numbers = {place: number for number, place in enumerate(index.places)}
        self._closed = {entry.place for entry in index.entries} if index.counts else ()
        self._leaves_out = leaves_out
        self.sent_place = -1
        self.decoded_frames = 0
        self.first_error: str | None = None

    def frames(self, first: int) -> Generator[tuple[int, av.VideoFrame], None, None]:
        """Decoded frames with their numbers, from frame `first` or an earlier one on."""
        for entry in self._entries(first):
            found = self._from_entry(entry)
            begun = next(found, None)
            if begun is None:
                continue
            is_confirmed = entry.is_proven or (
                begun[0] == entry.first_number and begun[1].key_frame
            )
            if entry == self._index.beginning or (is_confirmed and begun[0] <= first):
                yield begun
                yield from found
                return
            found.close()

    def _entries(self, first: int) -> Iterator[EntryPacket]:
        """The entries to try, the latest one first."""
        number, back = first, 1
        for _ in range(_TRIES):
            entry = self._index.entry_before(number)
            yield entry
            if entry == self._index.beginning:
                return
            number, back = max(0, entry.first_number - back), back * 2
            if not entry.first_number:
                break
        yield self._index.beginning

    def _from_entry(self, entry: EntryPacket) -> Generator[tuple[int, av.VideoFrame], None, None]:
        given: set[int] = set()
        for strictly in (True, False):
            try:
                for number, frame in self._run(entry, strictly):
                    # What is shown before it may be broken, if the decoder returns it at all.
                    if number >= entry.first_number and number not in given:
                        given.add(number)
                        yield number, frame
                return
            except Damaged as damage:
                self._complain(str(damage))

    def _run(self, entry: EntryPacket, strictly: bool) -> Iterator[tuple[int, av.VideoFrame]]:
        with open_container(self._path) as container:
            stream = self._set_up(container, strictly)
            if (found := packets_from(container, stream, entry)) is not None:
                yield from self._decoded(stream, found, strictly)
                return
        with open_container(self._path) as container:
            stream = self._set_up(container, strictly)
            yield from self._decoded(stream, numbered(packets(container, stream)), strictly)

    def _set_up(self, container: InputContainer, strictly: bool) -> VideoStream:
        stream = video_stream(container, self._path)
        if self._prepare is not None:
            self._prepare(stream)
        if strictly:
            be_strict(stream)
        else:
            be_alone(stream)
        return stream

    def _decoded(
        self,
        stream: VideoStream,
        found: Iterator[tuple[int | None, av.Packet[Any]]],
        strictly: bool,
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        number = None
        with carrying_labels(stream.codec_context):
            for frame in decoded(self._labelled(found), self._complain, strictly=strictly):
                self.decoded_frames += 1
                place = place_of(frame)
                if number is None or not self._index.counts or place in self._closed:
                    number = None if place is None else self._numbers.get(place)
                else:
                    number += 1
                if number is not None and number < self._index.n_frames:
                    yield number, frame

    def _labelled(
        self, found: Iterable[tuple[int | None, av.Packet[Any]]]
    ) -> Iterator[av.Packet[Any]]:
        """The packets labelled with their places, which their frames then carry."""
        for place, packet in found:
            if place is not None:
                self.sent_place = place
                if self._leaves_out is not None and self._leaves_out(place):
                    continue
            put_place(packet, place)
            yield packet

    def _complain(self, error: str) -> None:
        self.first_error = self.first_error or error


def packets_from(
    container: InputContainer, stream: VideoStream, entry: EntryPacket
) -> Iterator[tuple[int | None, av.Packet[Any]]] | None:
    """The packets from an entry on, each with its place in the stream.

    None if seeking can't reach them; then the file must be read from its start.
    """
    if entry.mark is None:
        return None
    for back in _BACK_SECONDS:
        found = packets(container, stream)
        with passing_over():
            container.seek(entry.pts - round(back / time_base_of(stream)), stream=stream)
            for packet in found:
                if entry.mark.is_of(packet):
                    return numbered(itertools.chain([packet], found), entry.place)
                if packet.is_keyframe and packet.pts is not None and packet.pts > entry.pts:
                    break
    return None


def numbered(
    found: Iterable[av.Packet[Any]], place: int = 0
) -> Iterator[tuple[int | None, av.Packet[Any]]]:
    """Packets with their places; the first one has the given place.

    Those that are not in the index, such as the empty ones at a file's end, have none.
    """
    for packet in found:
        if packet.size and (packet.pts is not None or packet.dts is not None):
            yield place, packet
            place += 1
        else:
            yield None, packet
