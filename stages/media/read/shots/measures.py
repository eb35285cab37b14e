"""Watches the decode pass for the detector `cascade`: numbers per picture, and thumbnails.

Pictures are measured in chunks, in numpy, since a call per picture costs more than its 1296 pixels.
Only the last seconds of thumbnails are held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import cv2
import numpy as np

from clipmill.stages.media.read.shots import blends
from clipmill.stages.media.read.shots.candidates import (
    CONTEXT,
    STORED,
    Differences,
    candidates,
    relative,
)
from clipmill.stages.media.read.shots.compared import histograms
from clipmill.stages.media.read.shots.thumbnails import HEIGHT, PER_IMAGE, WIDTH, packed
from clipmill.stages.media.read.shots.windows import Indexes, around, steps_of

L1 = "tiny_l1"
CORRELATION = "tiny_correlation"
HISTOGRAM = "tiny_histogram"
BRIGHTNESS = "tiny_brightness"
CONTRAST = "tiny_contrast"
PEAK = "tiny_peak"
MIDDLE_BRIGHTNESS = "tiny_middle_brightness"
MIDDLE_CONTRAST = "tiny_middle_contrast"

_COMPARED = (L1, CORRELATION, HISTOGRAM)
_OWN = (BRIGHTNESS, CONTRAST, PEAK, MIDDLE_BRIGHTNESS, MIDDLE_CONTRAST)
_CHUNK = 64
# The middle, which the bars of wide films leave free.
_MIDDLE = (
    slice(None),
    slice(HEIGHT // 4, HEIGHT - HEIGHT // 4),
    slice(WIDTH // 6, WIDTH - WIDTH // 6),
)
_PIXELS = HEIGHT * WIDTH
_DECIMALS = 4
# How long a picture may wait until all that decides on its thumbnail is known.
_AHEAD_SECONDS = blends.SPREAD * blends.LONGEST + 0.1


class HasThumbnail(Protocol):
    """The parts of a decoded picture that are looked at here; `tiny` is RGB."""

    @property
    def number(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def tiny(self) -> np.ndarray: ...


class ShotMeasures:
    """An observer of the decode pass: stores what `find.find_shots` needs.

    Per picture, compared with the one before (0 where there is none): `tiny_l1`, mean absolute
    difference of RGB, grey levels; `tiny_correlation`, 1 minus the correlation of luma;
    `tiny_histogram`, chi-square distance of colour histograms, 0 to 1. Of the picture itself:
    `tiny_brightness`, `tiny_contrast`, `tiny_peak`: mean, standard deviation and maximum of luma;
    `tiny_middle_…`, the same of the picture's middle.
    `blends.names` compare it with pictures some time before and after.
    """

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._seconds: list[float] = []
        self._takes: list[int] = []
        self._take = 0
        self._waiting: list[np.ndarray] = []
        # The last thumbnails, from the picture at `_held` on.
        self._held = 0
        self._rgb = np.empty((0, HEIGHT, WIDTH, 3), np.uint8)
        self._luma = np.empty((0, HEIGHT, WIDTH), np.uint8)
        self._last: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._statistics: dict[str, list[float]] = {name: [] for name in (*_COMPARED, *_OWN)}
        for length in blends.HALVES:
            self._statistics |= {name: [] for name in blends.names(length)}
        self._decided = 0
        self._mixed = dict.fromkeys(blends.HALVES, 0)
        self._wanted: set[int] = set()
        self._stored: list[tuple[int, np.ndarray]] = []
        self._images: list[dict[str, Any]] = []

    def interrupt(self) -> None:
        """The next picture does not follow the last one, so they are not compared."""
        self._take += 1

    def add(self, picture: HasThumbnail) -> None:
        self._numbers.append(picture.number)
        self._seconds.append(picture.seconds)
        self._takes.append(self._take)
        self._waiting.append(picture.tiny)
        if len(self._waiting) >= _CHUNK:
            self._measure()
            self._decide(is_end=False)

    def finish(self) -> dict[str, Any]:
        """The columns of the scan: `statistics` by name, and `thumbnails`."""
        self._measure()
        self._decide(is_end=True)
        self._let_go(len(self._numbers))
        self._write(is_end=True)
        return {"statistics": self._statistics, "thumbnails": self._images}

    def _measure(self) -> None:
        if not self._waiting:
            return
        rgb = np.stack(self._waiting)
        count = len(rgb)
        self._waiting = []
        luma = cv2.cvtColor(rgb.reshape(-1, WIDTH, 3), cv2.COLOR_RGB2GRAY).reshape(
            count, HEIGHT, WIDTH
        )
        flat = luma.reshape(count, _PIXELS).astype(np.float32)
        mean, deviation = flat.mean(1), flat.std(1)
        # One grey level of noise, or flat pictures would differ at random.
        normal = (flat - mean[:, None]) / np.sqrt(deviation**2 + 1)[:, None]
        histogram = histograms(rgb)

        first = len(self._numbers) - count
        follows = np.array(
            [i > 0 and self._takes[i] == self._takes[i - 1] for i in range(first, first + count)]
        )
        before = self._last or (rgb[0], normal[0], histogram[0])
        self._last = rgb[-1], normal[-1], histogram[-1]
        rgb_before, normal_before, histogram_before = (
            np.concatenate([last[None], now[:-1]])
            for last, now in zip(before, (rgb, normal, histogram), strict=True)
        )
        l1 = cv2.absdiff(rgb.reshape(count, -1), rgb_before.reshape(count, -1)).mean(1)
        correlation = 1 - (normal * normal_before).mean(1)
        both = histogram + histogram_before
        chi = ((histogram - histogram_before) ** 2 / np.maximum(both, 1)).sum(1) / (2 * _PIXELS)
        middle = flat.reshape(luma.shape)[_MIDDLE].reshape(count, -1)
        own = (mean, deviation, flat.max(1), middle.mean(1), middle.std(1))
        for name, values in zip(_COMPARED, (l1, correlation, chi), strict=True):
            self._statistics[name] += _rounded(np.where(follows, values, 0.0))
        for name, values in zip(_OWN, own, strict=True):
            self._statistics[name] += _rounded(values)
        self._rgb = np.concatenate([self._rgb, rgb])
        self._luma = np.concatenate([self._luma, luma])

    def _decide(self, *, is_end: bool) -> None:
        """Chooses the thumbnails that are stored, as far as what comes after is known."""
        count = len(self._numbers)
        self._decide_on_cuts(count if is_end else count - CONTEXT, count)
        held = self._held
        seconds = np.array(self._seconds[held:])
        takes = np.array(self._takes[held:], np.intp)
        known = seconds[-1] if is_end else seconds[-1] - blends.LONGEST
        done = held + int(np.searchsorted(seconds, known, "right"))
        for length, half in blends.HALVES.items():
            values = [self._statistics[name] for name in blends.names(length)]
            middles = np.arange(len(values[0]), done) - held
            if len(middles):
                found = blends.measure(
                    self._luma, seconds, middles, blends.outer(seconds, middles, half, takes)
                )
                for series, more in zip(values, found, strict=True):
                    series.extend(_rounded(more))
            self._decide_on_blends(length, half, seconds, known=known, is_end=is_end)
        if not is_end:
            # What decides reaches this far back.
            reach = 2 * _AHEAD_SECONDS + blends.LONGEST
            oldest = held + int(np.searchsorted(seconds, seconds[-1] - reach))
            self._let_go(min(oldest, max(0, self._decided - CONTEXT)))
            self._write(is_end=False)

    def _decide_on_cuts(self, until: int, count: int) -> None:
        if until <= self._decided:
            return
        low = max(0, self._decided - CONTEXT)
        numbers = np.array(self._numbers[low:count])
        values = differences(
            numbers,
            np.array(self._seconds[low:count]),
            self._takes[low:count],
            {name: self._statistics[name][low:count] for name in _COMPARED},
            is_start=not low,
        )
        found = candidates(relative(values), STORED)
        places = np.flatnonzero(found[: until - low])
        places = places[places >= self._decided - low]
        first, last = np.zeros_like(places), np.full_like(places, count - low - 1)
        shown = around(numbers, places, values.steps[places], first, last)
        self._wanted.update((low + shown).ravel().tolist())
        self._decided = until

    def _decide_on_blends(
        self, length: str, half: float, seconds: np.ndarray, *, known: float, is_end: bool
    ) -> None:
        held = self._held
        apart, left, split = (
            np.array(self._statistics[name][held:]) for name in blends.names(length)
        )
        # Peaks of which all pictures are there, and which no later picture exceeds.
        until = known if is_end else known - _AHEAD_SECONDS
        start = self._mixed[length] - held
        # A peak is one among those up to half a `half` away.
        low = int(np.searchsorted(seconds, seconds[min(start, len(seconds) - 1)] - half))
        high = min(int(np.searchsorted(seconds, until + half)), len(apart))
        part = slice(low, high)
        for peak in blends.peaks(seconds[part], apart[part], left[part], split[part], half):
            middle = low + int(peak)
            if middle >= start and seconds[middle] <= until:
                self._wanted.update(held + i for i in blends.spread(seconds, middle, half))
        self._mixed[length] = held + int(np.searchsorted(seconds, until, "right"))

    def _let_go(self, until: int) -> None:
        """Drops the thumbnails before this picture, and puts those that are wanted aside."""
        drop = until - self._held
        if drop <= 0:
            return
        for index in sorted(index for index in self._wanted if self._held <= index < until):
            self._wanted.remove(index)
            self._stored.append((self._numbers[index], self._rgb[index - self._held].copy()))
        self._rgb, self._luma = self._rgb[drop:], self._luma[drop:]
        self._held = until

    def _write(self, *, is_end: bool) -> None:
        while len(self._stored) >= PER_IMAGE or (is_end and self._stored):
            part, self._stored = self._stored[:PER_IMAGE], self._stored[PER_IMAGE:]
            numbers, thumbnails = zip(*part, strict=True)
            self._images.append({"frame_numbers": list(numbers), "jpeg": packed(thumbnails)})


def differences(
    numbers: Indexes,
    seconds: np.ndarray,
    takes: Sequence[int],
    statistics: Mapping[str, Sequence[float]],
    *,
    is_start: bool = True,
) -> Differences:
    """The differences of some pictures; the first has none if they are the start of the film."""
    l1, correlation, chi = (np.array(statistics[name], float) for name in _COMPARED)
    take = np.array(takes)
    gaps = np.diff(numbers, prepend=numbers[:1] - 1).astype(float)
    starts = np.diff(take, prepend=take[:1]) != 0
    if len(starts) and is_start:
        starts[0] = True
    for value in (l1, correlation, chi):
        value[starts] = np.nan
    return Differences(l1, correlation, chi, gaps, steps_of(numbers, seconds))


def _rounded(values: np.ndarray) -> list[float]:
    """As stored, also for what is decided here: later decisions see no more digits."""
    found: list[float] = np.round(values.astype(float), _DECIMALS).tolist()
    return found
