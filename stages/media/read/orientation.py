"""How a file's pictures must be rotated and mirrored for display."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import Any

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type

_TURNS = (None, cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE)
# Where the matrix stores the images of a step to the right and a step down.
_MATRIX = struct.Struct("9i")
_ACROSS_X, _ACROSS_Y, _DOWN_X, _DOWN_Y = 0, 1, 3, 4


@dataclass(frozen=True)
class Orientation:
    """One of eight: the picture is mirrored left to right, then rotated clockwise by quarters."""

    quarters: int = 0
    is_mirrored: bool = False

    @property
    def is_upright(self) -> bool:
        """Whether stored pictures are shown unchanged."""
        return self == Orientation()

    @property
    def swaps_sides(self) -> bool:
        return self.quarters % 2 == 1

    def shown(self, width: int, height: int) -> tuple[int, int]:
        """Displayed width and height of a stored size, and vice versa."""
        return (height, width) if self.swaps_sides else (width, height)

    def upright(self, image: np.ndarray) -> np.ndarray:
        """A stored picture as displayed."""
        if self.is_mirrored:
            image = cv2.flip(image, 1)
        turn = _TURNS[self.quarters]
        return image if turn is None else cv2.rotate(image, turn)

    @property
    def display_matrix(self) -> tuple[int, ...]:
        """In the form of FFmpeg and MP4."""
        (across_x, down_x), (across_y, down_y) = (self._matrix() * 65536).tolist()
        return across_x, across_y, 0, down_x, down_y, 0, 0, 0, 1 << 30

    def after(self, quarters: int) -> Orientation:
        """The rest, for a picture already rotated clockwise by this many quarters."""
        back = quarters if self.is_mirrored else -quarters
        return Orientation((self.quarters + back) % 4, self.is_mirrored)

    def _matrix(self) -> np.ndarray:
        """Columns: the directions, in the displayed picture, of a step to the right and a step
        down."""
        turned = np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), self.quarters)
        return turned @ np.diag([-1 if self.is_mirrored else 1, 1])


_ALL = [
    Orientation(quarters, mirrored)
    for mirrored, quarters in itertools.product((False, True), range(4))
]


def side_data(frame: av.VideoFrame, kind: Type) -> bytes | None:
    """A frame's side data of one kind; None if it has none."""
    all_kinds: Any = frame.side_data  # PyAV's type allows only one kind
    data = all_kinds.get(kind)
    return None if data is None else bytes(data)


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """A decoded frame's orientation, from its file's display matrix or its own.

    A matrix that rotates by anything but quarters is replaced by the nearest of the eight.
    """
    raw = side_data(frame, Type.DISPLAYMATRIX)
    if raw is None or len(raw) < _MATRIX.size:
        return Orientation()
    found = _MATRIX.unpack(raw[: _MATRIX.size])
    given = np.array(
        [[found[_ACROSS_X], found[_DOWN_X]], [found[_ACROSS_Y], found[_DOWN_Y]]], np.float64
    )
    length = np.linalg.norm(given)
    if not length:
        return Orientation()
    # Half a degree, so that a rotation by 45 degrees gives the same result on every machine.
    likeness = [round(float((given * one._matrix()).sum() / length), 2) for one in _ALL]
    return _ALL[int(np.argmax(likeness))]
