"""Frames read again from the file equal those of the scan."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from clipmill.stages.media.read import seek
from clipmill.stages.protocol import Middle, PerSecond, Uniform
from tests.media import SHARED_VIDEOS, cached
from tests.scanning import run


def pixels(frame: dict) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(frame["jpeg"], np.uint8), cv2.IMREAD_COLOR).astype(int)


def read_again(path, spans, short_side, quality):
    """The frames of each span, and how many were decoded for them."""
    frames = []
    reading = seek.read_frames(path, spans, short_side, quality)
    while True:
        try:
            frames.append(next(reading))
        except StopIteration as end:
            wanted, decoded = end.value
            return seek.by_span(frames, wanted), decoded


@pytest.mark.parametrize("reader", ["decord", "pyav"])
@pytest.mark.parametrize(
    "kind", [{}, {"rotation": 90}, {"start_seconds": 1.5}, {"uneven": True}, {"keyframes": 10}],
    ids=["plain", "turned", "late start", "uneven", "many key frames"],
)  # fmt: skip
def test_reread_frames_equal_the_kept_ones(kind, reader, tmp_path, monkeypatch):
    path, times = cached(**kind)
    kept = {frame["frame_number"]: frame for frame in run(path, tmp_path)["frames"]}
    if reader == "pyav":
        monkeypatch.setattr(seek.FrameReader, "_decord", lambda self, numbers: iter(()))
    begin, end = times[0], times[-1] + 0.04
    spans = [(begin + 2.1, begin + 3.5, [Uniform(4), Middle()]), (begin, end, [PerSecond(2)])]

    found, decoded = read_again(path, spans, short_side=384, quality=90)

    assert len(found[0]) in (4, 5)
    assert all(begin + 2.1 <= frame["seconds"] < begin + 3.5 for frame in found[0])
    again = [frame for frames in found for frame in frames if frame["frame_number"] in kept]
    assert again
    for frame in again:
        assert frame["seconds"] == kept[frame["frame_number"]]["seconds"]
        assert np.abs(pixels(frame) - pixels(kept[frame["frame_number"]])).mean() < 3
    assert len(times) // 2 < decoded <= len(times) + 1


def test_only_the_frames_from_the_key_frame_on_are_counted():
    path, times = cached(keyframes=10)

    found, decoded = read_again(
        path, [(times[55], times[58], [Middle()])], short_side=64, quality=80
    )

    assert [frame["frame_number"] for frame in found[0]] == [56]
    # One frame for the rotation, then from the key frame 50 to 56.
    assert decoded == 8


def test_pyav_reads_what_decord_cannot():
    path = SHARED_VIDEOS / "llama_drama_30s_vfr.webm"
    if not path.exists():
        pytest.skip("real footage is not next to this checkout")

    found, decoded = read_again(path, [(10.0, 12.0, [Uniform(4)])], short_side=90, quality=80)

    assert len(found[0]) == 4
    assert decoded > 4


def test_span_outside_the_video_gives_no_frames():
    path, _ = cached()

    assert read_again(path, [(50, 60, [Middle()])], short_side=64, quality=80)[0] == [[]]
