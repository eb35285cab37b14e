"""Strips of kept frames for sample clips, as small JPEGs."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.catalog.kept_frames import ClipSpan, kept_frames
from clipmill.schemas.errors import RowFailed

if TYPE_CHECKING:
    import numpy as np

FRAMES = 3
FRAME_HEIGHT = 126
WIDEST_FRAME = 224
GAP = 2
STRIP_BYTES = 34_000
_QUALITIES = (76, 60, 45, 30, 15, 5)


@dataclass(frozen=True)
class Strip:
    """A few frames of a clip side by side."""

    data: str
    width: int
    height: int
    seconds: tuple[float, ...]
    """Times of the frames in the video."""


def make_strips(catalog: Catalog, spans: Iterable[ClipSpan]) -> dict[str, Strip]:
    """Strips by clip id, for the clips with readable kept frames."""
    strips: dict[str, Strip] = {}
    for clip_id, frames in kept_frames(catalog, spans, FRAMES):
        images = [
            (image, frame.seconds)
            for frame in frames
            if (image := _thumbnail(frame.jpeg)) is not None
        ]
        if images:
            strips[clip_id] = _encode([image for image, _ in images], tuple(at for _, at in images))
    return strips


def _thumbnail(jpeg: bytes) -> np.ndarray | None:
    from clipmill.stages.media.read.images import decode_jpeg, fit

    try:
        image = decode_jpeg(jpeg)
    except RowFailed:
        return None
    height, width = image.shape[:2]
    scaled = max(24, min(WIDEST_FRAME, round(FRAME_HEIGHT * width / height)))
    return fit(image, (FRAME_HEIGHT, scaled), "pad")


def _encode(images: list[np.ndarray], seconds: tuple[float, ...]) -> Strip:
    import numpy as np

    from clipmill.stages.media.read.images import encode_jpeg

    gap = np.full((FRAME_HEIGHT, GAP, 3), 255, np.uint8)
    parts = [part for image in images for part in (gap, image)][1:]
    strip = np.ascontiguousarray(np.concatenate(parts, axis=1)[:, :, ::-1])
    data = b""
    for quality in _QUALITIES:
        data = encode_jpeg(strip, quality)
        if len(data) <= STRIP_BYTES:
            break
    return Strip(base64.b64encode(data).decode("ascii"), strip.shape[1], strip.shape[0], seconds)
