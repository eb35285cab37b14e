"""Black bars of single pictures: FFmpeg's cropdetect."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

LIMIT = 24
"""cropdetect's default, for limited range: lines whose mean level is higher show something."""


class Edges(NamedTuple):
    """Where the picture begins and ends, as shares of the whole."""

    left: float
    top: float
    right: float
    bottom: float


def edges(plane: np.ndarray, limit: int = LIMIT) -> Edges | None:
    """The part of a stored luma plane inside black bars; None if all of it is black."""
    height, width = plane.shape
    rows = cv2.reduce(plane, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() // width > limit
    columns = cv2.reduce(plane, 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() // height > limit
    if not rows.any() or not columns.any():
        return None
    return Edges(
        int(columns.argmax()) / width,
        int(rows.argmax()) / height,
        1 - int(columns[::-1].argmax()) / width,
        1 - int(rows[::-1].argmax()) / height,
    )
