"""Describes places that may be amid a dissolve or a wipe, by thumbnails spread over them.

`pictures` are [places, 13, 27, 48, 3] in RGB, evenly spread over `blends.SPREAD` halves before and
after. The first two and the last two show the shots on both sides, if there is a transition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmill.stages.media.read.shots.blends import PER_SPREAD
from clipmill.stages.media.read.shots.compared import evenly_lit, histograms, unmoved
from clipmill.stages.media.read.shots.spans import Kind

Floats = NDArray[np.float64]

NAMES = (
    "apart",
    "left_of_apart",
    "half",
    "ends_apart",
    "moved",
    "moved_of_apart",
    "left_most",
    "left_mean",
    "falls_back",
    "begins",
    "ends",
    "side_motion",
    "middle_motion",
    "colours_alike",
    "slope",
    "moved_evenly_lit",
    "unchanged_blocks",
    "split_of_apart",
    "in_order",
)


@dataclass(frozen=True)
class Place:
    """A picture that looks like a mix of those `half` seconds before and after."""

    index: int
    half: float
    apart: float
    left: float
    split: float

    @property
    def kind(self) -> Kind:
        return "wipe" if self.split < self.left else "dissolve"


def shares(pictures: np.ndarray) -> tuple[Floats, Floats, Floats]:
    """How much of the second shot each picture shows, [places, 13], what of each picture that
    doesn't explain, and how far the shots are apart. Grey levels."""
    flat = pictures.reshape(*pictures.shape[:2], -1).astype(np.float32)
    first, last = flat[:, :2].mean(1), flat[:, -2:].mean(1)
    change = last - first
    square = np.maximum((change**2).sum(1), 1.0)
    from_first = flat - first[:, None]
    share = np.einsum("npx,nx->np", from_first, change) / square[:, None]
    left = np.abs(from_first - share[..., None] * change[:, None]).mean(2)
    return share, left, np.abs(change).mean(1)


def described(pictures: np.ndarray, places: list[Place]) -> Floats:
    """The features of the places: [places, names]."""
    if not places:
        return np.empty((0, len(NAMES)))
    share, left, ends_apart = shares(pictures)
    apart = np.array([place.apart for place in places])
    inner = slice(2, PER_SPREAD - 2)
    blocks = unmoved(pictures[:, 0], pictures[:, -1])
    moved = blocks.mean(1)
    lit = evenly_lit(pictures[:, [0, -1]])
    moved_evenly = unmoved(lit[:, 0], lit[:, 1]).mean(1)
    flat = pictures.reshape(*pictures.shape[:2], -1).astype(np.float32)
    steps = np.abs(np.diff(flat, axis=1)).mean(2)
    sides = np.maximum(steps[:, 0], steps[:, -1])
    counted = histograms(pictures[:, [0, -1]].reshape(-1, *pictures.shape[2:]))
    counted /= np.linalg.norm(counted, axis=1, keepdims=True)
    slope = np.diff(share, axis=1)
    columns = [
        np.log(apart + 1),
        np.array([place.left / max(place.apart, 1.0) for place in places]),
        np.log([place.half for place in places]),
        np.log(ends_apart + 1),
        np.log(moved + 1),
        (moved + 0.5) / (ends_apart + 1),
        left[:, inner].max(1) / (ends_apart + 1),
        left[:, inner].mean(1) / (ends_apart + 1),
        np.minimum(slope, 0).sum(1),
        share[:, 3],
        share[:, -4],
        sides / (ends_apart + 1),
        np.median(steps[:, inner], 1) / (ends_apart + 1),
        (counted[::2] * counted[1::2]).sum(1),
        slope.max(1),
        np.log(moved_evenly + 1),
        np.log(np.quantile(blocks, 0.25, axis=1) + 1),
        np.array([place.split / max(place.apart, 1.0) for place in places]),
        in_order(pictures),
    ]
    return np.stack(columns, 1)


def in_order(pictures: np.ndarray) -> Floats:
    """How far the row or column decides which shot the middle picture shows: 1 amid a wipe."""
    first, middle, last = (
        pictures[:, place].astype(np.float32).mean(3) for place in (0, PER_SPREAD // 2, -1)
    )
    shown = (np.abs(middle - last) < np.abs(middle - first)).astype(np.float32)
    shown -= shown.mean((1, 2), keepdims=True)
    spread = np.sqrt((shown**2).sum((1, 2))) + 1e-6
    found = []
    for axis in (1, 2):
        line = np.linspace(-1, 1, shown.shape[axis], dtype=np.float32)
        grid = np.broadcast_to(line[:, None] if axis == 1 else line[None], shown.shape[1:])
        found.append(np.abs((shown * grid).sum((1, 2))) / spread / np.sqrt((grid**2).sum()))
    most: Floats = np.maximum(*found)
    return most
