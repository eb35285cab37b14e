"""Measures every frame: detectors' inputs, and picture statistics.

All are computed from the small image (see `scaling.small_size`), so that videos of any size are
measured alike. The results equal PySceneDetect's bit for bit: it averages whole numbers, and so do
the OpenCV calls here, only faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from clipmill.stages.media.read.picture import Picture

CONTENT = ("delta_hue", "delta_sat", "delta_lum")
EDGES = "delta_edges"
AVERAGE = "average_rgb"
HISTOGRAM = "hist_diff"
HASH = "hash_dist"
POSITION = "position_microseconds"
FRAME_RATE = "frame_rate"


@dataclass(frozen=True)
class WantedMeasures:
    """Statistics that cost more than the usual ones and are computed only on request."""

    edges: bool = False
    kernel_size: int | None = None
    histogram_bins: int | None = None
    hash_size: int | None = None
    hash_lowpass: int | None = None


class Measures:
    """Observes the small images of one video and stores their statistics in parallel lists.

    `score` is PySceneDetect's content score of the last picture, with equal weights. `motion` is
    the mean absolute difference in luma from the previous frame, in grey levels (0 to 255), and
    null if there is none; `sharpness` is the variance of the Laplacian of luma; `brightness` is
    mean luma (0 to 255).
    """

    def __init__(self, wanted: WantedMeasures) -> None:
        self._wanted = wanted
        names = [*CONTENT, AVERAGE]
        names += [EDGES] if wanted.edges else []
        names += [HISTOGRAM] if wanted.histogram_bins else []
        names += [HASH] if wanted.hash_size else []
        self.statistics: dict[str, list[float]] = {name: [] for name in names}
        self.motion: list[float | None] = []
        self.sharpness: list[float] = []
        self.brightness: list[float] = []
        self.score = 0.0
        self._before: dict[str, np.ndarray] = {}
        self._edge_finder: Any = None  # created on first use

    def interrupt(self) -> None:
        """Marks that the next image does not follow the last one, so they are not compared."""
        self._before = {}

    def finish(self) -> dict[str, Any]:
        """The columns of SCANS that these are."""
        return {
            "statistics": self.statistics,
            "motion": self.motion,
            "sharpness": self.sharpness,
            "brightness": self.brightness,
        }

    def add(self, picture: Picture) -> None:
        """Measures one picture's BGR image."""
        small = picture.small
        assert small is not None, "a lean scan makes no BGR images"
        pixels = small.shape[0] * small.shape[1]
        before, self._before = self._before, {}
        statistics = self.statistics
        score = 0.0

        hsv = cv2.cvtColor(small, cv2.COLOR_BGR2HSV)
        differences = (0.0, 0.0, 0.0)
        if before:
            sums = cv2.sumElems(cv2.absdiff(hsv, before["hsv"]))
            differences = (sums[0] / pixels, sums[1] / pixels, sums[2] / pixels)
            score = sum(differences) / 3.0
        for name, value in zip(CONTENT, differences, strict=True):
            statistics[name].append(value)
        self._before["hsv"] = hsv

        luma = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
        difference = cv2.norm(luma, before["luma"], cv2.NORM_L1) / pixels if before else None
        self.motion.append(difference)
        self._before["luma"] = luma
        self.brightness.append(cv2.mean(luma)[0])
        _, deviation = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
        self.sharpness.append(float(deviation[0, 0]) ** 2)

        total = cv2.sumElems(small)
        statistics[AVERAGE].append((total[0] + total[1] + total[2]) / (3 * pixels))

        if self._wanted.edges:
            self._add_edges(hsv, before, pixels)
        if self._wanted.histogram_bins:
            self._add_histogram(small, before)
        if self._wanted.hash_size:
            self._add_hash(small, before, self._wanted.hash_size)
        self.score = score

    def _add_edges(self, hsv: np.ndarray, before: dict[str, np.ndarray], pixels: int) -> None:
        from scenedetect.detectors import ContentDetector

        if self._edge_finder is None:
            self._edge_finder = ContentDetector(kernel_size=self._wanted.kernel_size)
        edges = self._edge_finder._detect_edges(np.ascontiguousarray(hsv[:, :, 2]))
        difference = cv2.norm(edges, before["edges"], cv2.NORM_L1) / pixels if before else 0.0
        self.statistics[EDGES].append(difference)
        self._before["edges"] = edges

    def _add_histogram(self, small: np.ndarray, before: dict[str, np.ndarray]) -> None:
        from scenedetect.detectors import HistogramDetector

        histogram = HistogramDetector.calculate_histogram(small, bins=self._wanted.histogram_bins)
        # A frame without a predecessor counts as equal to it: correlation 1.
        alike = (
            cv2.compareHist(before["histogram"], histogram, cv2.HISTCMP_CORREL) if before else 1.0
        )
        self.statistics[HISTOGRAM].append(alike)
        self._before["histogram"] = histogram

    def _add_hash(self, small: np.ndarray, before: dict[str, np.ndarray], size: int) -> None:
        from scenedetect.detectors import HashDetector

        bits = HashDetector.hash_frame(small, size, self._wanted.hash_lowpass)
        differing = np.count_nonzero(bits != before["hash"]) if before else 0
        self.statistics[HASH].append(differing / float(size * size))
        self._before["hash"] = bits
