"""Detail of single pictures: FFmpeg's siti (SI), blockdetect and blurdetect; noise.

Blocks, blur and noise are about pixels as they are stored, so they are looked for in full size: in
some lines, and in a part of the picture.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

CROP = (256, 144)
"""Width and height of that part, the middle of the picture: divisible by 16."""

_PERIODS = range(3, 25)
# Of more lines, some spread evenly have the same profile.
_LINES = 160
_BLUR_KERNEL = np.array(
    [[2, 4, 5, 4, 2], [4, 9, 12, 9, 4], [5, 12, 15, 12, 5], [4, 9, 12, 9, 4], [2, 4, 5, 4, 2]],
    np.float32,
)
_WEAK_EDGE, _STRONG_EDGE = 15, 30
_SEARCH_PIXELS = 50
# Of more pixels on edges, some spread evenly have the same mean width.
_MOST_EDGES = 2000
_DIAGONAL = 0.7
# Tangents of 22.5 and 67.5 degrees.
_TAN_LOW, _TAN_HIGH = math.sqrt(2) - 1, math.sqrt(2) + 1
# Directions across an edge: to the right, down, up to the right, down to the right.
_STEPS = np.array([(1, 0), (0, 1), (1, -1), (1, 1)])
_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_NOISE_BLOCK = 16
# The share of blocks with less than the noise's own response: the others have detail.
_PLAIN_SHARE = 0.2


def middle(plane: np.ndarray) -> np.ndarray:
    """The part of a full-size plane that is looked at, aligned with the blocks of codecs."""
    height, width = plane.shape
    left = max(0, width - CROP[0]) // 2 // 16 * 16
    top = max(0, height - CROP[1]) // 2 // 16 * 16
    return np.ascontiguousarray(plane[top : top + CROP[1], left : left + CROP[0]])


def spatial_information(luma: np.ndarray) -> float:
    """The standard deviation of Sobel's gradient, without the outermost pixels."""
    across = cv2.Sobel(luma, cv2.CV_32F, 1, 0)
    down = cv2.Sobel(luma, cv2.CV_32F, 0, 1)
    _, deviation = cv2.meanStdDev(cv2.magnitude(across, down)[1:-1, 1:-1])
    return float(deviation[0, 0])


def laplacian_variance(luma: np.ndarray) -> float:
    _, deviation = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
    return float(deviation[0, 0]) ** 2


def noise(luma: np.ndarray) -> float | None:
    """The standard deviation of noise by Immerkær's method, in the plainest blocks.

    None if there are no blocks.
    """
    height, width = (side // _NOISE_BLOCK * _NOISE_BLOCK for side in luma.shape)
    if not height or not width:
        return None
    response = np.abs(cv2.filter2D(luma, cv2.CV_16S, _NOISE_KERNEL)[:height, :width])
    size = (width // _NOISE_BLOCK, height // _NOISE_BLOCK)
    blocks = cv2.resize(response.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return float(np.quantile(blocks, _PLAIN_SHARE)) * math.sqrt(math.pi / 2) / 6


def blockiness(luma: np.ndarray) -> float | None:
    """How much steps between pixels stand out that repeat at an equal distance; about 1 without.

    The larger of both directions; None if the picture is too small for it.
    """
    if min(luma.shape) < 2 * _PERIODS.stop:
        return None
    down, across = (-(-(side - 1) // _LINES) for side in luma.shape)
    return max(
        _blockiness(_profile(np.ascontiguousarray(luma[1::down]), 1)),
        _blockiness(_profile(np.ascontiguousarray(luma[:, 1::across]), 0)),
    )


def _profile(luma: np.ndarray, axis: int) -> np.ndarray:
    """For each step along an axis, its share of the steps next to it, summed over all lines."""
    if axis:
        steps = cv2.absdiff(luma[:, 1:], luma[:, :-1])
        near = cv2.boxFilter(steps, cv2.CV_32F, (7, 1), normalize=False)
    else:
        steps = cv2.absdiff(luma[1:], luma[:-1])
        near = cv2.boxFilter(steps, cv2.CV_32F, (1, 7), normalize=False)
    cv2.subtract(near, steps, dst=near, dtype=cv2.CV_32F)
    np.maximum(near, 1.0, out=near)
    shares = cv2.divide(steps, near, dtype=cv2.CV_32F)
    sums = cv2.reduce(shares, 1 - axis, cv2.REDUCE_SUM).ravel()
    # The first three and the last three have too few neighbours.
    sums[:3] = sums[-3:] = 0
    return sums


def _blockiness(sums: np.ndarray) -> float:
    places = np.arange(3, sums.size - 3)
    own = sums[places]
    widened = np.maximum(np.maximum(own, sums[places + 1]), sums[places - 1])
    most = 0.0
    for period in _PERIODS:
        on_grid = places % period == period - 1
        off = float(own[~on_grid].mean())
        if off > 0:
            most = max(most, float(widened[on_grid].mean()) / off)
    return most


def blur(luma: np.ndarray) -> float | None:
    """The mean width of edges in pixels, by Marziliano's method; None without edges."""
    height, width = luma.shape
    if min(height, width) < 5:
        return None
    smooth = luma.copy()
    sums = cv2.filter2D(luma, cv2.CV_32F, _BLUR_KERNEL)
    smooth[2:-2, 2:-2] = (sums[2:-2, 2:-2] / np.float32(159)).astype(np.uint8)
    across = cv2.Sobel(smooth, cv2.CV_16S, 1, 0).ravel()
    down = cv2.Sobel(smooth, cv2.CV_16S, 0, 1).ravel()
    strength = np.abs(across) + np.abs(down)
    inner = np.zeros((height, width), bool)
    inner[1:-1, 1:-1] = True
    strength[~inner.ravel()] = 0
    places, directions = _thin(strength, across, down, width)
    edges = np.zeros(luma.size, np.uint8)
    edges[places] = np.minimum(strength[places], 255)
    strong = (edges > _STRONG_EDGE).astype(np.uint8).reshape(height, width)
    near_strong = cv2.dilate(strong, np.ones((3, 3), np.uint8)).ravel()
    kept = np.flatnonzero(near_strong[places])
    kept = kept[:: -(-len(kept) // _MOST_EDGES) or 1]
    widths = _widths(smooth, places[kept], directions[kept])
    widths = widths[widths > 0]
    return float(widths.mean()) if widths.sum() >= 2 else None


def _thin(
    strength: np.ndarray, across: np.ndarray, down: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the strongest pixels across each edge, and the direction across it."""
    # Narrow integers, because most of the time goes to reading at many places.
    places = np.flatnonzero(strength > _WEAK_EDGE).astype(np.int32)
    gx, gy = across[places].astype(np.float32), down[places].astype(np.float32)
    gy = np.where(gx < 0, -gy, gy)
    gx = np.abs(gx)
    steep = np.abs(gy)
    directions = np.where(
        steep < _TAN_LOW * gx, 0, np.where(steep < _TAN_HIGH * gx, np.where(gy < 0, 2, 3), 1)
    )
    step = (_STEPS @ np.array([1, width])).astype(np.int32)[directions]
    own = strength[places]
    is_most = (own > strength[places - step]) & (own > strength[places + step])
    return places[is_most], directions[is_most]


def _widths(smooth: np.ndarray, places: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """The distance of the extremes on both sides of each edge; 0 if one is outside."""
    height, width = smooth.shape
    levels = smooth.ravel().astype(np.int16)
    step = (_STEPS @ np.array([1, width])).astype(np.int32)[directions]
    rises = np.where(levels[places] > levels[places - step], 1, -1).astype(np.int16)
    total = np.zeros(len(places), np.float32)
    x, y = places % width, places // width
    for way in (-1, 1):
        dx, dy = (_STEPS[directions, axis] * way for axis in (0, 1))
        # How many steps fit before the picture ends.
        room = np.minimum(
            np.where(dx > 0, width - 1 - x, np.where(dx < 0, x, _SEARCH_PIXELS)),
            np.where(dy > 0, height - 1 - y, np.where(dy < 0, y, _SEARCH_PIXELS)),
        )
        found = np.full(len(places), _SEARCH_PIXELS, np.float32)
        active = np.arange(len(places))
        at = places.copy()
        for count in range(_SEARCH_PIXELS):
            outside = room[active] <= count
            if outside.any():
                found[active[outside]] = -np.inf
                active = active[~outside]
            here = at[active]
            after = here + way * step[active]
            # Against the edge's direction levels must fall, along it they must rise.
            change = (levels[here] - levels[after]) * rises[active] * -way
            ends = change <= 0
            found[active[ends]] = count
            at[active] = after
            active = active[~ends]
            if not len(active):
                break
        total += found
    total[~np.isfinite(total)] = 0
    return np.where(directions >= 2, total * np.float32(_DIAGONAL), total)
