"""Prepares pictures for models that take them at their own proportions, in patches (NaFlex).

Import torch only after `prepare_torch`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clipmill.stages.media.read.images import Interpolation, decode_jpeg, scaling

if TYPE_CHECKING:
    import torch

_PROCESSOR = "Siglip2ImageProcessor"
_INTERPOLATIONS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}  # by PIL's numbers
_BYTE = 256


@dataclass(frozen=True)
class Patches:
    """Resizes a picture to at most `most` square patches, in about its own proportions.

    A prepared picture is an array of one row per patch, unused ones last, and below them a row that
    holds how many patches there are down and across, each in two bytes.
    """

    patch: int
    most: int
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any) -> Patches | None:
        """The equivalent of an image processor of transformers; None if it does something else."""
        # In some versions of transformers, the same processor's name ends in Fast or Pil.
        name = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
        scaled = processor.do_resize and processor.do_rescale
        if name != _PROCESSOR or not scaled or abs(processor.rescale_factor * 255 - 1) > 1e-6:
            return None
        interpolation = _INTERPOLATIONS.get(int(processor.resample))
        if interpolation is None:
            return None
        normalise = processor.do_normalize
        return cls(
            processor.patch_size,
            processor.max_num_patches,
            interpolation,
            tuple(processor.image_mean) if normalise else (0.0, 0.0, 0.0),
            tuple(processor.image_std) if normalise else (1.0, 1.0, 1.0),
        )

    @property
    def size(self) -> tuple[int, int]:
        return self.most + 1, self.patch**2

    def __call__(self, jpegs: Sequence[bytes]) -> np.ndarray:
        """Prepared pictures."""
        prepared = np.empty((len(jpegs), *self.size, 3), np.uint8)
        for jpeg, out in zip(jpegs, prepared, strict=True):
            self.into(jpeg, out)
        return prepared

    def into(self, jpeg: bytes, out: np.ndarray) -> None:
        """Writes a picture's patches, before they are normalised, and their numbers."""
        image = self._resized(decode_jpeg(jpeg))
        down, across = (side // self.patch for side in image.shape[:2])
        grid = image.reshape(down, self.patch, across, self.patch, 3).swapaxes(1, 2)
        count = down * across
        out[:count].reshape(down, across, self.patch, self.patch, 3)[:] = grid
        out[count:] = 0
        out[-1, 0, :2], out[-1, 1, :2] = divmod(down, _BYTE), divmod(across, _BYTE)

    def _resized(self, image: np.ndarray) -> np.ndarray:
        """By the function that the models' own processor uses: OpenCV's averages differ from it by
        several grey levels at edges."""
        import torch
        from torchvision.transforms.v2 import InterpolationMode, functional

        size = _fitted(*image.shape[:2], self.patch, self.most)
        mode = InterpolationMode.BILINEAR
        if self.interpolation == "bicubic":
            mode = InterpolationMode.BICUBIC
        planes = torch.from_numpy(image).permute(2, 0, 1)
        resized = functional.resize(planes, list(size), interpolation=mode, antialias=True)
        found: np.ndarray = resized.permute(1, 2, 0).numpy()
        return found

    def inputs(
        self, prepared: torch.Tensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the model takes: normalised patches, their mask, and their numbers."""
        import torch

        # One that could not be read has none; it needs one, so that the others can be computed.
        shapes = (prepared[:, -1, :2, 0].long() * _BYTE + prepared[:, -1, :2, 1]).clamp_(min=1)
        mask = torch.arange(self.most) < shapes.prod(dim=1, keepdim=True)
        factor, offset = (
            torch.from_numpy(values).to(device) for values in scaling(self.mean, self.std)
        )
        patches = prepared.to(device, non_blocking=True)[:, :-1].to(torch.float32)
        values = patches.mul_(factor).sub_(offset).flatten(2)
        # The model asks for the numbers one by one, so they stay here.
        return values.to(dtype), mask.to(device, torch.int32), shapes


@functools.lru_cache(maxsize=256)
def _fitted(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """The size to which the models' own processor resizes a picture."""
    from transformers.models.siglip2.image_processing_siglip2 import (
        get_image_size_for_max_num_patches,
    )

    return get_image_size_for_max_num_patches(height, width, patch, most)
