"""Prepares decoded pictures for encoding."""

from __future__ import annotations

from fractions import Fraction

import av
import av.video.frame
import av.video.reformatter
import numpy as np
from av.video.reformatter import Colorspace

from clipmill.stages.media.cutting.cropping import crop_of, shown_part
from clipmill.stages.media.cutting.requests import Rectangle
from clipmill.stages.media.read.framing import Cropper, framing_of
from clipmill.stages.media.read.hdr import ToneMap, tone_map_of
from clipmill.stages.media.read.orientation import Orientation, orientation_of

_BT709 = 1


class PicturePreparer:
    """Prepares decoded frames for encoding: upright, one even size, 8 bits, tone-mapped.

    With `crop`, only that part of them.
    """

    def __init__(
        self,
        stream: av.VideoStream,
        short_side: int | None,
        pixels: str,
        crop: Rectangle | None = None,
    ) -> None:
        self.stream = stream
        self.size: tuple[int, int] | None = None
        self.crop: Rectangle | None = None
        """The part that is actually kept, in whole pixels."""
        self._rectangle = crop
        self._inside: Cropper | None = None
        self._inside_of: tuple[int, int] | None = None
        self._short_side = short_side
        self._pixels = pixels
        self._orientation = Orientation()
        self._tone_map: ToneMap | None = None
        self._scaler = av.video.reformatter.VideoReformatter()
        self._cropped = Cropper(framing_of(stream))
        self._converter = av.video.reformatter.VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        frame = self._cropped(frame)
        if self.size is None:
            self._orientation = orientation_of(frame)
            self._tone_map = tone_map_of(frame)
        if self._rectangle is not None:
            frame = self._part(frame, self._rectangle)
        if self.size is None:
            self.size = self._size_of(frame)
        rgb = frame.format.is_rgb
        width, height = self._orientation.shown(*self.size)
        # Cropped by a pixel if that makes it even, scaled if it must be smaller.
        crops = 0 <= frame.width - width <= 1 and 0 <= frame.height - height <= 1
        across, down = (frame.width, frame.height) if crops else (width, height)
        if self._tone_map is not None:
            made = self._ordinary(frame, across, down)
        else:
            made = self._scaler.reformat(
                frame,
                across,
                down,
                format="yuv420p",
                interpolation="AREA",
                dst_colorspace=Colorspace.ITU709 if rgb else None,
                dst_color_range="MPEG",
                threads=1,
            )
        if not self._orientation.is_upright or (made.width, made.height) != (width, height):
            made = self._planes(made, width, height)
        if self._pixels != "yuv420p":
            made = made.reformat(format=self._pixels, threads=1)
        made.pts, made.time_base = frame.pts, frame.time_base
        # Otherwise the encoder would use the source's frame types.
        made.pict_type = av.video.frame.PictureType.NONE
        return made

    def _part(self, frame: av.VideoFrame, wanted: Rectangle) -> av.VideoFrame:
        if self._inside is None or self._inside_of != (frame.width, frame.height):
            self._inside_of = (frame.width, frame.height)
            framing = crop_of(wanted, self._orientation, frame)
            self.crop = shown_part(framing, self._orientation, frame)
            self._inside = Cropper(framing)
        return self._inside(frame)

    def _ordinary(self, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        """A high dynamic range frame as 8-bit BT.709."""
        assert self._tone_map is not None
        deep = self._scaler.reformat(
            frame, width, height, format="bgr48le", interpolation="AREA", threads=1
        )
        image = av.VideoFrame.from_ndarray(self._tone_map(deep.to_ndarray()), "bgr24")
        made = self._converter.reformat(
            image,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range="MPEG",
            threads=1,
        )
        made.colorspace = made.color_primaries = made.color_trc = _BT709
        return made

    def _size_of(self, frame: av.VideoFrame) -> tuple[int, int]:
        width, height = frame.width, frame.height
        if self._short_side and min(width, height) > self._short_side:
            factor = self._short_side / min(width, height)
            width, height = round(width * factor / 2) * 2, round(height * factor / 2) * 2
        width, height = max(2, width // 2 * 2), max(2, height // 2 * 2)
        return self._orientation.shown(width, height)

    def _planes(self, frame: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        """The frame's upper left `width` × `height` pixels, turned upright."""
        parts = []
        for plane, share in zip(frame.planes, (1, 2, 2), strict=True):
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            part = rows[: height // share, : width // share]
            parts.append(self._orientation.upright(part).reshape(-1))
        assert self.size is not None
        across, down = self.size
        made = av.VideoFrame.from_ndarray(
            np.concatenate(parts).reshape(down * 3 // 2, across), "yuv420p"
        )
        made.colorspace, made.color_range = frame.colorspace, frame.color_range
        made.color_primaries, made.color_trc = frame.color_primaries, frame.color_trc
        return made

    def aspect(self) -> Fraction | None:
        """The pixel aspect ratio of the output; None if pixels are square."""
        ratio = self.stream.sample_aspect_ratio
        if not ratio or ratio == 1:
            return None
        return 1 / Fraction(ratio) if self._orientation.swaps_sides else Fraction(ratio)
