"""Reads a video once from start to end, frame by frame, with its true timestamps.

Three ways give the same kind of `Picture`:

* `fast.FastVideo` takes frames from PyAV, on all cores, and converts no more of them than is looked
  at; `needed.NeededVideo` doesn't even decode all.
* `exact.ExactVideo` takes frames from PySceneDetect's own stream, so that decoder, conversion and
  scaling are those of its command by construction.

Both read the first video stream that is not a cover picture, as PySceneDetect does. Interlaced
frames are used as they are stored.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.read.framing import Framing, framing_of
from clipmill.stages.media.read.hdr import ToneMap, tone_map_of
from clipmill.stages.media.read.kinds import what_it_holds
from clipmill.stages.media.read.opening import (
    NotOpened,
    first_video_stream,
    from_its_start,
    open_media,
    time_base_of,
    too_large,
)
from clipmill.stages.media.read.orientation import Orientation, orientation_of
from clipmill.stages.media.read.picture import Picture
from clipmill.stages.media.read.probe import check_whole

LOST_SHARE = 0.1
"""If frames end earlier than the declared duration by this share, the packets are examined."""

# Pictures pass between threads in small batches, because each hand-over is costly.
_BATCH = 4
_BATCHES_AHEAD = 2
# How far a frame's time may be from its own timestamp, and for what share of frames further.
ASTRAY_SECONDS = 0.5
ASTRAY_SHARE = 0.02
# PySceneDetect's bounds for frame rates.
_NTSC_OFF = 0.001
_MOST_DENOMINATOR = 10_000


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
        numerator, denominator = self._unit
        return pts * numerator / denominator

    def position_microseconds(self, pts: int) -> int:
        """The time given to PySceneDetect's detectors: relative to the first frame."""
        numerator, denominator = self._unit
        return round((pts - self.start_pts) * numerator * 1_000_000 / denominator)

    @functools.cached_property
    def _unit(self) -> tuple[int, int]:
        """The time base, without a fraction's methods: each picture has three times."""
        return self.time_base.numerator, self.time_base.denominator

    @functools.cached_property
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
    stream = video_stream(container, path)
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    # Through a float, like the number that PySceneDetect gets from OpenCV.
    frame_rate = frame_rate_of(float(rate))
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


def frame_rate_of(rate: float) -> Fraction:
    """The exact frame rate that a rounded one stands for, as PySceneDetect takes it: a whole
    number, or 1000/1001 of one, as NTSC's rates are.

    PySceneDetect's own function is not imported, because its package takes a third of a helper's
    start.
    """
    whole = round(rate)
    if rate == whole:
        return Fraction(whole)
    nominal = round(rate * 1001 / 1000)
    if nominal and abs(nominal * 1000 / 1001 - rate) < _NTSC_OFF:
        return Fraction(nominal * 1000, 1001)
    return Fraction(rate).limit_denominator(_MOST_DENOMINATOR)


def declared_seconds(
    container: av.container.InputContainer, stream: av.VideoStream
) -> float | None:
    """The duration in the header, or None if it has none."""
    if stream.duration:
        return float(stream.duration * time_base_of(stream))
    if not container.duration:
        return None
    return from_its_start(container, container.duration / av.time_base)


class DecodedVideo:
    """A video being decoded: iterate for its pictures, then read the results.

    All times are the video's; `starts_at_seconds` is the video time of the file's time 0, negative
    if the file's clock begins late.

    Iterating raises RowFailed if nothing can be decoded, and at the end if the frames stop short
    of the declared duration. `decoded_frames` counts every frame that the decoder returned,
    `corrupt_seconds` are the times of pictures that it returned with errors, or not at all; None
    if the decoder doesn't report errors. `packets` are timestamps and sizes of the video's packets,
    if they were counted.
    """

    def __init__(self, path: Path, starts_at_seconds: float | None = None) -> None:
        self.path = path
        self.starts_at_seconds = starts_at_seconds
        self.decoded_frames = 0
        self.facts: VideoFacts | None = None
        self.first_error: str | None = None
        self.corrupt_seconds: list[float] | None = None
        self.packets: list[tuple[int, int]] = []
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

    def follows(self, before: int, after: int) -> bool:
        """Whether frame `after` follows frame `before`, but for those left out on purpose."""
        return after == before + 1

    def left_out(self, numbers: Sequence[int]) -> list[tuple[int, float]]:
        """Frames that were left out on purpose between the given ones, with their seconds."""
        return []

    def pictures(self) -> Iterator[Picture]:
        """Every frame that is decoded, in presentation order."""
        with contextlib.closing(self._frames() if self._is_alone else self._ahead()) as frames:
            for picture in frames:
                self._given_frames += 1
                self._last_seconds = picture.seconds + picture.duration_seconds
                yield picture
        self._check_end()

    @property
    def _is_alone(self) -> bool:
        """Whether decoding has no more than the reader's thread."""
        return False

    def _ahead(self) -> Generator[Picture, None, None]:
        """The frames, decoded and scaled in a separate thread."""
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
                yield from item
            ended = True
        finally:
            stop.set()
            while not ended and thread.is_alive():
                with contextlib.suppress(queue.Empty):
                    ahead.get(timeout=0.05)
            thread.join()
        if item is not None:
            raise item

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
