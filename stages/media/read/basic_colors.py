"""How much of a picture has each of the eleven basic colours.

The ranges overlap, as people's names for colours do: a pixel between red and orange counts for
both. So a share is an upper bound, and the shares of a picture add up to more than 1.
"""

from __future__ import annotations

import numpy as np

from clipmill.schemas.errors import RowFailed

# Hue in degrees (from > to wraps around 0), saturation and value in per cent, as ranges.
_RANGES: dict[str, tuple[tuple[tuple[int, int], tuple[int, int], tuple[int, int]], ...]] = {
    "black": (((0, 360), (0, 100), (0, 22)), ((0, 360), (0, 40), (0, 30))),
    "white": (((0, 360), (0, 18), (70, 100)),),
    "grey": (((0, 360), (0, 20), (18, 85)),),
    "red": (((340, 14), (40, 100), (20, 100)),),
    "orange": (((10, 45), (45, 100), (45, 100)),),
    "brown": (((0, 48), (20, 100), (10, 68)),),
    "yellow": (((40, 72), (30, 100), (45, 100)),),
    "green": (((65, 175), (18, 100), (12, 100)),),
    "blue": (((165, 268), (15, 100), (12, 100)),),
    "purple": (((250, 330), (15, 100), (12, 100)),),
    "pink": (((295, 20), (12, 75), (55, 100)), ((310, 345), (30, 100), (45, 100))),
}
BASIC_COLORS = tuple(_RANGES)
_LONGEST_SIDE = 160


def color_shares(jpeg: bytes) -> dict[str, float]:
    """The share of a JPEG's pixels that each colour covers; RowFailed `bad_media` without one."""
    import cv2

    # A quarter of the size is read straight from the JPEG's coefficients.
    small = (
        cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_REDUCED_COLOR_4) if jpeg else None
    )
    if small is None:
        raise RowFailed("bad_media", f"a kept frame of {len(jpeg or b'')} bytes cannot be decoded")
    scale = _LONGEST_SIDE / max(small.shape[:2])
    if scale < 1:
        small = cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    hsv = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_BGR2HSV)
    hue, saturation, value = hsv[..., 0], hsv[..., 1] * 100, hsv[..., 2] * 100
    shares = {}
    for name, ranges in _RANGES.items():
        covered = np.zeros(hue.shape, bool)
        for (first, last), (dull, vivid), (dark, bright) in ranges:
            inside = (
                (hue >= first) & (hue <= last) if first <= last else (hue >= first) | (hue <= last)
            )
            covered |= (
                inside
                & (saturation >= dull)
                & (saturation <= vivid)
                & (value >= dark)
                & (value <= bright)
            )
        shares[name] = float(covered.mean())
    return shares
