"""Small vision models with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipmill.stages.models.torch_setup import prepare_torch

SMALL_VISION = "mobilenetv3_small_050"


def save_vision_weights(path: Path) -> Path:
    """Weights of a small model of timm, with its classifier."""
    prepare_torch()
    timm = pytest.importorskip("timm", reason="needs clipmill[signals]")
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(timm.create_model(SMALL_VISION, num_classes=7).state_dict(), path)
    return path


def save_transformers_vision(folder: Path, kind: str) -> Path:
    """A model of transformers with the image processor that published ones of its kind have."""
    prepare_torch()
    import torch
    import transformers as hf

    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {"image_size": 28, "patch_size": 14, **tiny}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "dinov2":
            hf.Dinov2Model(hf.Dinov2Config(**sizes)).save_pretrained(folder)
            crop = {"height": 28, "width": 28}
            processor = hf.BitImageProcessor(size={"shortest_edge": 32}, crop_size=crop)
        elif kind == "vit":
            hf.ViTModel(hf.ViTConfig(**sizes)).save_pretrained(folder)
            processor = hf.ViTImageProcessor(size={"height": 28, "width": 28})
        else:
            config = hf.ResNetConfig(hidden_sizes=[16, 32], depths=[1, 1])
            hf.ResNetModel(config).save_pretrained(folder)
            processor = hf.ConvNextImageProcessor(size={"shortest_edge": 28}, crop_pct=0.875)
    processor.save_pretrained(folder)
    return folder
