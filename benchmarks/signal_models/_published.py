"""Models of published sizes with random weights, as folders of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def vit_base(folder: Path) -> Path:
    """The size of Falconsai/nsfw_image_detection."""
    import transformers

    library: Any = transformers
    config = library.ViTConfig(id2label={0: "normal", 1: "nsfw"}, label2id={"normal": 0, "nsfw": 1})
    library.ViTForImageClassification(config).save_pretrained(folder)
    library.ViTImageProcessor(
        size={"height": 224, "width": 224}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    return folder


def rt_detr_v2_r18(folder: Path) -> Path:
    """The size of PekingU/rtdetr_v2_r18vd."""
    import transformers

    library: Any = transformers
    backbone = library.RTDetrResNetConfig(
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    names = {number: "person" if number == 0 else f"thing {number}" for number in range(80)}
    config = library.RTDetrV2Config(
        backbone_config=backbone,
        encoder_in_channels=[128, 256, 512],
        hidden_expansion=0.5,
        decoder_layers=3,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    library.RTDetrV2ForObjectDetection(config).save_pretrained(folder)
    library.RTDetrImageProcessor(size={"height": 640, "width": 640}).save_pretrained(folder)
    return folder
