"""hash_frames: perceptual hashes of evenly spread frames of each clip, for finding copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill.schemas.errors import RowFailed
from clipmill.schemas.tables import clip_table
from clipmill.stages.protocol import FramePick, Rows, Stage, Transform, Uniform, Workspace

FRAME_HASHES = clip_table(
    # 64-bit perceptual hashes in time order; null for a frame that shows nothing.
    ("frame_hashes", pa.list_(pa.uint64())),
    ("frame_hashes_reason", pa.string()),
)

HASH_BITS = 64
_SIDE = 32


def _lowest_frequencies() -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the HASH_BITS lowest frequencies after the constant one, by diagonals."""
    order = sorted(
        ((y, x) for y in range(_SIDE) for x in range(_SIDE)), key=lambda at: (at[0] + at[1], at[0])
    )
    rows, columns = zip(*order[1 : HASH_BITS + 1], strict=True)
    return np.array(rows), np.array(columns)


_ROWS, _COLUMNS = _lowest_frequencies()


class HashFrames(Stage):
    """64-bit hashes of frames at the middles of equal parts of the clip, in time order.

    A frame in grey, averaged to 32 × 32, is transformed to frequencies (DCT); the hash says which
    of the 64 lowest, except for the constant one, are above their median. Another encoder, size or
    brightness changes few bits; unrelated frames differ in about 32. A flat
    frame, black or of one colour, shows nothing to compare: its bits would be noise,
    or alike for all black frames, so it has null instead of a hash. `subset` recipes compare
    the hashes with `deduplicate: {by: frames}`.
    """

    name: ClassVar[str] = "hash_frames"
    writes: ClassVar[pa.Schema] = FRAME_HASHES
    robust: ClassVar[bool] = True

    frames_per_clip: int = Field(4, ge=1, le=64, description="frames to hash per clip")
    min_contrast: float = Field(
        4.0,
        ge=0,
        description="grey levels of 0–255: a frame whose 32 × 32 averages have a lower "
        "standard deviation counts as flat and gets no hash",
    )

    def frames_picked(self) -> tuple[FramePick, ...]:
        return (Uniform(self.frames_per_clip),)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        def transform(batch: pa.Table) -> pa.Table:
            rows = Rows(self)
            for row in batch.to_pylist():
                try:
                    self._hash(row, rows)
                except RowFailed as failed:
                    rows.record(row["clip_id"], failed)
            return rows.table()

        yield transform

    def _hash(self, row: dict[str, Any], rows: Rows) -> None:
        if not row["frames"]:
            raise RowFailed("bad_media", "no frame of this clip can be read")
        hashes = [perceptual_hash(frame["jpeg"], self.min_contrast) for frame in row["frames"]]
        reason = None
        if all(found is None for found in hashes):
            what = "its only frame is" if len(hashes) == 1 else f"all {len(hashes)} frames are"
            reason = f"{what} flat: nothing to compare"
        rows.keep(
            row["clip_id"], frame_hashes=None if reason else hashes, frame_hashes_reason=reason
        )


def perceptual_hash(jpeg: bytes, min_contrast: float) -> int | None:
    """The hash of an image, None if it is flat; RowFailed `bad_media` if it can't be decoded."""
    import cv2

    # Half of the size is read straight from the JPEG's coefficients.
    grey = (
        cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_2)
        if jpeg
        else None
    )
    if grey is None:
        raise RowFailed("bad_media", f"a kept frame of {len(jpeg or b'')} bytes cannot be decoded")
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.std() < min_contrast:
        return None
    lowest = cv2.dct(small)[_ROWS, _COLUMNS]
    bits = lowest > np.median(lowest)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
