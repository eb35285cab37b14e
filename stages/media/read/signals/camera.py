"""Measures how the camera moves, and how much subjects move apart from it.

A few pictures per second are compared. Corners are followed from one to the next, one corner per
cell of a grid, so that the whole frame counts and not only where it is richest. A shift, scale and
turn is fitted to most of them. The alternative is a camera that stands still: whichever explains
the pixels of more cells wins, so moving subjects that have all the corners don't move the camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from clipmill.stages.media.read.picture import Picture

PAIR_SECONDS = 0.24
"""Compared pictures are at least this far apart."""

_JITTER_SECONDS = 0.002  # of timestamps in a container's units
_SIDE = 128  # long side of compared pictures, pixels
_CELL = 10  # side of a cell, pixels
_BLACK = 28  # brightest luma of black bars
_FADE = 0.02  # a change of brightness by more is removed first
_FADE_LEVELS = 0.5  # of the mean, below which it isn't looked for
_MOST_FADE = 4.0  # a stronger one leaves too little

# Corners, by cv2.cornerMinEigenVal, stand out from grain, which the plainest quarter shows best;
# where all is texture, that says nothing.
_LEAST_CORNER, _MOST_GRAIN = 2e-5, 6e-4
_OVER_GRAIN = 12.0
_EDGE = 3  # corners so near the frame's edge are not followed, pixels
_WINDOW = (11, 11)
_LEVELS = 3
_LOST = 12.0  # difference around a corner that was not found again, grey levels
_UNTIL = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 12, 0.02)

_TRIALS = 300
_LEAST_TRACKS = 8
# How far a track's end may be from where the camera's motion puts it: pixels, and per pixel moved.
_NEAR = 0.4
_NEAR_SHARE = 0.06
_LEAST_FOLLOWING = 0.5  # of the tracks, and
_LEAST_COVER = 0.25  # of all cells, for a camera that moves
_SURE, _SURE_COVER = 0.85, 0.6  # from which on the pixels need not be asked
_LEAST_QUARTERS = 3  # of the frame, in which tracks follow

_CLEARLY = 1.2  # how many times better one explanation must be to win a cell, and
_CLEARLY_LEVELS = 0.5  # by how many grey levels
_COARSE = 15  # details are finer than this, pixels
_DETAILED = 1.0  # mean of a cell's details, grey levels
_SAME = 0.4  # share of them by which they may differ, if the camera stands
_UNCHANGED = 1.2  # mean difference in a cell, grey levels
_STILL = 0.5  # share of unchanged cells; if less changes, the camera may stand
_MOST = 0.7  # share of tracks or changed cells that a moving camera then has to explain
_LEAST_CELLS = 3

_STANDING = np.eye(2, 3)


class Motion(NamedTuple):
    """What happens between two pictures; the camera's turns are those of its operator.

    `right` and `up` are in shares of the frame's width and height, `closer` is the natural
    logarithm of the enlargement, `clockwise` is in degrees. `apart` is the mean distance between
    the tracks and the camera's motion in shares of the frame's longer side, `following` is the
    share of tracks that follow the camera.
    """

    right: float
    up: float
    closer: float
    clockwise: float
    apart: float
    following: float


@dataclass(frozen=True)
class _Sample:
    seconds: float
    image: np.ndarray


class CameraMotion:
    """Compares the pictures of one video in order. A pair that can't be compared has nulls."""

    def __init__(self) -> None:
        self._before: _Sample | None = None
        self._has_failed = False
        self._pairs: list[dict[str, float | None]] = []

    def interrupt(self) -> None:
        """Marks that the next picture does not follow the last one."""
        self._before = None
        self._has_failed = False

    def add(self, picture: Picture) -> None:
        before = self._before
        # Fast action shows itself only in neighbouring pictures.
        least = 0.0 if self._has_failed else PAIR_SECONDS - _JITTER_SECONDS
        if before is not None and picture.seconds - before.seconds < least:
            return
        sample = self._before = _Sample(picture.seconds, _reduced(picture.luma))
        if before is not None:
            motion = None
            if before.image.shape == sample.image.shape:
                motion = compare(before.image, sample.image)
            self._pairs.append(_row(before.seconds, sample.seconds, motion))
            self._has_failed = motion is None and not self._has_failed

    def finish(self) -> dict[str, Any]:
        """The column `camera` of SCANS."""
        return {"camera": self._pairs}


def _row(
    start_seconds: float, end_seconds: float, motion: Motion | None
) -> dict[str, float | None]:
    row: dict[str, float | None] = {"start_seconds": start_seconds, "end_seconds": end_seconds}
    if motion is None:
        return row | dict.fromkeys(("pan", "tilt", "zoom", "roll", "subject", "following"))
    length = end_seconds - start_seconds
    return row | {
        "pan": 100 * motion.right / length,
        "tilt": 100 * motion.up / length,
        "zoom": 100 * motion.closer / length,
        "roll": motion.clockwise / length,
        "subject": 100 * motion.apart / length,
        "following": motion.following,
    }


def _reduced(luma: np.ndarray) -> np.ndarray:
    height, width = luma.shape
    factor = _SIDE / max(height, width)
    if factor >= 1:
        return luma
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.GaussianBlur(cv2.resize(luma, size, interpolation=cv2.INTER_AREA), (3, 3), 0)


def compare(before: np.ndarray, after: np.ndarray) -> Motion | None:
    """The motion between two 8-bit grey images of one size; None if they don't show it."""
    height, width = before.shape
    top, bottom, left, right = _without_bars(before, after)
    before, after = before[top:bottom, left:right], after[top:bottom, left:right]
    if min(before.shape) < 2 * _CELL:
        return None
    cells = _Cells(before.shape)
    after = cells.without_fade(before, after)
    starts, ends = _tracks(before, after, cells)
    camera = _camera(before, after, starts, ends, cells)
    if camera is None:
        return None
    return _described(camera, starts, ends, before.shape, (width, height))


def _camera(
    before: np.ndarray, after: np.ndarray, starts: np.ndarray, ends: np.ndarray, cells: _Cells
) -> np.ndarray | None:
    """The camera's motion, which is what the tracks say if the pixels agree."""
    found = _fit(starts, ends, before.shape)
    if found is not None and found[1] >= max(_SURE * len(starts), _SURE_COVER * cells.count):
        return found[0]
    before, after = _details(before), _details(after)
    unexplained = cells.means(cv2.absdiff(before, after))
    unchanged = unexplained < _UNCHANGED
    if found is not None:
        fit, following = found
        left = cells.means(cv2.absdiff(_moved(before, fit), after))
        for_fit = int((unexplained > _CLEARLY * left + _CLEARLY_LEVELS).sum())
        for_standing = int((left > _CLEARLY * unexplained + _CLEARLY_LEVELS).sum())
        if for_standing > for_fit:
            return _STANDING if for_standing >= _LEAST_CELLS else None
        if _is_slight(fit, before.shape):
            return fit
        agreed = following >= _MOST * len(starts) or for_fit >= _MOST * (~unchanged).sum()
        # Where little changes, subjects may be all that moves.
        if following >= _LEAST_COVER * cells.count and (agreed or unchanged.mean() < _STILL):
            return fit
    detail = cells.means(np.abs(before))
    shown = (detail >= _DETAILED) & (unexplained < _SAME * detail)
    stands = unchanged.mean() >= _STILL and shown.sum() >= _LEAST_CELLS
    return _STANDING if stands else None


def _moved(image: np.ndarray, fit: np.ndarray) -> np.ndarray:
    height, width = image.shape
    return cv2.warpAffine(image, fit, (width, height), borderMode=cv2.BORDER_REPLICATE)


def _without_bars(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int, int]:
    """The part of the images inside black bars: top, bottom, left, right."""
    height, width = before.shape
    brightest = cv2.max(before, after)
    edges = (brightest[0], brightest[-1], brightest[:, 0], brightest[:, -1])
    if all(edge.max() > _BLACK for edge in edges):
        return 0, height, 0, width
    rows = np.flatnonzero(cv2.reduce(brightest, 1, cv2.REDUCE_MAX) > _BLACK)
    columns = np.flatnonzero(cv2.reduce(brightest, 0, cv2.REDUCE_MAX) > _BLACK)
    if not len(rows):
        return 0, 0, 0, 0
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    # The last row of the picture is mixed with the bar, and so stands still.
    return (
        top + 2 * (top > 0),
        bottom - 2 * (bottom < height),
        left + 2 * (left > 0),
        right - 2 * (right < width),
    )


def _details(image: np.ndarray) -> np.ndarray:
    """The image without its coarse brightness, which exposure and shadows change."""
    coarse = cv2.blur(image, (_COARSE, _COARSE))
    return cv2.subtract(image, coarse, dtype=cv2.CV_32F)


class _Cells:
    """A grid over images of one size, in their middle."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.rows, self.columns = shape[0] // _CELL, shape[1] // _CELL
        self.count = self.rows * self.columns
        self._top = (shape[0] - self.rows * _CELL) // 2
        self._left = (shape[1] - self.columns * _CELL) // 2

    def corners(self, response: np.ndarray) -> np.ndarray:
        """The place of each cell's largest response, as x and y, where it is large enough."""
        inside = self._inside(response)
        some = inside[::3, ::3].ravel()
        grain = float(np.partition(some, some.size // 4)[some.size // 4])
        least = max(_LEAST_CORNER, min(_OVER_GRAIN * grain, _MOST_GRAIN))
        squares = inside.reshape(self.rows, _CELL, self.columns, _CELL).swapaxes(1, 2)
        by_cell = squares.reshape(self.rows * self.columns, _CELL * _CELL)
        best = by_cell.argmax(axis=1)
        large = by_cell[np.arange(len(best)), best] >= least
        row, column = np.divmod(np.flatnonzero(large), self.columns)
        down, across = np.divmod(best[large], _CELL)
        places = (self._left + column * _CELL + across, self._top + row * _CELL + down)
        return np.stack(places, axis=1).astype(np.float32)

    def without_fade(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """`after` as bright as `before`, judged by most cells."""
        if abs(cv2.mean(before)[0] - cv2.mean(after)[0]) < _FADE_LEVELS:
            return after
        bright, later = self.means(before), self.means(after)
        gain = float(np.median((bright + 1.0) / (later + 1.0)))
        if abs(gain - 1) < _FADE or not 1 / _MOST_FADE < gain < _MOST_FADE:
            return after
        return cv2.convertScaleAbs(after, alpha=gain)

    def means(self, image: np.ndarray) -> np.ndarray:
        """The mean of each cell."""
        return cv2.resize(
            self._inside(image), (self.columns, self.rows), interpolation=cv2.INTER_AREA
        )

    def _inside(self, image: np.ndarray) -> np.ndarray:
        bottom, right = self._top + self.rows * _CELL, self._left + self.columns * _CELL
        return image[self._top : bottom, self._left : right]


def _tracks(before: np.ndarray, after: np.ndarray, cells: _Cells) -> tuple[np.ndarray, np.ndarray]:
    """Where corners are in both images, as arrays of x and y."""
    response = cv2.cornerMinEigenVal(before, 3)
    for edge in (response[:_EDGE], response[-_EDGE:], response[:, :_EDGE], response[:, -_EDGE:]):
        edge[:] = 0
    starts = cells.corners(response)
    if not len(starts):
        return starts, starts
    # Its types don't have the None that it wants for ends to be found.
    follow: Any = cv2.calcOpticalFlowPyrLK
    ends, found, errors = follow(
        before, after, starts, None, winSize=_WINDOW, maxLevel=_LEVELS, criteria=_UNTIL
    )
    good = (found.ravel() == 1) & (errors.ravel() < _LOST) & _inside(ends, before.shape)
    return starts[good], ends[good]


def _fit(
    starts: np.ndarray, ends: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, int] | None:
    """The shift, scale and turn that most tracks follow, and how many; None if too few do."""
    if len(starts) < _LEAST_TRACKS:
        return None
    way = float(np.median(np.linalg.norm(ends - starts, axis=1)))
    # Its types don't have the None that it returns for points without a fit.
    estimate: Any = cv2.estimateAffinePartial2D
    fit, inliers = estimate(
        starts,
        ends,
        method=cv2.RANSAC,
        ransacReprojThreshold=_NEAR + _NEAR_SHARE * way,
        maxIters=_TRIALS,
        confidence=0.99,
    )
    if fit is None:
        return None
    following = starts[inliers.ravel() == 1]
    if len(following) < max(_LEAST_TRACKS, _LEAST_FOLLOWING * len(starts)):
        return None
    quarters = (following >= (shape[1] / 2, shape[0] / 2)) @ (1, 2)
    return (fit, len(following)) if len(np.unique(quarters)) >= _LEAST_QUARTERS else None


def _described(
    fit: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    shape: tuple[int, ...],
    frame: tuple[int, int],
) -> Motion:
    height, width = shape
    center = np.array(((width - 1) / 2, (height - 1) / 2))
    right, down = fit[:, :2] @ center + fit[:, 2] - center
    scale = float(np.hypot(fit[0, 0], fit[1, 0]))
    turn = float(np.degrees(np.arctan2(fit[1, 0], fit[0, 0])))
    carried = starts @ fit[:, :2].T + fit[:, 2]
    seen = _inside(carried, shape)
    off = np.linalg.norm((carried - ends)[seen], axis=1)
    way = np.linalg.norm((ends - starts)[seen], axis=1)
    strays: np.ndarray = off > _NEAR + _NEAR_SHARE * way
    cells = _Cells(shape).count
    return Motion(
        right=-float(right) / frame[0],
        up=float(down) / frame[1],
        closer=float(np.log(scale)),
        clockwise=-turn,
        apart=float(off[strays].sum()) / cells / max(frame),
        following=1.0 - float(strays.mean()) if len(strays) else 1.0,
    )


def _inside(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    height, width = shape
    last = (width - 1 - _EDGE, height - 1 - _EDGE)
    return np.asarray(((points >= _EDGE) & (points <= last)).all(axis=1))


def _is_slight(fit: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether the fit moves no corner of the frame by more than tracks are accurate."""
    height, width = shape
    frame = np.array(((0, 0), (width, 0), (0, height), (width, height)))
    moved = np.linalg.norm(frame @ fit[:, :2].T + fit[:, 2] - frame, axis=1)
    return bool(moved.max() < _NEAR)
