"""Compares thumbnails: all of a window with each other, blocks that move, colours, light."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from clipmill.stages.media.read.shots.thumbnails import HEIGHT, WIDTH
from clipmill.stages.media.read.shots.windows import Floats

# Blocks of 12x9 pixels are looked for this far away.
_REACH = 4
_BLOCKS = (WIDTH // 12, HEIGHT // 9)
# Levels by which the pixels of a block differ if it shows something.
_TEXTURE = 24
# What differs by no more than this in a whole bar is one colour; less than this much isn't cut.
_FLAT = 12
_LEAST_SIZE = (9, 12)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def without_bars(windows: np.ndarray) -> tuple[np.ndarray, Floats]:
    """The windows without bars, as large as before, and how much of the picture they show.

    Bars are what has one colour in all pictures, from an edge on: of wide films, of tall ones.
    """
    inner = np.zeros((len(windows), 2, 2), np.intp)
    high, low = windows.max(1).astype(np.int16), windows.min(1)
    for axis, size in enumerate((HEIGHT, WIDTH)):
        is_shown = (high.max(2 - axis) - low.min(2 - axis)).max(2) > _FLAT
        inner[:, axis, 0] = is_shown.argmax(1)
        inner[:, axis, 1] = size - is_shown[:, ::-1].argmax(1)
    sizes = inner[:, :, 1] - inner[:, :, 0]
    is_cut = (sizes < (HEIGHT, WIDTH)).any(1) & (sizes >= _LEAST_SIZE).all(1)
    found = windows.copy() if is_cut.any() else windows
    for at in np.flatnonzero(is_cut):
        (top, bottom), (left, right) = inner[at]
        for picture, shown in zip(windows[at], found[at], strict=True):
            part = np.ascontiguousarray(picture[top:bottom, left:right])
            shown[:] = cv2.resize(part, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    shares = np.where(is_cut, sizes.prod(1) / (HEIGHT * WIDTH), 1.0)
    return found, shares


def distances(windows: np.ndarray) -> Floats:
    """Mean absolute differences of all pairs of pictures: [windows, pictures, pictures]."""
    count, length = windows.shape[:2]
    flat = np.ascontiguousarray(windows.reshape(count, length, -1).swapaxes(0, 1))
    found = np.zeros((count, length, length))
    for i in range(length):
        for j in range(i):
            total = cv2.reduce(cv2.absdiff(flat[i], flat[j]), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
            found[:, i, j] = found[:, j, i] = total[:, 0] / flat.shape[2]
    return found


def luma_of(windows: np.ndarray) -> np.ndarray:
    luma: np.ndarray = cv2.cvtColor(
        np.ascontiguousarray(windows).reshape(-1, WIDTH, 3), cv2.COLOR_RGB2GRAY
    )
    return luma.reshape(*windows.shape[:2], HEIGHT, WIDTH)


def unlike(luma: np.ndarray) -> Floats:
    """1 minus the correlation of all pairs of pictures, whatever their light."""
    flat = luma.reshape(*luma.shape[:2], -1).astype(np.float32)
    flat -= flat.mean(2, keepdims=True)
    flat /= np.sqrt((flat**2).mean(2, keepdims=True) + 4) * np.sqrt(flat.shape[2])
    found: Floats = 1 - (flat @ flat.swapaxes(1, 2)).astype(np.float64)
    return found


def alike_colours(windows: np.ndarray) -> Floats:
    """Products of the normal colour histograms of all pairs of pictures."""
    counted = histograms(windows.reshape(-1, HEIGHT, WIDTH, 3))
    counted = counted.reshape(*windows.shape[:2], -1)
    counted /= np.linalg.norm(counted, axis=2, keepdims=True)
    found: Floats = (counted @ counted.swapaxes(1, 2)).astype(np.float64)
    return found


def moved(windows: np.ndarray, pairs: list[tuple[int, int]]) -> Floats:
    """Of each block of the first pictures the smallest difference from a place nearby in the
    second: [windows, pairs, blocks]."""
    shown = np.ascontiguousarray(windows[:, [a for a, _ in pairs]])
    searched = windows[:, [b for _, b in pairs]]
    size = (-1, HEIGHT, WIDTH, shown.size // (len(pairs) * len(windows) * HEIGHT * WIDTH))
    return unmoved(shown.reshape(size), searched.reshape(size)).reshape(
        len(windows), len(pairs), -1
    )


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
    return even(windows @ _LUMA)


def even(luma: np.ndarray) -> np.ndarray:
    mean = luma.mean((2, 3), keepdims=True, dtype=np.float32)
    deviation = luma.std((2, 3), keepdims=True, dtype=np.float32)
    found = (luma - mean) / (deviation + 4) * 40 + 128
    kept: np.ndarray = np.clip(found, 0, 255).astype(np.uint8)[..., None]
    return kept


def textured(windows: np.ndarray) -> NDArray[np.bool_]:
    """[windows, blocks]: those that show something in a picture: bars and plain borders don't."""
    rows, columns = _BLOCKS[1], _BLOCKS[0]
    size = (*windows.shape[:2], rows, HEIGHT // rows, columns, WIDTH // columns)
    blocks = windows.reshape(size)
    spread = blocks.max((3, 5)).astype(np.int16) - blocks.min((3, 5))
    found: NDArray[np.bool_] = (spread >= _TEXTURE).any(1).reshape(len(windows), -1)
    return found


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
