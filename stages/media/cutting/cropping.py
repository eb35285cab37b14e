"""Translates a part of the displayed picture into pixels of the stored one.

Edges are rounded inwards, so that nothing outside the part is kept, and to pixels that all colour
planes share: colours are stored for blocks of pixels, and a cut through a block would shift them.
"""

from __future__ import annotations

from math import ceil, floor

import av

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.cutting.requests import Rectangle
from clipmill.stages.media.read.framing import Framing
from clipmill.stages.media.read.orientation import Orientation

SMALLEST_SIDE = 16
"""In pixels; the size of a block that H.264 encodes."""
# Shares are rounded, perhaps to 32 bits: an edge this near to a pixel's edge is on it.
_ROUNDING_PIXELS = 0.01
_EVEN = 2


def crop_of(part: Rectangle, orientation: Orientation, frame: av.VideoFrame) -> Framing:
    """The pixels to cut off a stored picture; RowFailed if too little would be left."""
    stored = _stored(part, orientation)
    left, width = _inside(stored.left, stored.right, frame.width, _block(frame, across=True))
    top, height = _inside(stored.top, stored.bottom, frame.height, _block(frame, across=False))
    if min(width, height) < SMALLEST_SIDE:
        across, down = orientation.shown(max(0, width), max(0, height))
        raise RowFailed(
            "permanent",
            f"the safe rectangle leaves {across} × {down} pixels, fewer than {SMALLEST_SIDE} on a "
            "side",
        )
    return Framing(
        left=left, right=frame.width - left - width, top=top, bottom=frame.height - top - height
    )


def shown_part(framing: Framing, orientation: Orientation, frame: av.VideoFrame) -> Rectangle:
    """The part of the displayed picture that is left."""
    part = Rectangle(
        framing.left / frame.width,
        framing.top / frame.height,
        (frame.width - framing.right) / frame.width,
        (frame.height - framing.bottom) / frame.height,
    )
    if orientation.is_mirrored:
        part = _mirrored(part)
    for _ in range(orientation.quarters):
        part = Rectangle(1 - part.bottom, part.left, 1 - part.top, part.right)
    return part


def _stored(part: Rectangle, orientation: Orientation) -> Rectangle:
    """The same part of the stored picture, before it is mirrored and rotated clockwise."""
    for _ in range(orientation.quarters):
        part = Rectangle(part.top, 1 - part.right, part.bottom, 1 - part.left)
    return _mirrored(part) if orientation.is_mirrored else part


def _mirrored(part: Rectangle) -> Rectangle:
    return Rectangle(1 - part.right, part.top, 1 - part.left, part.bottom)


def _inside(low: float, high: float, size: int, block: int) -> tuple[int, int]:
    """The first pixel and the number of pixels, an even one, between two shares of a side."""
    first = ceil(ceil(low * size - _ROUNDING_PIXELS) / block) * block
    last = floor(high * size + _ROUNDING_PIXELS)
    return first, (last - first) // _EVEN * _EVEN


def _block(frame: av.VideoFrame, *, across: bool) -> int:
    """How many pixels share a colour, and at least two, so that the result is even."""
    form = frame.format
    of_colour = form.chroma_width if across else form.chroma_height
    return max(_EVEN, SMALLEST_SIDE // max(1, of_colour(SMALLEST_SIDE)))
