"""open_clip's own pairs of architecture and weights, written `open_clip:ViT-L-14/openai`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clipmill.schemas.errors import UsageError
from clipmill.stages.models.torch_setup import prepare_torch

PAIR = "open_clip:"


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that open_clip lists under a tag: where they are stored and what they need."""

    architecture: str
    repository: str
    quick_gelu: bool
    preprocessing: dict[str, Any]


def published_weights(hub: str) -> PublishedWeights:
    """What `open_clip:ARCHITECTURE/WEIGHTS` stands for.

    Raises UsageError if open_clip doesn't have this pair, or not on the hub.
    """
    prepare_torch()
    import open_clip

    architecture, _, tag = hub.removeprefix(PAIR).partition("/")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        known = f"its weights: {', '.join(tags)}" if tags else "open_clip has no such architecture"
        raise UsageError(
            f"{hub}: expected open_clip:ARCHITECTURE/WEIGHTS, such as "
            f"open_clip:ViT-B-32/openai; {known}"
        )
    found = open_clip.get_pretrained_cfg(architecture, tag)
    place = found.get("hf_hub", "")
    if not place:
        raise UsageError(
            f"{hub}: these weights are not on the hub; save the model with "
            "open_clip_config.json in a folder and give that folder"
        )
    preprocessing = {
        key: found[key]
        for key in ("mean", "std", "interpolation", "resize_mode")
        if found.get(key) is not None
    }
    return PublishedWeights(
        architecture,
        "/".join(place.split("/")[:2]),
        bool(found.get("quick_gelu", False)),
        preprocessing,
    )
