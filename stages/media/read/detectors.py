"""Runs PySceneDetect's detectors over stored statistics instead of pixels.

The classes are PySceneDetect's own; only the part that reads pixels is replaced by a look-up, so
thresholds, windows and length filters act as in its command.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from scenedetect.common import FrameTimecode, Timecode
from scenedetect.detector import FlashFilter
from scenedetect.detectors import (
    AdaptiveDetector,
    ContentDetector,
    HashDetector,
    HistogramDetector,
    ThresholdDetector,
)

from clipmill.stages.media.read import measures

DetectorName = Literal["content", "adaptive", "threshold", "histogram", "hash"]
DEFAULT_THRESHOLDS: dict[str, float] = {
    "content": 27.0,
    "adaptive": 3.0,
    "threshold": 12.0,
    "histogram": 0.20,
    "hash": 0.35,
}
_MICROSECOND = Fraction(1, 1_000_000)


@dataclass(frozen=True)
class DetectorSettings:
    """PySceneDetect's settings under its own names; times are strings, as in its command."""

    detector: DetectorName
    threshold: float
    min_scene_len: str
    filter_mode: Literal["merge", "suppress"]
    weights: tuple[float, float, float, float]
    luma_only: bool
    window_width: int
    min_content_val: float
    fade_bias: float
    add_final_scene: bool
    min_out_length: str


class _KeptScores:
    """Mixin for content detectors: computes the score from stored components, not from an image.

    The row of components (hue, saturation, luma, edges) takes the image's place.
    """

    # PySceneDetect's attribute; only whether there was a last image matters.
    _last_frame: Any
    _weights: Sequence[float]

    def _calculate_frame_score(self, timecode: FrameTimecode, frame_img: np.ndarray) -> float:
        if not self._last_frame:
            self._last_frame = True
            return 0.0
        score: float = sum(
            component * weight for component, weight in zip(frame_img, self._weights, strict=True)
        ) / sum(abs(weight) for weight in self._weights)
        return score


class _Content(_KeptScores, ContentDetector):
    pass


class _Adaptive(_KeptScores, AdaptiveDetector):
    pass


class _Histogram(HistogramDetector):
    """The stored correlation with the previous frame takes the image's place."""

    _last_cut: FrameTimecode | None

    def process_frame(self, timecode: FrameTimecode, frame_img: float) -> list[FrameTimecode]:
        if self._last_cut is None:
            self._last_cut = timecode
            return []
        if frame_img > self._threshold or timecode - self._last_cut < self._min_scene_len:
            return []
        self._last_cut = timecode
        return [timecode]


class _Hash(HashDetector):
    """The stored distance from the previous frame takes the image's place."""

    _last_scene_cut: FrameTimecode | None

    def process_frame(self, timecode: FrameTimecode, frame_img: float) -> list[FrameTimecode]:
        if self._last_scene_cut is None:
            self._last_scene_cut = timecode
            return []
        if frame_img < self._threshold or timecode - self._last_scene_cut < self._min_scene_len:
            return []
        self._last_scene_cut = timecode
        return [timecode]


def find_cuts(settings: DetectorSettings, statistics: Mapping[str, Sequence[float]]) -> list[int]:
    """Indexes of the frames that begin a new shot, ascending, never the first frame.

    `statistics` are those that a scan of the whole video stored: one number per frame under each
    name.
    """
    numerator, denominator = statistics[measures.FRAME_RATE]
    rate = Fraction(int(numerator), int(denominator))
    positions = [int(at) for at in statistics[measures.POSITION]]
    timecodes = [FrameTimecode(Timecode(at, _MICROSECOND), rate) for at in positions]
    detector = _build(settings, rate)
    found: list[FrameTimecode] = []
    for timecode, row in zip(timecodes, _rows(settings, statistics), strict=True):
        found += detector.process_frame(timecode, row)
    if timecodes:
        found += detector.post_process(timecodes[-1])
    exact = {at: index for index, at in enumerate(positions)}
    numbers = [timecode.frame_num for timecode in timecodes]
    cuts = {_index_of(cut, exact, numbers) for cut in found}
    return sorted(index for index in cuts if 0 < index < len(positions))


def _index_of(cut: FrameTimecode, exact: Mapping[int, int], numbers: Sequence[int]) -> int:
    """The frame of a cut: by its time, or (cuts inside a fade) by its nominal number."""
    if cut.time_base == _MICROSECOND and cut.pts in exact:
        return exact[cut.pts]
    return int(np.searchsorted(numbers, cut.frame_num))


def _rows(settings: DetectorSettings, statistics: Mapping[str, Sequence[float]]) -> Iterable[Any]:
    match settings.detector:
        case "content" | "adaptive":
            edges = statistics.get(measures.EDGES)
            parts = [statistics[name] for name in measures.CONTENT]
            return zip(*parts, edges or [0.0] * len(parts[0]), strict=True)
        case "threshold":
            # The detector averages what it is given.
            return ((average,) for average in statistics[measures.AVERAGE])
        case "histogram":
            return statistics[measures.HISTOGRAM]
        case "hash":
            return statistics[measures.HASH]


def _build(settings: DetectorSettings, rate: Fraction) -> Any:
    # As in the command: a length becomes a number of frames at the nominal frame rate.
    min_scene_len = FrameTimecode(settings.min_scene_len, rate).frame_num
    weights = ContentDetector.Components(*settings.weights)
    match settings.detector:
        case "content":
            return _Content(
                threshold=settings.threshold,
                min_scene_len=min_scene_len,
                weights=weights,
                luma_only=settings.luma_only,
                filter_mode=FlashFilter.Mode[settings.filter_mode.upper()],
            )
        case "adaptive":
            return _Adaptive(
                adaptive_threshold=settings.threshold,
                min_scene_len=min_scene_len,
                window_width=settings.window_width,
                min_content_val=settings.min_content_val,
                weights=weights,
                luma_only=settings.luma_only,
            )
        case "threshold":
            return ThresholdDetector(
                threshold=settings.threshold,
                min_scene_len=min_scene_len,
                fade_bias=settings.fade_bias,
                add_final_scene=settings.add_final_scene,
                min_out_length=FrameTimecode(settings.min_out_length, rate),
            )
        case "histogram":
            return _Histogram(threshold=settings.threshold, min_scene_len=min_scene_len)
        case "hash":
            return _Hash(threshold=settings.threshold, min_scene_len=min_scene_len)
