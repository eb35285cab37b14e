"""Puts sound that came later into a file of pictures, which stay as they are to the tick."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from schemas.errors import RowFailed
from stages.media.decode import open_container, video_stream
from stages.media.opening import packets

_FORMATS = {".mkv": "matroska", ".webm": "webm"}


def add_sound(source: Path, sound: Path, target: Path) -> None:
    """Copies the pictures of `source` and the sound of another file into `target`.

    Both begin at the same time, as where they are put together at once; sound before that time is
    left out, since it would move second 0. RowFailed of kind bad_media where the sound is none,
    doesn't go into such a file, or a picture's time would be another.
    """
    with open_container(source) as reader, open_container(sound) as heard:
        video = video_stream(reader, source)
        if not heard.streams.audio:
            raise RowFailed("bad_media", "what came as sound holds none")
        starts = Fraction(reader.start_time or 0, av.time_base)
        later = starts - Fraction(heard.start_time or 0, av.time_base)
        try:
            _write(video, heard.streams.audio, starts, later, target)
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, OSError):  # FFmpeg's own does not go from process to process
                raise OSError(error.errno, error.strerror, str(target)) from None
            raise RowFailed("bad_media", f"the sound can't be put to the pictures: {error}"
                            ) from error
    if _times(source) != _times(target):
        raise RowFailed("bad_media", "the sound can't be put to the pictures without moving these "
                        "in time")


def _write(video: Any, tracks: Any, starts: Fraction, later: Fraction, target: Path) -> None:
    # The pictures' times stay, also those before 0; a player need not read to the end first.
    options = {"avoid_negative_ts": "disabled", "movflags": "+faststart"}
    form = _FORMATS.get(target.suffix.lower(), "mp4")
    with av.open(f"file:{target}", "w", format=form, options=options) as writer:
        copies = {id(stream): writer.add_stream_from_template(stream, opaque=True)
                  for stream in (video, *tracks)}
        for _, _, _, packet, stream in heapq.merge(
                _in_time(0, video, Fraction(0)),
                *(_in_time(number, track, later) for number, track in enumerate(tracks, 1))):
            if stream is not video:
                stamp = packet.pts if packet.dts is None else packet.dts
                packet.pts = packet.dts = stamp + round(later / packet.time_base)
                if packet.pts * packet.time_base < starts:
                    continue
            packet.stream = copies[id(stream)]
            writer.mux(packet)


def _in_time(number: int, stream: Any, later: Fraction) -> Iterator[tuple[Any, ...]]:
    """The packets of a stream, each with what puts it in its place among the others."""
    for place, packet in enumerate(packets(stream.container, stream)):
        stamp = packet.pts if packet.dts is None else packet.dts
        if packet.size and stamp is not None:
            yield float(stamp * packet.time_base + later), number, place, packet, stream


def _times(path: Path) -> tuple[int | None, list[tuple[Any, ...]]]:
    """Where a file's clock starts, and the times of its pictures, with whether they are shown."""
    with open_container(path) as container:
        found = [(None if packet.pts is None else packet.pts * packet.time_base, packet.is_discard)
                 for packet in packets(container, video_stream(container, path)) if packet.size]
        return container.start_time, found
