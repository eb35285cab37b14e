"""Boxes around what a detector found in frames, and what a clip's boxes add up to.

A picture's boxes are a float32 array of shape (n, 5): left, top, right and bottom as shares of the
picture, and the confidence, from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from clipmill.schemas.tables import BOX

NO_BOXES = np.empty((0, 5), np.float32)
_SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Counted:
    """The columns of a stage that counts things of one kind.

    `many` of them in the frame that has most, their mean over frames, the share of the picture that
    the largest covers, and all boxes in time order.
    """

    many: str
    one: str

    @property
    def fields(self) -> list[tuple[str, pa.DataType]]:
        return [
            (self.many, pa.int32()),
            (f"{self.many}_mean", pa.float32()),
            (f"{self.one}_area", pa.float32()),
            (f"{self.one}_boxes", pa.list_(BOX)),
        ]

    def columns(
        self, frames: Sequence[Mapping[str, Any]], found: Sequence[np.ndarray]
    ) -> dict[str, Any]:
        """The columns of a clip, from the boxes of each of its frames."""
        counts = [len(boxes) for boxes in found]
        inside = [np.column_stack([boxes[:, :4].clip(0, 1), boxes[:, 4]]) for boxes in found]
        areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in inside]
        return {
            self.many: max(counts),
            f"{self.many}_mean": float(np.mean(counts)),
            f"{self.one}_area": max(
                (float(area.max()) for area in areas if len(area)), default=0.0
            ),
            f"{self.one}_boxes": [
                {
                    "seconds": frame["seconds"],
                    **dict(zip(_SIDES, map(float, sides), strict=True)),
                    "confidence": float(confidence),
                }
                for frame, boxes in zip(frames, inside, strict=True)
                for *sides, confidence in boxes
            ],
        }
