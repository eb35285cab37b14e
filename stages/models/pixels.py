"""Pixels for a model without its own image processor, where what that does is plain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

_BICUBIC = 3  # PIL's number
# Image processors that only resize, crop the middle, scale and normalise.
_PLAIN = {
    "BlipImageProcessor", "CLIPImageProcessor", "DeiTImageProcessor", "SiglipImageProcessor",
    "ViTImageProcessor",
}


@dataclass(frozen=True)
class PlainPixels:
    """Resize straight to `width` × `height` pixels, then (value × scale − mean) ÷ deviation.

    One OpenCV call a picture takes full frames several times faster than PIL.
    """

    width: int
    height: int
    smooth: bool
    scale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> PlainPixels | None:
        """What an image processor does, or None where it does more than this."""
        # One and the same processor has the ending Fast or Pil in some versions of transformers.
        name = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
        if name not in _PLAIN or not getattr(processor, "do_resize", False):
            return None
        size = processor.size
        height, width = size.get("height"), size.get("width")
        if getattr(processor, "do_center_crop", False) or not height or not width:
            return None
        normalise = processor.do_normalize
        return cls(
            width, height, processor.resample == _BICUBIC,
            processor.rescale_factor if processor.do_rescale else 1.0,
            tuple(processor.image_mean) if normalise else (0.0, 0.0, 0.0),
            tuple(processor.image_std) if normalise else (1.0, 1.0, 1.0),
        )

    def batch(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        """Frames (height × width × 3, RGB, uint8) as one float tensor, n × 3 × height × width."""
        import cv2
        import numpy as np
        import torch

        resized = np.empty((len(frames), self.height, self.width, 3), np.uint8)
        for i, frame in enumerate(frames):
            shrinks = frame.shape[0] > self.height and frame.shape[1] > self.width
            enlarging = cv2.INTER_CUBIC if self.smooth else cv2.INTER_LINEAR
            how = cv2.INTER_AREA if shrinks else enlarging
            cv2.resize(frame, (self.width, self.height), dst=resized[i], interpolation=how)
        pixels = torch.from_numpy(resized).permute(0, 3, 1, 2).float()
        mean = torch.tensor(self.mean).view(1, 3, 1, 1)
        deviation = torch.tensor(self.deviation).view(1, 3, 1, 1)
        return (pixels * self.scale - mean) / deviation
