"""ViCLIP's network, under the names of its published weights: CLIP's ViT over space and time.

All tokens of all frames attend to each other. Import it only after `prepare_torch`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from open_clip.transformer import QuickGELU, Transformer
from torch import nn

# Of all CLIP models, and of ViCLIP in both sizes.
_HEAD_WIDTH = 64


class _Video(nn.Module):
    def __init__(
        self, width: int, layers: int, heads: int, patch: int, patches: int, frames: int, out: int
    ) -> None:
        super().__init__()
        size = (1, patch, patch)
        self.conv1 = nn.Conv3d(3, width, size, size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(patches + 1, width))
        self.temporal_positional_embedding = nn.Parameter(torch.empty(1, frames, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, act_layer=QuickGELU)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, out))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Embeddings of clips of shape (n, frames, 3, height, width)."""
        tokens = self.conv1(clips.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)
        position, moment = self.positional_embedding, self.temporal_positional_embedding
        tokens = tokens + position[1:] + moment.unsqueeze(2)
        first = (self.class_embedding + position[0]).expand(len(clips), 1, -1)
        tokens = self.ln_pre(torch.cat((first, tokens.flatten(1, 2)), dim=1))
        found: torch.Tensor = self.ln_post(self.transformer(tokens)[:, 0]) @ self.proj
        return found


class _Text(nn.Module):
    def __init__(
        self, width: int, layers: int, heads: int, vocabulary: int, context: int, out: int
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.transformer = Transformer(width, layers, heads, act_layer=QuickGELU)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, out))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings of token ids of shape (n, context), at each text's end token."""
        length = tokens.shape[1]
        future = torch.full((length, length), -torch.inf, device=tokens.device).triu(1)
        found = self.token_embedding(tokens) + self.positional_embedding
        found = self.ln_final(self.transformer(found, attn_mask=future))
        # The end token has the highest number.
        ends: torch.Tensor = found[torch.arange(len(tokens)), tokens.argmax(dim=-1)]
        return ends @ self.text_projection


class ViCLIPNetwork(nn.Module):
    """Both towers, with the shapes that a state dict has."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        video, text = "vision_encoder.", "text_encoder."
        width, _, kernel, patch, _ = state[f"{video}conv1.weight"].shape
        if kernel != 1:
            raise ValueError(f"its patches span {kernel} frames, not 1")
        self.vision_encoder = _Video(
            width,
            _blocks(state, video),
            width // _HEAD_WIDTH or 1,
            patch,
            state[f"{video}positional_embedding"].shape[0] - 1,
            state[f"{video}temporal_positional_embedding"].shape[1],
            state[f"{video}proj"].shape[1],
        )
        context, width = state[f"{text}positional_embedding"].shape
        self.text_encoder = _Text(
            width,
            _blocks(state, text),
            width // _HEAD_WIDTH or 1,
            state[f"{text}token_embedding.weight"].shape[0],
            context,
            state[f"{text}text_projection"].shape[1],
        )
        self.temp = nn.Parameter(torch.empty(()))

    @property
    def frames(self) -> int:
        return int(self.vision_encoder.temporal_positional_embedding.shape[1])

    @property
    def context(self) -> int:
        return int(self.text_encoder.positional_embedding.shape[0])

    @property
    def image_size(self) -> int:
        patches = len(self.vision_encoder.positional_embedding) - 1
        patch = int(self.vision_encoder.conv1.kernel_size[1])
        return patch * math.isqrt(patches)


def _blocks(state: Mapping[str, torch.Tensor], tower: str) -> int:
    start = f"{tower}transformer.resblocks."
    return len({name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)})
