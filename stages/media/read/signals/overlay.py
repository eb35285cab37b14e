"""Which parts of pictures stay the same while time passes, to find logos and banners.

A clip's own pictures decide, and which these are is not known while a video is read. So what is
kept of two pictures are two bits per cell of 4 × 4 pixels: whether it changed, and whether it has
an edge.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

CELL = 4
CHANGED_LEVELS = 12
"""A cell has changed where a pixel differs by more than this; less is a codec's doing."""
EDGE_LEVELS = 48
"""A cell has an edge where levels within it differ by more than this."""

_BLOCK = np.ones((CELL, CELL), np.uint8)
# The pixel of a cell at which OpenCV's window of this size covers just the cell.
_ANCHOR = CELL // 2


def cells(luma: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    """The bits of two pictures' cells, packed row by row, and how many cells are in a row."""
    changed = _most(cv2.absdiff(luma, before)) > CHANGED_LEVELS
    within = cv2.morphologyEx(luma, cv2.MORPH_GRADIENT, _BLOCK)
    edge = _at_cells(within) > EDGE_LEVELS
    return {
        "columns": changed.shape[1],
        "changed": np.packbits(changed).tobytes(),
        "edges": np.packbits(edge).tobytes(),
    }


def _most(image: np.ndarray) -> np.ndarray:
    return _at_cells(cv2.dilate(image, _BLOCK))


def _at_cells(image: np.ndarray) -> np.ndarray:
    """The pixels whose windows are cells; cells that the picture's edge cuts are left out."""
    height, width = (side // CELL * CELL for side in image.shape)
    return image[_ANCHOR:height:CELL, _ANCHOR:width:CELL]
