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

    def planes(self, frame: av.VideoFrame) -> _Planes:
        """Views of the shown part of the frame, or of a small copy if its format is a rare one."""
        layout, framing, planes = _layout(frame.format.name), self._framing, frame.planes
        is_converted = layout is None or planes[0].line_size <= 0
        if is_converted:
            frame, framing = self._converted(frame), Framing()
            layout, planes = _layout("yuv420p"), frame.planes
        assert layout is not None
        is_full_range = layout.is_full_range or int(frame.color_range) == _FULL_RANGE
        chroma = (
            [_pixels(planes[1], layout, 2)]
            if layout.chroma_order
            else [_pixels(plane, layout) for plane in planes[1:3]]
        )
        return _Planes(
            layout.depth,
            is_full_range,
            is_converted,
            framing.cropped(_pixels(planes[0], layout)),
            [_cropped_chroma(plane, frame, framing) for plane in chroma],
            layout.chroma_order,
            _table(layout.depth, is_full_range, 16, 219, 0),
            _table(layout.depth, is_full_range, _GREY, 224, _GREY),
        )

    def _converted(self, frame: av.VideoFrame) -> av.VideoFrame:
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
        return small

    def full_luma(self, planes: _Planes) -> StoredLuma | None:
        """The luma plane as it is shown; None of a pixel format that has none."""
        if planes.is_converted:
            return None
        plane = planes.luma
        if plane.dtype != np.uint8:
            plane = np.right_shift(plane, planes.depth - 8).astype(np.uint8)
        return StoredLuma(self._orientation.upright(plane), planes.is_full_range)

    def luma(self, planes: _Planes) -> np.ndarray:
        small = cv2.resize(planes.luma, self._stored, interpolation=cv2.INTER_LINEAR)
        return self._orientation.upright(_looked_up(small, planes.luma_table))

    def chroma(self, planes: _Planes) -> tuple[np.ndarray, np.ndarray]:
        found = [
            cv2.resize(plane, self._stored_half, interpolation=cv2.INTER_LINEAR)
            for plane in planes.chroma
        ]
        if planes.chroma_order:
            found = list(cv2.split(found[0]))[:: planes.chroma_order]
        u, v = (
            self._orientation.upright(_looked_up(plane, planes.chroma_table)) for plane in found
        )
        return u, v


@dataclass(frozen=True)
class _Planes:
    """Views of a frame's planes, one or two for chroma, and tables to full range (None: as is)."""

    depth: int
    is_full_range: bool
    is_converted: bool
    luma: np.ndarray
    chroma: list[np.ndarray]
    chroma_order: int
    luma_table: np.ndarray | None
    chroma_table: np.ndarray | None


class PlaneParts:
    """The small images of one frame, each made when it is first used.

    `luma` is [h, w] with a long side of 256 pixels; `chroma` are U and V of half its size, with 128
    for no colour; `tiny` is RGB [27, 48, 3], stretched to that size. `full_luma` is not small.
    """

    def __init__(self, images: PlaneImages, frame: av.VideoFrame) -> None:
        self._images = images
        self._frame = frame

    @functools.cached_property
    def _planes(self) -> _Planes:
        return self._images.planes(self._frame)

    @functools.cached_property
    def luma(self) -> np.ndarray:
        return self._images.luma(self._planes)

    @functools.cached_property
    def chroma(self) -> tuple[np.ndarray, np.ndarray]:
        return self._images.chroma(self._planes)

    @functools.cached_property
    def tiny(self) -> np.ndarray:
        weights = _WEIGHTS.get(int(self._frame.colorspace), _BT601)
        return _tiny(self.luma, self.chroma, weights)

    @property
    def full_luma(self) -> StoredLuma | None:
        return self._images.full_luma(self._planes)


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


def _pixels(plane: av.video.plane.VideoPlane, layout: _Layout, channels: int = 1) -> np.ndarray:
    """A view of a plane, without line padding."""
    kind, size = (np.uint8, 1) if layout.depth == 8 else (np.uint16, 2)
    shape: tuple[int, ...] = (plane.height, plane.width)
    strides: tuple[int, ...] = (plane.line_size, size * channels)
    if channels > 1:
        shape, strides = (*shape, channels), (*strides, size)
    return np.ndarray(shape, kind, memoryview(plane), 0, strides)


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


@functools.cache
def _table(
    depth: int, is_full_range: bool, zero: int, levels: int, target: int
) -> np.ndarray | None:
    """Full-range values of 8 bits by code; in limited range `zero` becomes `target`."""
    if is_full_range and depth == 8:
        return None
    codes = np.arange(1 << depth) / (1 << (depth - 8))
    values = codes if is_full_range else (codes - zero) * (255 / levels) + target
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
    if width > 3 * TINY_SIZE[0] and height > 3 * TINY_SIZE[1]:
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
