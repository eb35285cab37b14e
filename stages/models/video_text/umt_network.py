"""The Unmasked Teacher's vision tower, under the names of its published weights.

Import it only after `prepare_torch`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

_HEAD_WIDTH = 64
_EPSILON = 1e-6


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        # Keys have no bias: it would not change the attention.
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)
        self._heads = width // _HEAD_WIDTH or 1

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        parts = linear(tokens, self.qkv.weight, bias).unflatten(-1, (3, self._heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        found = scaled_dot_product_attention(query, key, value)
        answer: torch.Tensor = self.proj(found.transpose(1, 2).flatten(2))
        return answer


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.fc2(gelu(self.fc1(tokens)))
        return answer


class _Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPSILON)
        self.attn = _Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=_EPSILON)
        self.mlp = _Mlp(width, inner)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        found: torch.Tensor = tokens + self.mlp(self.norm2(tokens))
        return found


class _Encoder(nn.Module):
    def __init__(self, width: int, inner: int, layers: int, patch: int) -> None:
        super().__init__()
        size = (1, patch, patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, width, size, size)})
        self.blocks = nn.ModuleList([_Block(width, inner) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, eps=_EPSILON)


class UMTVision(nn.Module):
    """One embedding per frame, of frames that attend to each other."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        width, _, kernel, patch, _ = state["encoder.patch_embed.proj.weight"].shape
        if kernel != 1:
            raise ValueError(f"its patches span {kernel} frames, not 1")
        inner = state["encoder.blocks.0.mlp.fc1.weight"].shape[0]
        start = "encoder.blocks."
        layers = {name.removeprefix(start).split(".")[0] for name in state if start in name}
        self.encoder = _Encoder(width, inner, len(layers), patch)
        self.pool_norm = nn.LayerNorm(width, eps=_EPSILON)
        self._places: torch.Tensor | None = None

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Features of shape (n, frames, width), from clips (n, frames, 3, height, width)."""
        patches = self.encoder.patch_embed["proj"](clips.transpose(1, 2))
        tokens = patches.flatten(2).transpose(1, 2)
        if self._places is None or len(self._places) != tokens.shape[1]:
            self._places = _positions(tokens.shape[1], tokens.shape[2]).to(tokens)
        tokens = tokens + self._places
        for block in self.encoder.blocks:
            tokens = block(tokens)
        frames = self.encoder.norm(tokens).unflatten(1, (clips.shape[1], -1))
        answer: torch.Tensor = self.pool_norm(frames.mean(dim=2))
        return answer


def _positions(count: int, width: int) -> torch.Tensor:
    """Sines and cosines of the tokens' numbers, over all frames, of shape (count, width)."""
    steps = np.power(10000, 2 * (np.arange(width) // 2) / width)
    angles = np.arange(count)[:, None] / steps
    angles[:, 0::2], angles[:, 1::2] = np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])
    return torch.from_numpy(angles.astype(np.float32))
