"""Small images from the decoder's planes, for every layout, range, orientation and size."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from clipmill.stages.media.read.framing import Framing
from clipmill.stages.media.read.orientation import Orientation
from clipmill.stages.media.read.planes import ImageParts, Parts, PlaneImages

PLANAR = "yuv420p yuv422p yuv444p yuv410p yuv411p yuv440p yuva420p yuv420p10le yuv444p12le"
INTERLEAVED = "nv12 nv21 nv16 nv24"
CONVERTED = "p010le yuv420p10be rgb24 bgra gbrp yuyv422 uyvy422"


def image_of(size: tuple[int, int] = (640, 480)) -> np.ndarray:
    """A smooth colour gradient with black, white and blue areas, BGR."""
    width, height = size
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = np.dstack([across, down, 255 - across]).astype(np.uint8)
    image[: height // 4, : width // 4] = 0
    image[height // 2 :, width // 2 :] = 255
    image[-height // 4 :, : width // 4] = (255, 0, 0)
    return image


def close(found: Parts, expected: Parts, least: float) -> None:
    pairs = zip(
        (found.luma, *found.chroma, found.tiny),
        (expected.luma, *expected.chroma, expected.tiny),
        strict=True,
    )
    for one, other in pairs:
        assert one.shape == other.shape
        assert one.dtype == np.uint8
        assert np.abs(one.astype(int) - other).mean() < least


def parts_of(frame: av.VideoFrame, orientation=Orientation(), framing=Framing()) -> Parts:  # noqa: B008  immutable
    shown = orientation.shown(*framing.size(frame.width, frame.height))
    return PlaneImages(shown, orientation, framing)(frame)


@pytest.mark.parametrize("pixels", f"{PLANAR} {INTERLEAVED} {CONVERTED}".split())
@pytest.mark.parametrize("is_full", [False, True])
def test_each_pixel_format_gives_the_same_images(pixels, is_full):
    image = image_of()
    frame = av.VideoFrame.from_ndarray(image, "bgr24").reformat(
        format=pixels, dst_color_range="JPEG" if is_full else "MPEG"
    )
    if is_full and not frame.format.is_rgb:
        frame.color_range = 2
    close(parts_of(frame), ImageParts(image), 2.0)
    assert parts_of(frame).tiny.shape == (27, 48, 3)


@pytest.mark.parametrize("pixels", ["gray", "gray10le", "yuvj420p"])
def test_grey_and_full_range_formats_use_the_whole_range(pixels):
    grey = np.repeat(np.linspace(0, 255, 320).astype(np.uint8)[None], 240, axis=0)
    frame = av.VideoFrame.from_ndarray(np.dstack([grey] * 3), "bgr24").reformat(format=pixels)
    parts = parts_of(frame)
    close(parts, ImageParts(np.dstack([grey] * 3)), 2.5)
    assert all(abs(int(plane.mean()) - 128) <= 1 for plane in parts.chroma)


def test_palette_gives_its_colours():
    image = image_of((64, 48))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="gif") as output:
        stream = output.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8"
        frame = av.VideoFrame.from_ndarray(image, "bgr24").reformat(format="rgb8")
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as container:
        found = next(container.decode(video=0))
        close(parts_of(found), ImageParts(image), 20)
        assert parts_of(found).luma.shape == (48, 64)


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_images_are_upright_and_cropped(quarters, is_mirrored):
    orientation = Orientation(quarters, is_mirrored)
    framing = Framing(left=64, right=32, top=16, bottom=48, pixel_aspect=Fraction(1))
    image = image_of()
    for pixels in ("yuv420p", "nv12", "rgb24"):
        frame = av.VideoFrame.from_ndarray(image, "bgr24").reformat(format=pixels)
        shown = orientation.upright(np.ascontiguousarray(framing.cropped(image)))
        close(parts_of(frame, orientation, framing), ImageParts(shown), 4.0)


def test_pixels_become_square():
    image = image_of((720, 576))
    frame = av.VideoFrame.from_ndarray(image, "bgr24").reformat(format="yuv420p")
    parts = parts_of(frame, framing=Framing(pixel_aspect=Fraction(16, 11)))
    close(parts, ImageParts(cv2.resize(image, (1047, 576))), 4.0)


def test_frames_unlike_the_first_give_images_of_the_first_ones_size():
    images = PlaneImages((1280, 720), Orientation(), Framing())
    for size in ((640, 360), (720, 1280), (1920, 1080), (64, 36), (1279, 719)):
        for pixels in ("yuv420p", "yuv444p10le", "rgb24"):
            frame = av.VideoFrame.from_ndarray(image_of(size), "bgr24").reformat(format=pixels)
            parts = images(frame)
            assert parts.luma.shape == (144, 256)
            assert [plane.shape for plane in parts.chroma] == [(72, 128), (72, 128)]
            assert parts.tiny.shape == (27, 48, 3)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 2), (254, 1000)])
def test_odd_sizes_work(size):
    frame = av.VideoFrame.from_ndarray(image_of((max(4, size[0]), max(4, size[1]))), "bgr24")
    for pixels in ("yuv420p", "rgb24"):
        parts = parts_of(frame.reformat(*size, format=pixels))
        assert parts.luma.ndim == 2
        assert parts.tiny.shape == (27, 48, 3)


@pytest.mark.parametrize("pixels", ["yuv420p", "nv12", "yuv420p10le", "yuvj420p"])
def test_full_luma_is_upright_and_cropped_with_the_files_own_codes(pixels):
    orientation = Orientation(1, is_mirrored=True)
    framing = Framing(left=64, right=32, top=16, bottom=48, pixel_aspect=Fraction(1))
    image = image_of()
    frame = av.VideoFrame.from_ndarray(image, "bgr24").reformat(format=pixels)
    stored = parts_of(frame, orientation, framing).full_luma
    assert stored is not None
    shown = orientation.upright(np.ascontiguousarray(framing.cropped(image)))
    grey = cv2.cvtColor(shown, cv2.COLOR_BGR2GRAY).astype(float)
    assert stored.plane.shape == grey.shape
    assert stored.plane.dtype == np.uint8
    levels = stored.plane if stored.is_full_range else (stored.plane - 16.0) * 255 / 219
    assert np.abs(levels - grey).mean() < 1.5
    assert stored.is_full_range == (pixels == "yuvj420p")
    assert stored.code_of(16) == (0 if stored.is_full_range else 16)


def test_pictures_in_rgb_have_no_luma_in_full_size():
    frame = av.VideoFrame.from_ndarray(image_of(), "bgr24")
    assert parts_of(frame).full_luma is None
