"""Tiny random contrastive models of open_clip's own classes, and frames for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from clipmill.schemas.tables import FRAME
from clipmill.stages.models.torch_setup import prepare_torch
from clipmill.stages.protocol import Stage, Workspace


def save_tiny_clip(
    folder: Path,
    *,
    dimensions: int = 24,
    seed: int = 0,
    context: int = 16,
    size: int = 32,
    preprocessing: dict[str, Any] | None = None,
) -> Path:
    """A CLIP with one layer in each tower and CLIP's tokenizer; each seed has other weights."""
    prepare_torch()
    import open_clip
    import torch
    from safetensors.torch import save_file

    configuration = {
        "embed_dim": dimensions,
        "vision_cfg": {
            "image_size": size,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": context,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 1,
        },
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.model.CLIP(**configuration)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": configuration, "preprocess_cfg": preprocessing or {}})
    )
    return folder


def frame_jpeg(seed: int, height: int = 90, width: int = 160) -> bytes:
    """A JPEG of coarse random patches; any two differ clearly."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    image = cv2.resize(patches, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def clips_with_frames(seeds: dict[str, Sequence[int]]) -> pa.Table:
    """Input rows of a stage that reads frames: clips whose frames are `frame_jpeg` of seeds."""
    frames = [
        [
            {"frame_number": i, "seconds": i / 2, "jpeg": frame_jpeg(seed)}
            for i, seed in enumerate(clip)
        ]
        for clip in seeds.values()
    ]
    return pa.table({"clip_id": list(seeds), "frames": pa.array(frames, pa.list_(FRAME))})


def transformed(stage: Stage, folder: Path, *batches: pa.Table) -> list[dict[str, Any]]:
    """The rows that a stage makes from batches, opened once, checked against its schema."""
    made = []
    with stage.open(Workspace(folder, folder / "scratch")) as transform:
        for batch in batches:
            table = transform(batch)
            assert table.schema.equals(stage.table_schema)
            made.append(table)
    return pa.concat_tables(made).to_pylist()
