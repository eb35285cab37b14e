"""Contrastive models of open_clip's own classes, tiny and random, saved the way hubs hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.models.torch_setup import prepare_torch


def save_tiny_clip(
    folder: Path, *, dimensions: int = 24, seed: int = 0, context: int = 16, size: int = 32,
    preprocessing: dict[str, Any] | None = None,
) -> Path:
    """A CLIP with one layer in each tower and CLIP's tokenizer; other seeds, other weights."""
    prepare_torch()
    import open_clip
    import torch
    from safetensors.torch import save_file

    configuration = {
        "embed_dim": dimensions,
        "vision_cfg": {"image_size": size, "layers": 1, "width": 32, "head_width": 16,
                       "patch_size": 8},
        "text_cfg": {"context_length": context, "vocab_size": 49408, "width": 32, "heads": 2,
                     "layers": 1},
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.model.CLIP(**configuration)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": configuration, "preprocess_cfg": preprocessing or {}}))
    return folder
