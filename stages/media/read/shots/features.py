"""Describes candidates by the thumbnails around them, for the logistic regression.

`windows` are [candidates, 16, 27, 48, 3] in RGB: eight pictures before the candidate, and eight
from it on. Near the ends of a video the first or last picture stands for those that are missing.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from clipmill.stages.media.read.shots.candidates import Differences, Relative
from clipmill.stages.media.read.shots.thumbnails import HEIGHT, WIDTH

Floats = NDArray[np.float64]

BEFORE, AFTER = 8, 8
"""Pictures of a window before the candidate, and from it on."""
NAMES = (
    "l1_times",
    "correlation_times",
    "histogram_times",
    "l1",
    "correlation",
    "histogram",
    "nearest_of_4",
    "mean_of_4",
    "nearest_by_step",
    "nearest",
    "nearest_later",
    "nearest_of_8",
    "moved_by_most",
    "moved_by_median",
    "moved",
    "moved_evenly_lit",
    "evenly_lit",
    "changed_blocks",
    "unchanged_blocks",
    "alike_across",
    "alike_within",
    "contrast",
    "unlike",
    "unlike_by_step",
    "stillness",
    "quarter_by_most",
    "least",
)
# Blocks of 12x9 pixels are looked for this far away.
_REACH = 4
_BLOCKS = (WIDTH // 12, HEIGHT // 9)
# Grey levels by which a block differs if it shows something else.
_CHANGED = 12.0
# Grey levels of noise, added to both sides of a ratio.
_NOISE, _NOISE_WITHIN = 1.0, 1.5


def described(
    windows: np.ndarray, indexes: NDArray[np.intp], found: Relative, values: Differences
) -> Floats:
    """The features of the candidates at these pictures: [candidates, names]."""
    if not len(indexes):
        return np.empty((0, len(NAMES)))
    around = np.clip(indexes[:, None] + np.array([-1, 0, 1]), 0, len(values.l1) - 1)

    def most(series: Floats) -> Floats:
        found: Floats = np.nan_to_num(series)[around].max(1)
        return found

    distances, motion, shapes = _distances(windows), _motion(windows), _shapes(windows)
    # What any of these explains is no cut: motion, light, more motion than before, an overlay.
    ratios = (motion[0], motion[3], distances[2], motion[-1], shapes[1])
    columns = [
        np.log(np.nan_to_num(found.l1)[indexes] + 0.1),
        np.log(most(found.correlation) + 0.1),
        np.log(most(found.histogram) + 0.1),
        np.log(np.nan_to_num(values.l1)[indexes] + 1),
        most(values.correlation),
        most(values.histogram),
        *distances[:-1],
        *motion[:-1],
        *_colours(windows),
        np.log(windows.std((2, 3, 4)).max(1) + 1),
        *shapes,
        distances[-1],
        motion[-1],
        np.minimum.reduce(ratios),
    ]
    return np.stack(columns, 1)


def _distances(windows: np.ndarray) -> list[Floats]:
    """Pictures on both sides against each other, and against those of their own side.

    The picture next to the cut may be a blend of both shots, as in films of a changed frame rate:
    it doesn't count among its own side's, and the sides are also compared without it.
    """
    flat = windows.reshape(*windows.shape[:2], -1)
    before, after = flat[:, :BEFORE], flat[:, BEFORE:]
    across = _pairs(before, after)
    clear = np.maximum.reduce([across[:, -4:, :4], across[:, -5:-1, :4], across[:, -4:, 1:5]])
    nearest = np.maximum.reduce(
        [
            part.min((1, 2))
            for part in (across[:, -4:, :4], across[:, -5:-1, :4], across[:, -4:, 1:5])
        ]
    )
    sides = (before[:, -7:-1], after[:, 1:7])
    upper = np.triu_indices(6, 1)
    within = np.maximum(*(np.median(_pairs(s, s)[:, upper[0], upper[1]], 1) for s in sides))
    moves = [_steps(side) for side in (before[:, :-1], after[:, 1:])]
    steps = np.maximum(*(move.max(1) for move in moves))
    quiet, lively = np.sort([np.median(move, 1) for move in moves], axis=0)
    return [
        _log_ratio(nearest, within),
        _log_ratio(clear.mean((1, 2)), within),
        _log_ratio(nearest, steps),
        np.log(nearest + 1),
        _log_ratio(across[:, -4:, 4:].min((1, 2)), within),
        _log_ratio(across.min((1, 2)), within),
        np.log((quiet + 0.5) / (lively + 0.5)),
    ]


def _pairs(first: np.ndarray, second: np.ndarray) -> Floats:
    """Mean absolute differences of all pairs: [candidates, first, second]."""
    found = np.empty((len(first), first.shape[1], second.shape[1]))
    for i in range(first.shape[1]):
        for j in range(second.shape[1]):
            found[:, i, j] = cv2.absdiff(first[:, i], second[:, j]).mean(1)
    return found


def _steps(side: np.ndarray) -> Floats:
    pairs = range(side.shape[1] - 1)
    return np.stack([cv2.absdiff(side[:, i], side[:, i + 1]).mean(1) for i in pairs], 1)


def _motion(windows: np.ndarray) -> list[Floats]:
    """What motion of blocks doesn't explain, across the candidate and within its shots."""
    t = BEFORE
    # Without the pictures next to the cut if they are blends of both shots.
    across = [(t, t - 1), (t + 1, t - 2), (t, t - 2), (t + 1, t - 1)]
    within = [(t - 2, t - 3), (t - 3, t - 4), (t + 2, t + 1), (t + 3, t + 2)]
    blocks = _moved(windows, across + within)
    nearest_blocks = _clear(blocks)
    left = blocks.mean(2)
    moved, inside = _clear(left), left[:, 4:]
    lit = _moved(evenly_lit(windows), [*across, within[0], within[2]]).mean(2)
    evenly = _clear(lit)
    quarter = np.quantile(nearest_blocks, 0.25, axis=1)
    return [
        _log_ratio(moved, inside.max(1)),
        _log_ratio(moved, np.median(inside, 1)),
        np.log(moved + 1),
        _log_ratio(evenly, lit[:, 4:].max(1)),
        np.log(evenly + 1),
        (nearest_blocks > _CHANGED).mean(1),
        np.log(quarter + 1),
        _log_ratio(quarter, inside.max(1)),
    ]


def _clear(across: Floats) -> Floats:
    """What the first two pairs both have, or one of the next two, which leave a picture out."""
    found: Floats = np.maximum.reduce(
        [np.minimum(across[:, 0], across[:, 1]), across[:, 2], across[:, 3]]
    )
    return found


def _moved(windows: np.ndarray, pairs: list[tuple[int, int]]) -> Floats:
    """Of each block of the first pictures the smallest difference from a place nearby in the
    second: [candidates, pairs, blocks]."""
    shown = np.ascontiguousarray(windows[:, [a for a, _ in pairs]])
    searched = windows[:, [b for _, b in pairs]]
    return unmoved(
        shown.reshape(-1, *shown.shape[2:]), searched.reshape(-1, *shown.shape[2:])
    ).reshape(len(windows), len(pairs), -1)


def unmoved(shown: np.ndarray, searched: np.ndarray) -> Floats:
    """[pictures, blocks]: how much each block differs from the most similar place nearby."""
    count = len(shown)
    edge = ((0, 0), (_REACH, _REACH), (_REACH, _REACH), (0, 0))
    padded = np.pad(searched, edge, mode="edge")
    tall = shown.reshape(count * HEIGHT, WIDTH, -1)
    best = None
    for down in range(2 * _REACH + 1):
        for right in range(2 * _REACH + 1):
            other = padded[:, down : down + HEIGHT, right : right + WIDTH]
            other = np.ascontiguousarray(other).reshape(tall.shape)
            means = cv2.resize(
                cv2.absdiff(tall, other),
                (_BLOCKS[0], count * _BLOCKS[1]),
                interpolation=cv2.INTER_AREA,
            )
            total = means.reshape(count, _BLOCKS[0] * _BLOCKS[1], -1).sum(2, dtype=np.uint16)
            best = total if best is None else np.minimum(best, total)
    assert best is not None
    found: Floats = best / tall.shape[2]
    return found


def evenly_lit(windows: np.ndarray) -> np.ndarray:
    """Luma with the same mean and contrast in each picture: a change of light is none."""
    luma = windows @ np.array([0.299, 0.587, 0.114], np.float32)
    mean = luma.mean((2, 3), keepdims=True)
    deviation = luma.std((2, 3), keepdims=True)
    even = (luma - mean) / (deviation + 4) * 40 + 128
    found: np.ndarray = np.clip(even, 0, 255).astype(np.uint8)[..., None]
    return found


def _shapes(windows: np.ndarray) -> list[Floats]:
    """How unlike the pictures of both sides are, whatever their light, and those of a side."""
    luma = (windows @ np.array([0.299, 0.587, 0.114], np.float32)).reshape(*windows.shape[:2], -1)
    luma -= luma.mean(2, keepdims=True)
    luma /= np.sqrt((luma**2).mean(2, keepdims=True) + 4) * np.sqrt(luma.shape[2])
    unlike = 1 - np.einsum("nix,njx->nij", luma, luma)
    t = BEFORE
    near = np.maximum.reduce(
        [
            unlike[:, t - 4 : t, t : t + 4].min((1, 2)),
            unlike[:, t - 5 : t - 1, t : t + 4].min((1, 2)),
            unlike[:, t - 4 : t, t + 1 : t + 5].min((1, 2)),
        ]
    )
    at = np.arange(luma.shape[1] - 1)
    steps = unlike[:, at, at + 1]
    most = np.maximum(steps[:, t - 7 : t - 2].max(1), steps[:, t + 1 : t + 6].max(1))
    return [np.log(near + 0.02), np.log((near + 0.02) / (most + 0.03))]


def _colours(windows: np.ndarray) -> list[Floats]:
    """How alike the colours of both sides are, and those within the sides."""
    count, length = windows.shape[:2]
    counted = histograms(windows.reshape(-1, HEIGHT, WIDTH, 3)).reshape(count, length, -1)
    counted /= np.linalg.norm(counted, axis=2, keepdims=True)
    before, after = counted[:, BEFORE - 6 : BEFORE], counted[:, BEFORE : BEFORE + 6]
    means = [side.mean(1) for side in (before, after)]
    across = (means[0] * means[1]).sum(1) / np.prod(
        [np.linalg.norm(mean, axis=1) for mean in means], axis=0
    )
    within = np.minimum(*((side[:, 0] * side[:, -1]).sum(1) for side in (before, after)))
    return [across, within]


def histograms(rgb: np.ndarray) -> np.ndarray:
    """Counts of 8x8x8 colours: [pictures, 512]."""
    count = len(rgb)
    bins = rgb.reshape(count, HEIGHT * WIDTH, 3) >> 5
    index = bins[..., 0].astype(np.intp)
    index <<= 3
    index |= bins[..., 1]
    index <<= 3
    index |= bins[..., 2]
    index += np.arange(count)[:, None] * 512
    found: np.ndarray = np.bincount(index.ravel(), minlength=count * 512)
    return found.reshape(count, 512).astype(np.float32)


def _log_ratio(across: Floats, within: Floats) -> Floats:
    found: Floats = np.log((across + _NOISE) / (within + _NOISE_WITHIN))
    return found
