"""Chooses, during decoding, which frames are kept for later stages.

The choice must serve clips that are not known yet, and any split that is made later, so it depends
only on the pictures. The video is seen as *takes*: a new one begins where the content
score reaches `TAKE_SCORE`, but never within `TAKE_SECONDS` of the last beginning. In each take

* the first frame is kept, then one every 1/8 second;
* whenever more than `HELD` frames are waiting, every second one is let go and the distance
  doubles, so a take of any length has 8 to 16 evenly spread frames as soon as it has so many;
* the distance never grows beyond `1 / frames_per_second`. From there on frames are final.

A distance is an upper bound as long as the source has frames that dense, hence with the default
of two frames per second every clip of half a second or more holds a kept frame, wherever it begins.

Frames wait as the decoder left them and only those that stay are scaled and encoded, in a thread
of their own. What waits is bounded by `HELD` frames and `WAITING_BYTES`; larger ones are scaled
at once.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from clipmill.stages.media.read.images import encode_jpeg
from clipmill.stages.media.read.picture import Picture

TAKE_SCORE = 15.0
TAKE_SECONDS = 0.5
FIRST_DISTANCE_SECONDS = 0.125
HELD = 16
WAITING_BYTES = 64 * 1024 * 1024

# Each hand-over to the encoder's thread is costly.
_PER_JOB = 4
_JOBS_WAITING = 2


@dataclass
class _Held:
    number: int
    seconds: float
    image: Callable[[tuple[int, int]], np.ndarray]


def _encoded(part: list[_Held], size: tuple[int, int], quality: int) -> list[dict[str, object]]:
    """The frames as FRAME columns."""
    return [
        {
            "frame_number": held.number,
            "seconds": held.seconds,
            "jpeg": encode_jpeg(held.image(size), quality),
        }
        for held in part
    ]


class FrameKeeper:
    """Takes every picture of one video in order; `ready`, then `finish` return the kept frames.

    `frame_size` is the size of kept frames (width, height) once there is a first picture.
    """

    def __init__(self, frames_per_second: float, quality: int) -> None:
        self._longest = 1.0 / frames_per_second
        self._quality = quality
        self._held: list[_Held] = []
        self._jobs: deque[Future[list[dict[str, object]]]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="jpeg")
        self._distance = self._first_distance
        self._take_began: float | None = None
        self._kept_at = 0.0
        self._before: float | None = None

    @property
    def _first_distance(self) -> float:
        return min(FIRST_DISTANCE_SECONDS, self._longest)

    def __enter__(self) -> FrameKeeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, picture: Picture, size: tuple[int, int], score: float, begins: bool) -> None:
        """Keeps the picture or drops it; `begins` starts a new take, whatever the content score."""
        seconds = picture.seconds
        step = 0.0 if self._before is None else seconds - self._before
        self._before = seconds
        began = self._take_began
        if begins or began is None or (score >= TAKE_SCORE and seconds - began >= TAKE_SECONDS):
            self._settle(size)
            self._distance = self._first_distance
            self._take_began = seconds
        elif seconds + step - self._kept_at <= self._distance * (1 + 1e-6):
            # The next frame will still be near enough, if frames keep coming at this rate.
            return
        self._kept_at = seconds
        self._hold(picture, size)

    def _hold(self, picture: Picture, size: tuple[int, int]) -> None:
        image = picture.full
        if picture.held_bytes * HELD > WAITING_BYTES:
            scaled = image(size)
            image = lambda _: scaled  # noqa: E731  same shape as Picture.full
        self._held.append(_Held(picture.number, picture.seconds, image))
        if self._distance >= self._longest:
            self._settle(size)
        elif len(self._held) > HELD:
            times = [held.seconds for held in self._held[::2]]
            widest = max(after - before for before, after in itertools.pairwise(times))
            if max(widest, self._distance * 2) <= self._longest * (1 + 1e-6):
                del self._held[1::2]
                self._distance *= 2
            else:
                # Dropping every second frame again would exceed the limit, so the rest is final.
                self._distance = self._longest
                self._settle(size)

    def _settle(self, size: tuple[int, int]) -> None:
        """Hands frames that can no longer be dropped to the encoder."""
        held, self._held = self._held, []
        for first in range(0, len(held), _PER_JOB):
            if len(self._jobs) >= _JOBS_WAITING:
                # Bounds the full frames that wait for the encoder.
                self._jobs[-_JOBS_WAITING].result()
            part = held[first : first + _PER_JOB]
            self._jobs.append(self._pool.submit(_encoded, part, size, self._quality))

    def ready(self) -> Iterator[dict[str, object]]:
        """Encoded kept frames not returned before, in time order, as FRAME columns.

        Those are frame_number, seconds and jpeg.
        """
        while self._jobs and self._jobs[0].done():
            yield from self._jobs.popleft().result()

    def finish(self, size: tuple[int, int]) -> Iterator[dict[str, object]]:
        """All kept frames not returned before."""
        self._settle(size)
        while self._jobs:
            yield from self._jobs.popleft().result()
