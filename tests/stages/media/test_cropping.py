"""Clips may keep a part of the picture: exactly its pixels, and nothing outside it."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from clipmill.stages.media.cutting.cut import cut_clips
from clipmill.stages.media.cutting.requests import CutOptions, CutRequest, CutResult, Rectangle
from tests.stages.media.test_orientation import HEADERS, ffmpeg, headed, shown

WIDTH, HEIGHT, BAR = 192, 160, 26
PICTURE = HEIGHT - 2 * BAR
FRAMES = 5
LOSSLESS = CutOptions("exact", crf=0)
LETTERBOX = Rectangle(0.0, BAR / HEIGHT, 1.0, 1 - BAR / HEIGHT)


@pytest.fixture(scope="module")
def letterboxed(tmp_path_factory) -> Path:
    """A moving picture without any black, between black bars; stored without loss."""
    path = tmp_path_factory.mktemp("cropping") / "letterboxed.mp4"
    picture = f"testsrc2=size={WIDTH}x{PICTURE}:rate=10,lutyuv=y='clip(val,90,235)'"
    bars = f"pad={WIDTH}:{HEIGHT}:0:{BAR}:black"
    ffmpeg(
        "-f", "lavfi", "-i", f"{picture},format=yuv420p,{bars}", "-frames:v", str(FRAMES),
        "-c:v", "libx264", "-qp", "0", path,
    )  # fmt: skip
    return path


def planes(path: Path) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Each picture's planes as stored."""
    found = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            whole = frame.reformat(format="yuv420p").to_ndarray()
            rest = whole[frame.height :].reshape(2, frame.height // 2, frame.width // 2)
            found.append((whole[: frame.height], rest[0], rest[1]))
    return found


def cut(path: Path, crop: Rectangle | None, folder: Path, options=LOSSLESS) -> CutResult:
    request = CutRequest("c", 0.0, FRAMES / 10, folder / "c.mp4", crop)
    [result] = cut_clips(path, [request], options)
    return result


def test_pixels_inside_are_the_sources_and_no_bar_is_left(letterboxed, tmp_path):
    result = cut(letterboxed, LETTERBOX, tmp_path)
    assert result.problem is None
    assert (result.width, result.height) == (WIDTH, PICTURE)
    assert result.crop == LETTERBOX
    sources, clips = planes(letterboxed), planes(result.path)
    assert len(sources) == len(clips) == FRAMES
    for source, clip in zip(sources, clips, strict=True):
        for whole, part, share in zip(source, clip, (1, 2, 2), strict=True):
            assert np.array_equal(part, whole[BAR // share : (BAR + PICTURE) // share])
        assert clip[0].min() > 60
        assert source[0][:BAR].max() < 20


@pytest.mark.parametrize(
    ("crop", "box"),
    [
        # Edges between pixels, and at odd ones, move inwards to even pixels.
        (Rectangle(3 / WIDTH, 27 / HEIGHT, 101 / WIDTH, 131 / HEIGHT), (4, 28, 100, 130)),
        (Rectangle(0.1, 0.2, 0.9, 0.8), (20, 32, 172, 128)),
        # Rounded to 32 bits.
        (Rectangle(0.0, float(np.float32(BAR / HEIGHT)), 1.0, 0.8375), (0, BAR, WIDTH, 134)),
        (Rectangle(0.5, 0.0, 1.0, 1.0), (96, 0, WIDTH, HEIGHT)),
    ],
)
def test_edges_are_rounded_inwards(crop, box, letterboxed, tmp_path):
    result = cut(letterboxed, crop, tmp_path)
    left, top, right, bottom = box
    assert (result.width, result.height) == (right - left, bottom - top)
    assert result.crop == Rectangle(left / WIDTH, top / HEIGHT, right / WIDTH, bottom / HEIGHT)
    for source, clip in zip(planes(letterboxed), planes(result.path), strict=True):
        for whole, part, share in zip(source, clip, (1, 2, 2), strict=True):
            expected = whole[top // share : bottom // share, left // share : right // share]
            assert np.array_equal(part, expected)


@pytest.mark.parametrize("name", HEADERS)
def test_rectangle_refers_to_the_picture_as_displayed(name, letterboxed, tmp_path):
    path = headed(letterboxed, HEADERS[name][0], tmp_path / "turned.mp4")
    whole = shown(path)
    height, width = whole.shape[:2]
    crop = Rectangle(16 / width, 40 / height, 1 - 30 / width, 1 - 52 / height)
    result = cut(path, crop, tmp_path)
    assert result.problem is None
    assert (result.width, result.height) == (width - 46, height - 92)
    for side in ("left", "top", "right", "bottom"):
        assert getattr(result.crop, side) == pytest.approx(getattr(crop, side))
    expected = whole[40 : height - 52, 16 : width - 30]
    found = shown(result.path)
    assert found.shape == expected.shape
    # Colours are interpolated differently where the picture ends.
    inside = np.abs(found.astype(int) - expected.astype(int))[4:-4, 4:-4]
    assert inside.max() <= 12, inside.max()
    assert inside.mean() < 1


def test_shape_of_pixels_is_kept(letterboxed, tmp_path):
    wide = tmp_path / "wide.mp4"
    ffmpeg("-i", letterboxed, "-c", "copy", "-aspect", "16:10", wide)
    result = cut(wide, LETTERBOX, tmp_path)
    with av.open(str(wide)) as before, av.open(str(result.path)) as after:
        one, other = before.streams.video[0], after.streams.video[0]
        assert one.sample_aspect_ratio == other.sample_aspect_ratio != 1
    assert result.width == round(WIDTH * 4 / 3)
    assert result.height == PICTURE


def test_clips_of_one_pass_may_keep_different_parts(letterboxed, tmp_path):
    crops = {
        "whole": None,
        "bars off": LETTERBOX,
        "too little": Rectangle(0.4, 0.4, 0.47, 0.6),
        "corner": Rectangle(0.5, 0.5, 1.0, 1.0),
    }
    requests = [
        CutRequest(name, 0.0, FRAMES / 10, tmp_path / f"{name}.mp4", crop)
        for name, crop in crops.items()
    ]
    results = {result.clip_id: result for result in cut_clips(letterboxed, requests, LOSSLESS)}
    sizes = {name: (one.width, one.height) for name, one in results.items() if one.path}
    assert sizes == {
        "whole": (WIDTH, HEIGHT),
        "bars off": (WIDTH, PICTURE),
        "corner": (WIDTH // 2, HEIGHT // 2),
    }
    assert results["whole"].crop is None
    problem = results["too little"].problem
    assert problem.kind == "permanent"
    assert problem.message == ("the safe rectangle leaves 12 × 32 pixels, fewer than 16 on a side")
    assert not (tmp_path / "too little.mp4").exists()


def test_short_side_applies_to_what_is_left(letterboxed, tmp_path):
    result = cut(letterboxed, LETTERBOX, tmp_path, CutOptions("exact", short_side=54))
    assert (result.width, result.height) == (96, 54)
    assert planes(result.path)[0][0].min() > 60
