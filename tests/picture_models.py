"""Tiny image classifiers and object detectors, of transformers' own classes with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.models_factory import hf

LABELS = {0: "normal", 1: "nsfw", 2: "Drawing"}
THINGS = {0: "person", 1: "dog", 2: "car"}
_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def _named(names: dict[int, str]) -> dict[str, Any]:
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}}


def _saved(model: Any, processor: Any, folder: Path, noise: float = 0.1) -> Path:
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            # Fresh weights give the same scores to all pictures.
            parameter.add_(torch.randn_like(parameter) * noise)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def vit(folder: Path, **changes: Any) -> Path:
    """As Falconsai/nsfw_image_detection: squashed, mean and deviation of 0.5."""
    config = hf.ViTConfig(**_SMALL, **_named(LABELS), **changes)
    processor = hf.ViTImageProcessor(size={"height": 32, "width": 32}, resample=2)
    return _saved(hf.ViTForImageClassification(config), processor, folder)


def convnext(folder: Path) -> Path:
    """Resized to 224 / 0.875 and cropped in the middle."""
    config = hf.ConvNextConfig(
        num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], **_named(LABELS), image_size=48
    )
    processor = hf.ConvNextImageProcessor(size={"shortest_edge": 48}, crop_pct=0.875)
    return _saved(hf.ConvNextForImageClassification(config), processor, folder)


def siglip(folder: Path) -> Path:
    config = hf.SiglipConfig(
        vision_config=_SMALL,
        text_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 99,
        },
        **_named(LABELS),
    )
    processor = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    return _saved(hf.SiglipForImageClassification(config), processor, folder)


def rt_detr_v2(folder: Path) -> Path:
    backbone = hf.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = hf.RTDetrV2Config(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[16, 16, 16],
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        encoder_layers=1,
        decoder_in_channels=[16, 16, 16],
        feat_strides=[8, 16, 32],
        d_model=16,
        num_queries=12,
        decoder_layers=2,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        hidden_expansion=0.5,
        **_named(THINGS),
    )
    processor = hf.RTDetrImageProcessor(size={"height": 64, "width": 64})
    return _saved(hf.RTDetrV2ForObjectDetection(config), processor, folder, 0.5)


def yolos(folder: Path) -> Path:
    """Pictures keep their proportions, so that only equal ones fit a batch without padding."""
    small = {**_SMALL, "image_size": [64, 96]}
    config = hf.YolosConfig(**small, num_detection_tokens=10, **_named(THINGS))
    processor = hf.YolosImageProcessor(size={"shortest_edge": 48, "longest_edge": 96})
    return _saved(hf.YolosForObjectDetection(config), processor, folder, 0.5)
