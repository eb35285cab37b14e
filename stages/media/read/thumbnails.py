"""Thumbnails of frames, to detect whether anything in a picture has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipmill.schemas.errors import RowFailed

if TYPE_CHECKING:
    import numpy as np

SIDE = 16


def thumbnail(jpeg: bytes) -> np.ndarray:
    """The JPEG's mean colours in SIDE × SIDE cells; RowFailed `bad_media` if undecodable."""
    import cv2
    import numpy as np

    # Decoded directly at a quarter of the size, from the JPEG's coefficients.
    small = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_REDUCED_COLOR_4)
    if small is None:
        raise RowFailed("bad_media", f"a kept frame of {len(jpeg)} bytes cannot be decoded")
    return cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def largest_difference(one: np.ndarray, other: np.ndarray) -> int:
    """Largest difference of any cell and colour of two thumbnails, in levels of 0–255.

    The largest, not the mean: something small that moves changes few cells, but those by a lot.
    """
    import cv2

    return int(cv2.absdiff(one, other).max())
