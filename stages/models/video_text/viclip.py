"""ViCLIP (InternVid), from its published checkpoints or the repositories OpenGVLab/ViCLIP-…-hf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from clipmill.stages.models.video_text.base import FromWeights, Loading
from clipmill.stages.models.video_text.frame_preparation import CLIP, IMAGENET, FramePreparation
from clipmill.stages.models.video_text.weights import read_state, weights_file

if TYPE_CHECKING:
    import torch

    from clipmill.stages.models.video_text.viclip_network import ViCLIPNetwork

SIGN = "vision_encoder.temporal_positional_embedding"
"""A tensor that only ViCLIP's weights have."""


class ViCLIP(FromWeights):
    """Eight frames in one transformer over space and time; CLIP's tokenizer, 32 tokens."""

    preparations: ClassVar[Mapping[str, FramePreparation]] = {
        # InternVid's demo: OpenCV's bilinear resize, whatever the proportions.
        "demo": FramePreparation((224, 224), *IMAGENET, interpolation="bilinear", antialias=False),
        # InternVideo's evaluation: torchvision's bicubic resize of tensors, as it was then.
        "evaluation": FramePreparation((224, 224), *IMAGENET, antialias=False),
        # VBench's overall consistency: the middle square, and CLIP's mean and deviation.
        "vbench": FramePreparation((224, 224), *CLIP, mode="crop", antialias=False),
    }

    @classmethod
    def check(cls, folder: Path) -> None:
        _network(read_state(weights_file(folder), only_shapes=True))

    def _load(self, loading: Loading) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        network = _network(read_state(weights_file(loading.folder)))
        self._network = network.to(self.device, self.dtype).eval()
        self.frames, self.context = network.frames, network.context
        size = (network.image_size, network.image_size)
        self._prepare = replace(self.preparation(loading.setting, loading.preparation), size=size)
        # Keeps the end token of a text that it truncates.
        self._tokenize = SimpleTokenizer(context_length=self.context)

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return [len(self._tokenize.encode(text)) + 2 for text in texts]

    def _embedded_clips(self, clips: Sequence[Sequence[bytes]]) -> torch.Tensor:
        pixels = self._pixels(clips, self._prepare)
        found: torch.Tensor = self._network.vision_encoder(pixels)
        return found.unsqueeze(1)

    def _embedded_texts(self, texts: Sequence[str]) -> torch.Tensor:
        found: torch.Tensor = self._network.text_encoder(
            self._tokenize(list(texts)).to(self.device)
        )
        return found


def _network(state: Mapping[str, torch.Tensor]) -> ViCLIPNetwork:
    import torch

    from clipmill.stages.models.video_text.viclip_network import ViCLIPNetwork

    with torch.device("meta"):
        network = ViCLIPNetwork(state)
    network.load_state_dict(state, assign=True)
    return network
