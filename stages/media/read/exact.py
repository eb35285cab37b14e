"""Reads frames exactly as PySceneDetect's command does, but with the container's timestamps.

The command opens a file with OpenCV and gives its detectors times relative to the first frame.
OpenCV computes them from the container's timestamps, so these can be recovered exactly. If
OpenCV's build cannot decode a codec (AV1 in its wheel), the command fails; OpenCV 5 shows
interlaced video as black, and changes the colours of high dynamic range. In these cases
PySceneDetect's PyAV stream is used, as with `scenedetect --backend pyav`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from clipmill.stages.media.isolation.out_of_memory import raise_if_out
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.media.read.decode import (
    DecodedVideo,
    VideoFacts,
    bad_media,
    open_container,
    read_facts,
    video_stream,
)
from clipmill.stages.media.read.opening import frames
from clipmill.stages.media.read.orientation import Orientation
from clipmill.stages.media.read.packets import PacketIndex, read_packets
from clipmill.stages.media.read.picture import Picture
from clipmill.stages.media.read.planes import ImageParts
from clipmill.stages.media.read.scaling import SMALL_SIDE


class ExactVideo(DecodedVideo):
    """Decodes with PySceneDetect's stream and scales by PySceneDetect's factor.

    `parts`: pictures also have `luma`, `chroma` and `tiny`.
    """

    def __init__(
        self, path: Path, starts_at_seconds: float | None = None, *, parts: bool = False
    ) -> None:
        super().__init__(path, starts_at_seconds)
        self._has_parts = parts

    def _frames(self) -> Generator[Picture, None, None]:
        try:
            yield from self._pictures()
        except av.FFmpegError as error:
            raise_if_out(error)
            raise bad_media(self.path, f"cannot be decoded ({error.strerror})") from error

    def _pictures(self) -> Iterator[Picture]:
        index = read_packets(self.path, self.starts_at_seconds)
        header, opencv_fails = self._header()
        given = 0
        for picture in self._opencv(index, header) if not opencv_fails else ():
            given += 1
            yield picture
        if given:
            return
        # No frame at all: OpenCV doesn't support the codec, or the file is broken for both.
        for picture in self._pyav(index, header):
            yield picture

    def _header(self) -> tuple[VideoFacts, bool]:
        """The facts from the header, and whether OpenCV shows such pictures wrong.

        PyAV decodes one frame.
        """
        with open_container(self.path) as container:
            stream = video_stream(container, self.path)
            first = next(frames(container, stream), None)
            if first is None:
                raise bad_media(self.path, "gives no frame")
            self.decoded_frames += 1
            facts = read_facts(container, self.path, first)
            return facts, first.interlaced_frame or facts.tone_map is not None

    def _opencv(self, index: PacketIndex, header: VideoFacts) -> Iterator[Picture]:
        from scenedetect.backends import VideoStreamCv2
        from scenedetect.video_stream import VideoOpenFailure

        with _quiet_opencv():
            try:
                stream = VideoStreamCv2(str(self.path))
            except (VideoOpenFailure, OSError):
                return
            try:
                degrees = round(stream.capture.get(cv2.CAP_PROP_ORIENTATION_META))
                # OpenCV only rotates, by whole quarters.
                turned = 0 if degrees % 90 else degrees // 90
                yield from self._read(stream, index, header, turned_by=turned)
            finally:
                stream.capture.release()

    def _pyav(self, index: PacketIndex, header: VideoFacts) -> Iterator[Picture]:
        from scenedetect.backends import VideoStreamAv
        from scenedetect.video_stream import VideoOpenFailure

        try:
            stream = VideoStreamAv(str(self.path), threading_mode="auto", suppress_output=True)
        except (VideoOpenFailure, OSError) as error:
            raise bad_media(self.path, f"cannot be opened ({error})") from error
        yield from self._read(stream, index, header)

    def _read(
        self, stream: Any, index: PacketIndex, header: VideoFacts, *, turned_by: int = 0
    ) -> Iterator[Picture]:
        """The stream's pictures, already rotated clockwise by this many quarters."""
        from scenedetect.scene_manager import compute_downscale_factor

        size: tuple[int, int] | None = None
        factor = compute_downscale_factor(max(stream.frame_size), SMALL_SIDE)
        number = -1
        last_pts = index.start_pts - 1
        while (frame := stream.read()) is not False:
            if frame is None or frame.ndim != 3:
                continue
            self.decoded_frames += 1
            beat()
            if self.facts is None:
                # At PySceneDetect's frame rate.
                self.facts = replace(
                    header,
                    frame_rate=stream.frame_rate,
                    time_base=index.time_base,
                    start_pts=index.start_pts,
                    offset_pts=index.offset_pts,
                )
            size = size or frame.shape[:2]
            if frame.shape[:2] != size:
                # PySceneDetect skips frames whose size changes midway.
                continue
            position = stream.position
            pts = index.nearest_pts(
                index.start_pts + round(position.seconds / float(index.time_base))
            )
            pts = pts if pts > last_pts else last_pts + 1
            last_pts = pts
            number += 1
            yield Picture(
                number=number,
                seconds=self.facts.seconds(pts),
                position_microseconds=round(position.seconds * 1_000_000),
                duration_seconds=self._duration(index, pts),
                small=_downscaled(frame, factor),
                full=functools.partial(self._full, frame, turned_by),
                held_bytes=frame.nbytes,
                parts=ImageParts(self._upright(frame, turned_by)) if self._has_parts else None,
            )

    def _full(self, image: np.ndarray, turned_by: int, size: tuple[int, int]) -> np.ndarray:
        """The kept frame from PySceneDetect's picture, which has only 8 bits."""
        facts = self.facts
        assert facts is not None
        image = _kept(self._upright(image, turned_by), size)
        return image if facts.tone_map is None else facts.tone_map(image)

    def _upright(self, image: np.ndarray, turned_by: int) -> np.ndarray:
        """PySceneDetect's picture as it is shown, but for the shape of its pixels."""
        facts = self.facts
        assert facts is not None
        left = facts.orientation.after(turned_by)
        if facts.framing.crops:
            image = facts.framing.cropped(Orientation(-turned_by % 4).upright(image))
            left = facts.orientation
        return left.upright(image)

    @staticmethod
    def _duration(index: PacketIndex, pts: int) -> float:
        return (
            max(0.0, float((index.end_pts - pts) * index.time_base))
            if (pts >= index.pts[-1])
            else 0.0
        )


def _downscaled(frame: np.ndarray, factor: float) -> np.ndarray:
    """The image that PySceneDetect's detectors would get for this frame."""
    if factor <= 1.0:
        return frame
    height, width = frame.shape[:2]
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)


def _kept(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[1::-1] == size:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Silences OpenCV about a codec that PyAV will read instead."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
