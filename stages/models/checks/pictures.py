"""The picture that checks push through a model's preparation."""

from __future__ import annotations

import functools

WIDTH, HEIGHT = 320, 240


@functools.cache
def example_jpeg(*, turned: bool = False) -> bytes:
    """A JPEG of a disc on a gradient, which may be turned round."""
    import cv2
    import numpy as np

    across = np.linspace(0, 255, WIDTH, dtype=np.uint8)
    picture = np.stack([np.tile(across, (HEIGHT, 1))] * 3, axis=-1)
    cv2.circle(picture, (WIDTH // 2, HEIGHT // 2), HEIGHT // 4, (40, 80, 220), -1)
    if turned:
        picture = picture[::-1, ::-1]
    encoded: bytes = cv2.imencode(".jpg", picture)[1].tobytes()
    return encoded
