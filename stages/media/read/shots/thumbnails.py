"""Stores thumbnails of 48x27 pixels as JPEG, several in one image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

HEIGHT, WIDTH = 27, 48

# JPEG works on blocks of 8 pixels: without lines between them, thumbnails would blur each other.
_PADDED = 32
_QUALITY = 85
PER_IMAGE = 16


def packed(thumbnails: Sequence[np.ndarray]) -> bytes:
    """RGB thumbnails, one below the other, as a JPEG image."""
    stack = np.stack(thumbnails)
    rows = np.minimum(np.arange(_PADDED), HEIGHT - 1)
    column = stack[:, rows, :, ::-1].reshape(-1, WIDTH, 3)
    parameters = [
        cv2.IMWRITE_JPEG_QUALITY,
        _QUALITY,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(column), parameters)
    return data.tobytes()


def unpacked(data: bytes) -> np.ndarray:
    """The RGB thumbnails of an image made by `packed`: [count, 27, 48, 3]."""
    column = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if column is None or column.shape[1] != WIDTH or column.shape[0] % _PADDED:
        raise ValueError("stored thumbnails are damaged; run the scan again")
    return column.reshape(-1, _PADDED, WIDTH, 3)[:, :HEIGHT, :, ::-1]


def by_number(stored: Iterable[Mapping[str, Any]]) -> dict[int, np.ndarray]:
    """Thumbnails by frame number, from the column of a scan."""
    found: dict[int, np.ndarray] = {}
    for image in stored:
        found.update(zip(image["frame_numbers"], unpacked(image["jpeg"]), strict=True))
    return found
