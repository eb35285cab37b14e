"""Frames of real films, as kept frames: JPEG with 384 pixels on the short side."""

from __future__ import annotations

import functools

import pytest

from clipmill.schemas.tables import FRAME
from tests.media import SHARED_VIDEOS

SHORT_SIDE = 384
FILMS = {
    "flower_bloom.mp4": 2.0,
    "googlework_short_35s.mp4": 26.0,
    "nasa_13013_17s.mp4": 5.0,
    "sam2_coffee_pour.mp4": 2.0,
    "slides_talk_123s.mp4": 40.0,
    "tears_of_steel_room_17s_vp9.webm": 3.4,
}


@functools.cache
def film_frame(name: str, seconds: float) -> bytes:
    """The keyframe at or before a time; the test is skipped where the films are absent."""
    import av
    import cv2

    path = SHARED_VIDEOS / name
    if not path.is_file():
        pytest.skip(f"the film isn't here: {path}")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.skip_frame = "NONKEY"
        container.seek(int(seconds * 1_000_000))
        picture = next(container.decode(stream)).to_ndarray(format="bgr24")
    factor = SHORT_SIDE / min(picture.shape[:2])
    if factor < 1:
        picture = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])


def clips_of(**jpegs: list[bytes] | None):
    """Input rows of a stage that reads frames, half a second apart."""
    import pyarrow as pa

    frames = [
        None
        if clip is None
        else [{"frame_number": i, "seconds": i / 2, "jpeg": jpeg} for i, jpeg in enumerate(clip)]
        for clip in jpegs.values()
    ]
    return pa.table({"clip_id": list(jpegs), "frames": pa.array(frames, pa.list_(FRAME))})
