"""Strips of kept frames for sample clips, as small JPEGs."""

from __future__ import annotations

import base64
from collections.abc import Container, Iterable
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
ONE_FRAME_BYTES = 11_000
_QUALITIES = (76, 60, 45, 30, 15, 5)
# What is veiled has this many squares from top to bottom.
_SQUARES = 9


@dataclass(frozen=True)
class Strip:
    """A few frames of a clip side by side."""

    data: str
    width: int
    height: int
    seconds: tuple[float, ...]
    """Times of the frames in the video."""


def make_strips(
    catalog: Catalog, spans: Iterable[ClipSpan], *, count: int = FRAMES, veiled: Container[str] = ()
) -> dict[str, Strip]:
    """Strips of `count` frames by clip id, for the clips with readable kept frames.

    Those of `veiled` clips are a few squares.
    """
    strips: dict[str, Strip] = {}
    most = STRIP_BYTES if count > 1 else ONE_FRAME_BYTES
    for clip_id, frames in kept_frames(catalog, spans, count):
        images = [
            (_veiled(image) if clip_id in veiled else image, frame.seconds)
            for frame in frames
            if (image := _thumbnail(frame.jpeg)) is not None
        ]
        if images:
            times = tuple(at for _, at in images)
            strips[clip_id] = _encode([image for image, _ in images], times, most)
    return strips


def _veiled(image: np.ndarray) -> np.ndarray:
    import cv2

    height, width = image.shape[:2]
    few = cv2.resize(
        image, (max(1, _SQUARES * width // height), _SQUARES), interpolation=cv2.INTER_AREA
    )
    return cv2.resize(few, (width, height), interpolation=cv2.INTER_NEAREST)


def _thumbnail(jpeg: bytes) -> np.ndarray | None:
    from clipmill.stages.media.read.images import decode_jpeg, fit

    try:
        image = decode_jpeg(jpeg)
    except RowFailed:
        return None
    height, width = image.shape[:2]
    scaled = max(24, min(WIDEST_FRAME, round(FRAME_HEIGHT * width / height)))
    return fit(image, (FRAME_HEIGHT, scaled), "pad")


def _encode(images: list[np.ndarray], seconds: tuple[float, ...], most: int) -> Strip:
    import numpy as np

    from clipmill.stages.media.read.images import encode_jpeg

    gap = np.full((FRAME_HEIGHT, GAP, 3), 255, np.uint8)
    parts = [part for image in images for part in (gap, image)][1:]
    strip = np.ascontiguousarray(np.concatenate(parts, axis=1)[:, :, ::-1])
    data = b""
    for quality in _QUALITIES:
        data = encode_jpeg(strip, quality)
        if len(data) <= most:
            break
    return Strip(base64.b64encode(data).decode("ascii"), strip.shape[1], strip.shape[0], seconds)
