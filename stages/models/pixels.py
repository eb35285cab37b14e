"""Prepares pixels without a model's own image processor, for processors that are simple enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

    from clipmill.stages.media.read.images import FitMode, Interpolation

_BICUBIC = 3  # PIL's number
# Image processors that only resize, crop the middle, scale to 0–1 and normalise.
_PLAIN = {
    "BlipImageProcessor",
    "CLIPImageProcessor",
    "ChineseCLIPImageProcessor",
    "DeiTImageProcessor",
    "SiglipImageProcessor",
    "ViTImageProcessor",
}


@dataclass(frozen=True)
class PlainPixels:
    """Resize to `size` (height, width), then (value ÷ 255 − mean) ÷ deviation, with OpenCV."""

    size: tuple[int, int]
    mode: FitMode
    interpolation: Interpolation
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> PlainPixels | None:
        """The equivalent of an image processor; None if it does more than this."""
        # In some versions of transformers, the same processor's name ends in Fast or Pil.
        name = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
        scaled = processor.do_resize and processor.do_rescale
        if name not in _PLAIN or not scaled or abs(processor.rescale_factor * 255 - 1) > 1e-6:
            return None
        size = processor.size
        height, width = size.get("height"), size.get("width")
        mode: FitMode = "squash"
        if getattr(processor, "do_center_crop", False):
            crop, edge = processor.crop_size, size.get("shortest_edge")
            height, width = crop.get("height"), crop.get("width")
            if not edge or (height, width) != (edge, edge):
                return None
            mode = "crop"
        if not height or not width:
            return None
        normalise = processor.do_normalize
        return cls(
            (height, width),
            mode,
            "bicubic" if processor.resample == _BICUBIC else "bilinear",
            tuple(processor.image_mean) if normalise else (0.0, 0.0, 0.0),
            tuple(processor.image_std) if normalise else (1.0, 1.0, 1.0),
        )

    def batch(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        """Frames (height × width × 3, RGB, uint8) as one float tensor, n × 3 × height × width."""
        import torch

        from clipmill.stages.media.read.images import to_batch

        return torch.from_numpy(
            to_batch(frames, self.size, self.mean, self.deviation, self.mode, self.interpolation)
        )
