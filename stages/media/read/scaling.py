"""Scales decoded frames: small images for statistics, and kept frames."""

from __future__ import annotations

import av
import av.video.plane
import av.video.reformatter
import cv2
import numpy as np

from clipmill.stages.media.read.framing import Cropper, Framing
from clipmill.stages.media.read.hdr import ToneMap
from clipmill.stages.media.read.orientation import Orientation

SMALL_SIDE = 256
"""Longest side of the image for statistics, in pixels: PySceneDetect's own choice."""

# The cores are busy decoding: waking more threads per frame costs more than they save.
_SCALER_THREADS = 1


def small_size(width: int, height: int) -> tuple[int, int]:
    """The size at which PySceneDetect's command analyses a video; small videos are not scaled."""
    factor = max(width, height) / SMALL_SIDE
    if factor <= 1.0:
        return width, height
    return max(1, round(width / factor)), max(1, round(height / factor))


class SmallImages:
    """Makes the small images, bit for bit those of PySceneDetect's command, as cheaply as
    possible.

    That command converts the whole frame to BGR and samples it linearly. Scaling in YUV first
    would be cheaper, but hue is so unstable in dark pictures that rounding moves cuts. If both
    sides shrink by the same odd whole number (1280x720 by 5, 3840x2160 by 15), each sample falls
    on one pixel, and only those pixels are converted. This applies to frames like the first one;
    if a video changes its size, frames are scaled to that of the first.
    """

    def __init__(self, frame: av.VideoFrame) -> None:
        self._size = small_size(frame.width, frame.height)
        self._reformatter = av.video.reformatter.VideoReformatter()
        across = frame.width / self._size[0]
        self._step = int(across)
        odd = across == frame.height / self._size[1] and across % 2 == 1 and across > 1
        # The kind of frame that can be sampled.
        self._sparse = _kind(frame) if odd and frame.format.name == "yuv420p" else None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if _kind(frame) == self._sparse:
            return self._sampled(frame)
        # OpenCV's choice; it matters if the converter itself has to enlarge chroma.
        converted = self._reformatter.reformat(
            frame, format="bgr24", interpolation="BICUBIC", threads=_SCALER_THREADS
        )
        if (frame.width, frame.height) == self._size:
            return converted.to_ndarray()
        image = _bgr_view(converted)
        return cv2.resize(image, self._size, interpolation=cv2.INTER_LINEAR)

    def _sampled(self, frame: av.VideoFrame) -> np.ndarray:
        # Each sample becomes the corner of a 2x2 block, so that it keeps its chroma and is
        # converted exactly as in the whole frame.
        width, height = self._size
        blocks = av.VideoFrame(width * 2, height * 2, "yuv420p")
        blocks.colorspace = frame.colorspace
        blocks.color_range = frame.color_range
        step, middle = self._step, self._step // 2
        # Chroma has half as many columns and rows: even and odd samples alternate.
        halves = (middle // 2, (step + middle) // 2)
        luma, *chroma = (_pixels(plane) for plane in frame.planes)
        luma_blocks, *chroma_blocks = (_pixels(plane) for plane in blocks.planes)
        luma_blocks[::2, ::2] = luma[middle::step, middle::step]
        for source, target in zip(chroma, chroma_blocks, strict=True):
            for odd_row, row in enumerate(halves):
                for odd_column, column in enumerate(halves):
                    target[odd_row::2, odd_column::2] = _every(
                        source, row, column, step, target[odd_row::2, odd_column::2].shape
                    )
        image = _bgr_view(
            self._reformatter.reformat(blocks, format="bgr24", threads=_SCALER_THREADS)
        )
        return cv2.resize(image, self._size, interpolation=cv2.INTER_NEAREST)


def _kind(frame: av.VideoFrame) -> tuple[str, int, int]:
    return frame.format.name, frame.width, frame.height


def _bgr_view(frame: av.VideoFrame) -> np.ndarray:
    """A view of a bgr24 frame's pixels: copying large frames takes real time."""
    plane = frame.planes[0]
    shape, strides = (frame.height, frame.width, 3), (plane.line_size, 3, 1)
    return np.ndarray(shape, np.uint8, memoryview(plane), 0, strides)


def _every(
    pixels: np.ndarray, row: int, column: int, step: int, shape: tuple[int, int]
) -> np.ndarray:
    return pixels[row::step, column::step][: shape[0], : shape[1]]


def _pixels(plane: av.video.plane.VideoPlane) -> np.ndarray:
    """A view of an 8-bit plane, without line padding."""
    lines: np.ndarray = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return lines[: plane.height, : plane.width]


class KeptImages:
    """Makes kept frames. It caches scalers, so each thread needs a separate one."""

    def __init__(
        self,
        size: tuple[int, int],
        orientation: Orientation,
        tone_map: ToneMap | None,
        framing: Framing,
    ) -> None:
        self._cropped = Cropper(framing)
        self._size = orientation.shown(*size)
        self._orientation = orientation
        self._tone_map = tone_map
        self._scaler = av.video.reformatter.VideoReformatter()
        self._converter = av.video.reformatter.VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """`frame` as an upright BGR image of the size (width, height as displayed)."""
        frame = self._cropped(frame)
        if self._tone_map is not None:
            deep = self._scaler.reformat(
                frame, *self._size, format="bgr48le", interpolation="AREA", threads=_SCALER_THREADS
            )
            return self._orientation.upright(self._tone_map(deep.to_ndarray()))
        # Scaled in YUV first: converting the large frame would cost half as much as decoding it.
        scaled = self._scaler.reformat(
            frame, *self._size, format="yuv420p", interpolation="AREA", threads=_SCALER_THREADS
        )
        image = self._converter.reformat(
            scaled, format="bgr24", threads=_SCALER_THREADS
        ).to_ndarray()
        return self._orientation.upright(image)
