"""Determines which part of a stored picture is shown, and its aspect ratio.

A container may specify borders to hide (MOV's `clap`, Matroska's `PixelCrop…`), which decoders
ignore, and non-square pixels (DVD, DV, HDV).
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np
from av.video.stream import VideoStream

# Nearly square pixels come from sizes rounded to even numbers and are not intentional.
_LEAST_SQUEEZE, _MOST_SQUEEZE = 0.02, 4
_STREAM = re.compile(r"^\s*Stream #\d+:(\d+)", re.M)
_CROPPING = re.compile(r"^\s*Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)\s*$", re.M)
# PyAV's log level is process-wide; decoding threads could block on Python in its callback.
_logging = threading.Lock()


@dataclass(frozen=True)
class Framing:
    """Pixels hidden at each side of a stored picture, and the pixel aspect ratio."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0
    pixel_aspect: Fraction = Fraction(1)

    @property
    def crops(self) -> bool:
        return any((self.left, self.right, self.top, self.bottom))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The size of the shown part of a stored picture with square pixels, never shrunk."""
        width, height = width - self.left - self.right, height - self.top - self.bottom
        if self.pixel_aspect > 1:
            return round(width * self.pixel_aspect), height
        return width, round(height / self.pixel_aspect)

    def cropped(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        return image[self.top : height - self.bottom, self.left : width - self.right]


class Cropper:
    """Crops decoded frames without copying them; not thread-safe."""

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self._graph: av.filter.Graph | None = None
        self._kind: tuple[str, int, int] | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        if not self._framing.crops:
            return frame
        kind = (frame.format.name, frame.width, frame.height)
        if self._graph is None or kind != self._kind:
            self._kind, self._graph = kind, self._made(frame)
        self._graph.push(frame)
        cropped = self._graph.pull()
        assert isinstance(cropped, av.VideoFrame)
        return cropped

    def _made(self, frame: av.VideoFrame) -> av.filter.Graph:
        crop, graph = self._framing, av.filter.Graph()
        graph.threads = 1
        graph.link_nodes(
            graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=frame.time_base or Fraction(1, 1000),
            ),
            graph.add(
                "crop",
                f"{frame.width - crop.left - crop.right}:"
                f"{frame.height - crop.top - crop.bottom}:{crop.left}:{crop.top}:exact=1",
            ),
            graph.add("buffersink"),
        ).configure()
        return graph


def framing_of(stream: VideoStream) -> Framing:
    """The container's values for a stream; nonsensical ones are ignored."""
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    if not 1 / Fraction(_MOST_SQUEEZE) <= aspect <= _MOST_SQUEEZE or (
        abs(aspect - 1) < _LEAST_SQUEEZE
    ):
        aspect = Fraction(1)
    sides = _cropping(stream)
    left, right, top, bottom = sides
    context = stream.codec_context
    if left + right >= context.width or top + bottom >= context.height:
        sides = (0, 0, 0, 0)
    return Framing(*sides, aspect)


def keep_shape(copy: VideoStream, stream: VideoStream) -> None:
    """Stores the pixel aspect ratio in the MP4 copy of a stream.

    Often only the container has it. PyAV can't store it in Matroska.
    """
    if stream.sample_aspect_ratio:
        copy.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio


def _cropping(stream: VideoStream) -> tuple[int, int, int, int]:
    """Pixels hidden at the left, right, top and bottom.

    PyAV offers no other access than the text that describes a file.
    """
    with _logging:
        level = av.logging.get_level()
        av.logging.set_level(av.logging.INFO)
        try:
            container: Any = stream.container  # the method is not among PyAV's types
            text = container.dumps_format()
        finally:
            av.logging.set_level(level)
    marks = list(_STREAM.finditer(text))
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        if int(mark[1]) == stream.index:
            found = _CROPPING.search(text, mark.end(), after.start() if after else len(text))
            if found:
                left, right, top, bottom = map(int, found.groups())
                return left, right, top, bottom
    return 0, 0, 0, 0
