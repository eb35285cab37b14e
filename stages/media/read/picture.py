"""One decoded frame, as the decode pass hands it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clipmill.stages.media.read.planes import Parts, StoredLuma


@dataclass(frozen=True)
class Picture:
    """One decoded frame. `small` is BGR; `full` makes the kept frame of a given size.

    The kept frame is upright BGR with ordinary dynamic range; `small` has the file's own pixel
    values. A lean scan has `luma`, `chroma` and `tiny` instead of `small` (see `planes`), and one
    for signals has them too; each is made when it is first used.
    """

    number: int
    seconds: float
    position_microseconds: int
    duration_seconds: float
    small: np.ndarray | None
    full: Callable[[tuple[int, int]], np.ndarray]
    held_bytes: int
    parts: Parts | None = None

    @property
    def luma(self) -> np.ndarray:
        """Luma with a long side of 256 pixels, [h, w]."""
        return self._parts.luma

    @property
    def chroma(self) -> tuple[np.ndarray, np.ndarray]:
        """U and V at half the size of `luma`, centred at 128."""
        return self._parts.chroma

    @property
    def tiny(self) -> np.ndarray:
        """RGB [27, 48, 3], stretched to that size."""
        return self._parts.tiny

    @property
    def full_luma(self) -> StoredLuma | None:
        """The stored luma plane in full size; None of a pixel format without one."""
        return self._parts.full_luma

    @property
    def _parts(self) -> Parts:
        assert self.parts is not None, "only lean scans and signals make parts of pictures"
        return self.parts
