"""Shared by stages that look at each of a clip's kept frames by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from clipmill.stages.models.frame_batches import FrameBatches
from clipmill.stages.protocol import FramePick, Rows, Stage, Transform, Uniform

Columns = Callable[[Sequence[dict[str, Any]], list[Any]], dict[str, Any]]


class FrameStage(Stage):
    """Gives evenly spread frames to a model, and makes a clip's columns of its results."""

    frames_per_clip: int = Field(4, ge=1, description="frames to look at per clip")

    def frames_picked(self) -> tuple[FramePick, ...]:
        return (Uniform(self.frames_per_clip),)

    @property
    def threads(self) -> int:
        return math.ceil(self.cpus)

    def transform_by(self, batches: FrameBatches, columns: Columns) -> Transform:
        """`columns` makes a clip's columns of its frames and of what the model gave for each."""

        def transform(batch: pa.Table) -> pa.Table:
            rows = Rows(self)
            clips = batch["frames"].to_pylist()
            results = batches.of_clips(clips)
            for key, frames, found in zip(
                batch["clip_id"].to_pylist(), clips, results, strict=True
            ):
                if frames:
                    rows.keep(key, **columns(frames, found))
                else:
                    rows.fail(key, "bad_media", "no frame of this clip can be read")
            return rows.table()

        return transform


def scores_at(frames: Sequence[dict[str, Any]], found: Sequence[float]) -> list[dict[str, float]]:
    """Each frame's score, as SCORE_AT."""
    return [
        {"seconds": frame["seconds"], "score": score}
        for frame, score in zip(frames, found, strict=True)
    ]
