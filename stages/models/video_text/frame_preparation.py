"""Turns frames into a video–text model's pixels, the way its published code does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from clipmill.stages.media.read.images import FitMode, Interpolation, to_batch

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

_BICUBIC = 3  # PIL's number
_KERNELS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


@dataclass(frozen=True)
class FramePreparation:
    """Resize to `size` (height, width), then (value ÷ 255 − mean) ÷ deviation.

    Without `antialias`, a pixel is interpolated from its nearest neighbours however much the image
    shrinks, as in OpenCV's resize and in torchvision's resize of tensors.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    mode: FitMode = "squash"
    interpolation: Interpolation = "bicubic"
    antialias: bool = True

    @classmethod
    def from_processor(
        cls,
        size: tuple[int, int],
        settings: dict[str, Any],
        *,
        mode: FitMode,
        normalised: bool,
        interpolation: Interpolation,
    ) -> FramePreparation:
        """From a folder's processor configuration, with defaults for what it doesn't say."""
        mean, deviation = IMAGENET if normalised else ((0.0,) * 3, (1.0,) * 3)
        if settings.get("do_normalize", normalised):
            mean = tuple(settings.get("image_mean", mean))
            deviation = tuple(settings.get("image_std", deviation))
        else:
            mean, deviation = (0.0,) * 3, (1.0,) * 3
        if "resample" in settings:
            interpolation = "bicubic" if settings["resample"] == _BICUBIC else "bilinear"
        return cls(size, mean, deviation, mode, interpolation)

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """RGB images as float32 of shape (n, 3, height, width)."""
        if not self.antialias:
            images = [self._resized(image) for image in images]
        return to_batch(images, self.size, self.mean, self.deviation, self.mode, self.interpolation)

    def _resized(self, image: np.ndarray) -> np.ndarray:
        height, width = self.size
        kernel = _KERNELS[self.interpolation]
        if self.mode == "squash":
            return cv2.resize(image, (width, height), interpolation=kernel)
        # The shorter side fits, the longer one is rounded down, as in torchvision.
        scale = max(height / image.shape[0], width / image.shape[1])
        tall = max(height, int(image.shape[0] * scale + 1e-9))
        wide = max(width, int(image.shape[1] * scale + 1e-9))
        resized = cv2.resize(image, (wide, tall), interpolation=kernel)
        top, left = round((tall - height) / 2), round((wide - width) / 2)
        return resized[top : top + height, left : left + width]
