"""Small images for statistics, if frames change midway."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pytest

from clipmill.stages.media.read.scaling import SmallImages, small_size
from tests.faults.corpus import remuxed, rendered
from tests.faults.corpus_odd import moved
from tests.scanning import run


def frame_of(size: tuple[int, int], pixels: str, seed: int) -> av.VideoFrame:
    """Smooth enough for its chroma to be meaningful."""
    noise = np.random.default_rng(seed).integers(0, 255, (9, 16, 3), np.uint8)
    image = cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    return av.VideoFrame.from_ndarray(image, "bgr24").reformat(format=pixels)


def converted_whole(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    image = frame.reformat(format="bgr24", interpolation="BICUBIC").to_ndarray()
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize("first", [(768, 432), (1280, 720), (3840, 2160)])
def test_frame_unlike_the_first_is_converted_completely(first):
    """Larger, rotated, a little smaller, or of another format."""
    small = SmallImages(frame_of(first, "yuv420p", 0))
    width, height = first
    others = [
        (width // 2, height // 2),
        (width + 256, height + 144),
        (height, width),
        (width - 4, height),
        (width, height + 2),
        (width - 1, height - 1),
        (64, 36),
        first,
    ]
    for number, size in enumerate(others):
        for pixels in ("yuv420p", "yuv444p") if size == first else ("yuv420p",):
            frame = frame_of(size, pixels, number)
            image = small(frame)
            assert image.shape == (*small_size(*first)[::-1], 3)
            assert np.array_equal(image, converted_whole(frame, small_size(*first))), (size, pixels)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((768, 432), (384, 216)),
        ((384, 216), (768, 432)),
        ((1280, 720), (640, 360)),
        ((768, 432), (432, 768)),
    ],
)
def test_video_whose_size_changes_keeps_its_frames_and_cuts(first, second, tmp_path):
    """As in exact mode; its size is that of its first frame."""
    film = tmp_path / "film.ts"
    film.write_bytes(
        rendered(".ts", 66, size=first)
        + remuxed(rendered(".ts", 67, size=second), ".ts", moved(2.0))
    )
    fast, exact = (run(film, tmp_path, exact=exact) for exact in (False, True))
    (scan,) = fast["scan_videos"]
    assert scan["error"] is None
    assert (scan["width"], scan["height"], scan["source_frames"]) == (*first, 100)
    spans = [
        [(clip["start_seconds"], clip["end_seconds"]) for clip in found["split_clips"]]
        for found in (fast, exact)
    ]
    assert spans[0] == spans[1]
    assert len(spans[0]) == 4
    shapes = {
        cv2.imdecode(np.frombuffer(frame["jpeg"], np.uint8), cv2.IMREAD_COLOR).shape
        for frame in fast["frames"]
    }
    assert len(shapes) == 1
