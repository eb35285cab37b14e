"""Small images of a decoded frame, made from the decoder's own planes without converting them.

They are upright, cropped to what is shown, with square pixels, 8 bits and full range, whatever
the file stores. High dynamic range keeps its own code values: these images compare pictures of one
video with each other.

A size is reached by sampling, as in the small images for PySceneDetect: averaging all pixels of a
large frame would cost as much as decoding it.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Protocol

import av
import av.video.plane
import av.video.reformatter
import cv2
import numpy as np

from clipmill.stages.media.read.framing import Cropper, Framing
from clipmill.stages.media.read.orientation import Orientation
from clipmill.stages.media.read.scaling import small_size

TINY_SIZE = (48, 27)
"""Width and height of the tiny image."""

_GREY = 128
_PLANAR = re.compile(r"yuv(?P<kind>[aj]?)4\d\dp(?P<depth>\d+le)?")
_INTERLEAVED = {"nv12": 1, "nv21": -1, "nv16": 1, "nv24": 1, "nv42": -1}  # order of U and V
_FULL_RANGE = 2  # FFmpeg's number
# Weights of red and blue in luma, by FFmpeg's number of a matrix; others are taken for BT.601.
_WEIGHTS = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
_BT601 = (0.299, 0.114)


@dataclass(frozen=True)
class StoredLuma:
    """A picture's luma in its full size, upright, as 8 bits of the codes that the file stores."""

    plane: np.ndarray
    is_full_range: bool

    @property
    def levels_per_code(self) -> float:
        """Levels of full range, 0 to 255, per code."""
        return 1.0 if self.is_full_range else 255 / 219

    def code_of(self, limited: int) -> int:
        """The code of the same brightness as this one of limited range."""
        return round((limited - 16) * (255 / 219)) if self.is_full_range else limited


class Parts(Protocol):
    """The small images of one picture."""

    @property
    def luma(self) -> np.ndarray: ...

    @property
    def chroma(self) -> tuple[np.ndarray, np.ndarray]: ...

    @property
    def tiny(self) -> np.ndarray: ...

    @property
    def full_luma(self) -> StoredLuma | None: ...


@dataclass(frozen=True)
class _Layout:
    """Where a pixel format keeps its planes; `chroma_order` is 0 for separate planes."""

    depth: int
    is_full_range: bool
    chroma_order: int


@functools.cache
def _layout(name: str) -> _Layout | None:
    """The layout of a pixel format; None if it has to be converted."""
    if name in _INTERLEAVED:
        return _Layout(8, False, _INTERLEAVED[name])
    found = _PLANAR.fullmatch(name)
    if found is None:
        return None
    depth = int((found["depth"] or "8le").removesuffix("le"))
    return _Layout(depth, found["kind"] == "j", 0)


class PlaneImages:
    """Makes the small images of one video's frames; `size` is that of `luma` (width, height).

    `shown` is the video's displayed size. Frames of another size, if the video changes it, give
    images of the same size.
    """

    def __init__(self, shown: tuple[int, int], orientation: Orientation, framing: Framing) -> None:
        self.size = small_size(*shown)
        self._orientation = orientation
        self._framing = framing
        self._stored = orientation.shown(*self.size)
        self._stored_half = _half(self._stored)
        self._converter = av.video.reformatter.VideoReformatter()
        self._cropped = Cropper(framing)

    def __call__(self, frame: av.VideoFrame) -> PlaneParts:
        return PlaneParts(self, frame)

    def plain(self, frame: av.VideoFrame) -> tuple[av.VideoFrame, Framing]:
        """The frame, or a small copy of one in a rare pixel format, and what to crop from it."""
        if _layout(frame.format.name) is not None and frame.planes[0].line_size > 0:
            return frame, self._framing
        width, height = self._stored
        small = self._converter.reformat(
            self._cropped(frame),
            max(2, width),
            max(2, height),
            format="yuv420p",
            interpolation="AREA",
            src_color_range=int(frame.color_range) or None,
            dst_color_range="MPEG",
            threads=1,
        )
        small.color_range = 1
        return small, Framing()

    def full_luma(self, frame: av.VideoFrame) -> StoredLuma | None:
        """The luma plane as it is shown; None of a pixel format that has none."""
        layout = _layout(frame.format.name)
        if layout is None or frame.planes[0].line_size <= 0:
            return None
        plane = self._framing.cropped(_pixels(frame.planes[0], layout.depth))
        if layout.depth > 8:
            plane = np.right_shift(plane, layout.depth - 8).astype(np.uint8)
        return StoredLuma(self._orientation.upright(plane), _is_full_range(frame, layout))

    def luma(self, frame: av.VideoFrame, framing: Framing) -> np.ndarray:
        layout = _layout(frame.format.name)
        assert layout is not None
        plane = framing.cropped(_pixels(frame.planes[0], layout.depth))
        small = cv2.resize(plane, self._stored, interpolation=cv2.INTER_LINEAR)
        table = _luma_table(layout.depth, _is_full_range(frame, layout))
        return self._orientation.upright(_looked_up(small, table))

    def chroma(self, frame: av.VideoFrame, framing: Framing) -> tuple[np.ndarray, np.ndarray]:
        layout = _layout(frame.format.name)
        assert layout is not None
        table = _chroma_table(layout.depth, _is_full_range(frame, layout))
        planes = [
            cv2.resize(
                _cropped_chroma(plane, frame, framing),
                self._stored_half,
                interpolation=cv2.INTER_LINEAR,
            )
            for plane in _chroma_planes(frame, layout)
        ]
        if len(planes) == 1:
            planes = list(cv2.split(planes[0]))[:: layout.chroma_order]
        u, v = (self._orientation.upright(_looked_up(plane, table)) for plane in planes)
        return u, v


class PlaneParts:
    """The small images of one frame, each made when it is first used.

    `luma` is [h, w] with a long side of 256 pixels; `chroma` are U and V of half its size, with 128
    for no colour; `tiny` is RGB [27, 48, 3], stretched to that size. `full_luma` is not small.
    """

    def __init__(self, images: PlaneImages, frame: av.VideoFrame) -> None:
        self._images = images
        self._frame = frame

    @functools.cached_property
    def _plain(self) -> tuple[av.VideoFrame, Framing]:
        return self._images.plain(self._frame)

    @functools.cached_property
    def luma(self) -> np.ndarray:
        return self._images.luma(*self._plain)

    @functools.cached_property
    def chroma(self) -> tuple[np.ndarray, np.ndarray]:
        return self._images.chroma(*self._plain)

    @functools.cached_property
    def tiny(self) -> np.ndarray:
        weights = _WEIGHTS.get(int(self._frame.colorspace), _BT601)
        return _tiny(self.luma, self.chroma, weights)

    @property
    def full_luma(self) -> StoredLuma | None:
        return self._images.full_luma(self._frame)


class ImageParts:
    """The small images of a picture that is there as an upright BGR image of its displayed size."""

    def __init__(self, image: np.ndarray) -> None:
        self._image = image

    @functools.cached_property
    def _small(self) -> np.ndarray:
        size = small_size(self._image.shape[1], self._image.shape[0])
        return cv2.resize(self._image, size, interpolation=cv2.INTER_LINEAR)

    @functools.cached_property
    def luma(self) -> np.ndarray:
        return cv2.cvtColor(self._small, cv2.COLOR_BGR2GRAY)

    @functools.cached_property
    def chroma(self) -> tuple[np.ndarray, np.ndarray]:
        half = _half(self._small.shape[1::-1])
        image = cv2.resize(self._small, half, interpolation=cv2.INTER_AREA)
        _, red, blue = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2YCrCb))
        return blue, red

    @functools.cached_property
    def tiny(self) -> np.ndarray:
        return _tiny(self.luma, self.chroma, _BT601)

    @property
    def full_luma(self) -> StoredLuma:
        return StoredLuma(cv2.cvtColor(self._image, cv2.COLOR_BGR2GRAY), is_full_range=True)


def _half(size: tuple[int, ...]) -> tuple[int, int]:
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _pixels(plane: av.video.plane.VideoPlane, depth: int) -> np.ndarray:
    """A view of a plane, without line padding."""
    kind, size = (np.uint8, 1) if depth == 8 else (np.uint16, 2)
    shape, strides = (plane.height, plane.width), (plane.line_size, size)
    return np.ndarray(shape, kind, memoryview(plane), 0, strides)


def _chroma_planes(frame: av.VideoFrame, layout: _Layout) -> list[np.ndarray]:
    planes = frame.planes
    if not layout.chroma_order:
        return [_pixels(plane, layout.depth) for plane in planes[1:3]]
    both = planes[1]
    shape, strides = (both.height, both.width, 2), (both.line_size, 2, 1)
    return [np.ndarray(shape, np.uint8, memoryview(both), 0, strides)]


def _cropped_chroma(plane: np.ndarray, frame: av.VideoFrame, framing: Framing) -> np.ndarray:
    """The shown part of a chroma plane, which has fewer columns and rows than the frame."""
    if not framing.crops:
        return plane
    rows, columns = plane.shape[:2]
    return plane[
        framing.top * rows // frame.height : max(
            1, (frame.height - framing.bottom) * rows // frame.height
        ),
        framing.left * columns // frame.width : max(
            1, (frame.width - framing.right) * columns // frame.width
        ),
    ]


def _is_full_range(frame: av.VideoFrame, layout: _Layout) -> bool:
    return layout.is_full_range or int(frame.color_range) == _FULL_RANGE


@functools.cache
def _luma_table(depth: int, is_full_range: bool) -> np.ndarray | None:
    if is_full_range and depth == 8:
        return None
    codes = np.arange(1 << depth) / (1 << (depth - 8))
    values = codes if is_full_range else (codes - 16) * (255 / 219)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@functools.cache
def _chroma_table(depth: int, is_full_range: bool) -> np.ndarray | None:
    if is_full_range and depth == 8:
        return None
    codes = np.arange(1 << depth) / (1 << (depth - 8))
    values = codes if is_full_range else (codes - _GREY) * (255 / 224) + _GREY
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _looked_up(image: np.ndarray, table: np.ndarray | None) -> np.ndarray:
    if table is None:
        return image
    if image.dtype == np.uint8:
        return cv2.LUT(image, table)
    found: np.ndarray = table[np.minimum(image, len(table) - 1)]
    return found


def _tiny(
    luma: np.ndarray, chroma: tuple[np.ndarray, np.ndarray], weights: tuple[float, float]
) -> np.ndarray:
    planes = [_averaged(plane) for plane in (luma, *chroma)]
    return cv2.transform(cv2.merge(planes), _to_rgb(weights))


def _averaged(plane: np.ndarray) -> np.ndarray:
    """A plane in the tiny size: nearly the average of all its pixels, at a fifth of the cost."""
    height, width = plane.shape
    if width > 2 * TINY_SIZE[0] and height > 2 * TINY_SIZE[1]:
        half = width // 2, height // 2
        even = plane[: half[1] * 2, : half[0] * 2]
        plane = cv2.resize(even, half, interpolation=cv2.INTER_AREA)
    width, height = TINY_SIZE
    twice = cv2.resize(plane, (width * 2, height * 2), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(twice, TINY_SIZE, interpolation=cv2.INTER_AREA)


@functools.cache
def _to_rgb(weights: tuple[float, float]) -> np.ndarray:
    """From full-range Y, U and V to R, G and B, with the offset of U and V as fourth column."""
    red, blue = weights
    green = 1 - red - blue
    matrix = np.array(
        [
            [1, 0, 2 * (1 - red)],
            [1, -2 * (1 - blue) * blue / green, -2 * (1 - red) * red / green],
            [1, 2 * (1 - blue), 0],
        ]
    )
    return np.column_stack([matrix, -_GREY * matrix[:, 1:].sum(axis=1)])
