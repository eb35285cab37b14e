"""Rows of a stage that stores embeddings of a clip's frames."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from clipmill.stages.models.image_embedders import ImageEmbedder
from clipmill.stages.models.vectors import as_column, unit
from clipmill.stages.protocol import Rows, Stage

SIMILARITY = "frame_similarity"
"""The column of the smallest cosine of neighbouring frames."""


def embedded_frames(
    stage: Stage, batch: pa.Table, embedder: ImageEmbedder, model: object
) -> pa.Table:
    """One row per clip; one without frames is a failure."""
    keys, frames = batch["clip_id"].to_pylist(), batch["frames"].to_pylist()
    everything = embedder.embed_images([f["jpeg"] for clip in frames for f in clip or ()])
    ends = np.cumsum([len(clip or ()) for clip in frames])
    kept, seconds, vectors, failed = [], [], [], Rows(stage)
    for key, clip, end in zip(keys, frames, ends, strict=True):
        own = everything[end - len(clip or ()) : end]
        if not clip:
            failed.fail(key, "bad_media", "no frame of this clip can be read")
        elif not np.isfinite(own).all():
            failed.fail(key, "model", f"{model} gave an embedding that is not finite")
        else:
            kept.append(key)
            seconds.append([frame["seconds"] for frame in clip])
            vectors.append(own)
    schema = stage.table_schema
    made = {
        "clip_id": pa.array(kept, pa.string()),
        "embeddings": as_column(vectors),
        "embedding_seconds": pa.array(seconds, schema.field("embedding_seconds").type),
        SIMILARITY: pa.array([_least_cosine(own) for own in vectors], pa.float32()),
    }
    columns = [made[f.name] if f.name in made else pa.nulls(len(kept), f.type) for f in schema]
    return pa.concat_tables([pa.table(columns, schema=schema), failed.table()])


def _least_cosine(frames: np.ndarray) -> float | None:
    """The smallest cosine of neighbours; None of a single frame."""
    units = unit(frames)
    return float((units[1:] * units[:-1]).sum(axis=1).min()) if len(units) > 1 else None
