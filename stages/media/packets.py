"""The time stamps of a file's frames, read from its packets without decoding anything."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from stages.media.decode import (
    ASTRAY_SECONDS,
    ASTRAY_SHARE,
    bad_media,
    goes_back,
    offset_pts,
    open_container,
    video_stream,
)
from stages.media.memory import raise_if_out
from stages.media.opening import packets

# Codecs store frames so far from where they are shown.
_REORDERED_FRAMES = 16


@dataclass(frozen=True)
class PacketIndex:
    """One entry a frame, in presentation order, of the stream that `video_stream` picks.

    Codecs with hidden frames (VP8) have more packets than frames: `n_frames` is then an upper
    bound, and a decoder's own count must agree before a number is taken for a position.
    Time stamps are the file's; seconds are the video's, `offset_pts` later (see schemas/clocks.py).
    `pixels` is how large the header says that a picture is.
    """

    time_base: Fraction
    start_pts: int
    pts: list[int]
    key_numbers: list[int]
    end_pts: int
    is_best_stream: bool
    has_index: bool = True
    offset_pts: int = 0
    pixels: int = 0

    @property
    def n_frames(self) -> int:
        return len(self.pts)

    def seconds(self, number: int) -> float:
        return float((self.pts[number] + self.offset_pts) * self.time_base)

    @property
    def end_seconds(self) -> float:
        return float((self.end_pts + self.offset_pts) * self.time_base)

    def key_before(self, number: int) -> int:
        """The number of the key frame from which decoding must begin to reach `number`."""
        at = bisect.bisect_right(self.key_numbers, number)
        return self.key_numbers[at - 1] if at else 0

    def nearest_pts(self, pts: int) -> int:
        """The time stamp of the file that is nearest to `pts`."""
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


def read_packets(path: Path, starts_at_seconds: float | None = None) -> PacketIndex:
    """The index of a file; RowFailed (`bad_media`) where a time does not name one frame.

    That is a file without video packets, or with time stamps that begin anew on the way.
    `starts_at_seconds` is the file's time 0 in the video, None where it is 0.
    """
    with open_container(path) as container:
        stream = video_stream(container, path)
        entries: list[tuple[int, int, bool]] = []
        try:
            for packet in packets(container, stream):
                stamp = packet.pts if packet.pts is not None else packet.dts
                if packet.size and stamp is not None and not packet.is_discard:
                    entries.append((stamp, packet.duration or 0, packet.is_keyframe))
        except av.FFmpegError as error:
            raise_if_out(error)
            if not entries:
                raise bad_media(path, f"cannot be read ({error})") from error
        if not entries:
            raise bad_media(path, "has no video packets")
        time_base = Fraction(stream.time_base.numerator, stream.time_base.denominator)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        usual = max(1, round(1 / (Fraction(rate.numerator, rate.denominator) * time_base)))
        _check_order(path, [stamp for stamp, _, _ in entries], time_base, usual)
        entries.sort()
        best = container.streams.best("video")
        return PacketIndex(
            time_base=time_base,
            start_pts=stream.start_time or 0,
            pts=[stamp for stamp, _, _ in entries],
            key_numbers=[i for i, (_, _, is_key) in enumerate(entries) if is_key],
            end_pts=entries[-1][0] + (entries[-1][1] or usual),
            is_best_stream=best is not None and best.index == stream.index,
            has_index=container.format.name.startswith(("mov,", "matroska,")),
            offset_pts=offset_pts(starts_at_seconds, time_base),
            pixels=stream.codec_context.width * stream.codec_context.height,
        )


def _check_order(path: Path, stamps: list[int], time_base: Fraction, usual: int) -> None:
    """Fails where the packets of more than a few frames lie behind far later ones."""
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
