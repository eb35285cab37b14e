"""Embeds images with a loaded model, in batches that are filled across calls."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clipmill.stages.media.read.images import (
    FitMode,
    Interpolation,
    decode_jpeg,
    fit,
    scaling,
    to_batch,
)
from clipmill.stages.models.batch_size import BatchSize
from clipmill.stages.models.image_queue import ImageQueue
from clipmill.stages.models.naflex import Patches
from clipmill.stages.models.torch_setup import torch_threads

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImagePreparation:
    """How a model wants its images.

    They are made to fit `scaled`, if it is given, and then their middle of `size` is taken.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: FitMode
    interpolation: Interpolation
    fill: int
    scaled: tuple[int, int] | None = None

    def __call__(self, jpegs: Sequence[bytes]) -> np.ndarray:
        """Float32 of shape (n, 3, height, width), as the model takes them."""
        images = [self._fitted(data) for data in jpegs]
        return to_batch(
            images, self.size, self.mean, self.std, self.mode, self.interpolation, self.fill
        )

    def into(self, jpeg: bytes, out: np.ndarray) -> None:
        """Writes an image's pixels, of shape (height, width, 3), before they are normalised."""
        out[:] = self._fitted(jpeg)

    def _fitted(self, jpeg: bytes) -> np.ndarray:
        size = self.scaled or self.size
        fitted = fit(decode_jpeg(jpeg), size, self.mode, self.interpolation, self.fill)
        top, left = ((size[i] - self.size[i]) // 2 for i in range(2))
        return fitted[top : top + self.size[0], left : left + self.size[1]]

    def inputs(
        self, pixels: torch.Tensor, device: torch.device, dtype: torch.dtype
    ) -> tuple[torch.Tensor]:
        """What the model takes, of pixels that may already be normalised."""
        import torch

        pixels = pixels.to(device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            pixels = self.normalised(pixels)
        return (pixels.to(dtype),)

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the call gives, of prepared pixels, on their device; equal to the last bit."""
        import torch

        factor, offset = (
            torch.from_numpy(values).reshape(3, 1, 1).to(pixels.device)
            for values in scaling(self.mean, self.std)
        )
        planes = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return planes.mul_(factor).sub_(offset)


class ImageEmbedder:
    """A model that makes one vector of an image; embeddings are float32 rows of length 1.

    A subclass says which model it is. `most_threads` bounds those that compute on a CPU, `threads`
    are those that prepare images for a GPU.
    """

    def __init__(
        self,
        prepare: ImagePreparation | Patches,
        *,
        device: torch.device,
        dtype: torch.dtype,
        batch_images: int,
        threads: int,
        most_threads: int | None = None,
    ) -> None:
        self.prepare, self.device, self.dtype = prepare, device, dtype
        self._most_threads = most_threads
        self._images = BatchSize(batch_images)
        self._queue = self._image_queue(threads)

    def _image_queue(self, threads: int) -> ImageQueue:
        import torch

        own = weakref.ref(self)  # a cycle would keep the model in memory

        def compute(pixels: torch.Tensor) -> np.ndarray:
            embedder = own()
            assert embedder is not None  # somebody waits for it
            return embedder.embed_batch(pixels)

        on_cpu = self.device.type == "cpu"
        most = torch.get_num_threads()
        return ImageQueue(
            self.prepare,
            compute,
            self._images,
            threads=min(most, self._most_threads or most) if on_cpu else threads,
            ahead=not on_cpu,
            pinned=self.device.type == "cuda",
        )

    @property
    def batch_images(self) -> int:
        """Images per forward pass; fewer than requested if memory is short."""
        return self._images.size

    @property
    def image_model(self) -> Callable[..., torch.Tensor]:
        """Takes what `prepare.inputs` gives, returns raw features."""
        raise NotImplementedError

    def embed_images(self, jpegs: Sequence[bytes]) -> np.ndarray:
        """Embeddings of JPEG images, in their order, of shape (n, d).

        Usable from several threads: batches are filled across their images.
        """
        rows = self._queue.rows(jpegs)
        return np.stack(rows) if rows else np.empty((0, 0), np.float32)

    def embed_batch(self, batch: np.ndarray | torch.Tensor) -> np.ndarray:
        """Embeddings of prepared images: uint8 of shape (n, *prepare.size, 3), or normalised ones,
        float32 of shape (n, 3, height, width).
        """
        import torch

        with torch.inference_mode(), torch_threads(self._most_threads):
            inputs = self.prepare.inputs(torch.as_tensor(batch), self.device, self.dtype)
            return unit_rows(self.image_model(*inputs))


def unit_rows(features: torch.Tensor) -> np.ndarray:
    """Rows scaled to length 1; a zero row becomes NaN, because it has no direction."""
    import torch

    features = features.float()
    lengths = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    units = torch.nn.functional.normalize(features, dim=-1)
    return units.masked_fill(lengths == 0, torch.nan).cpu().numpy()
