"""score_video_similarity: how well a clip's caption fits it, by a model that sees motion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill.schemas.tables import clip_table
from clipmill.stages.models.embedders import DType
from clipmill.stages.models.video_text import VideoTextModel
from clipmill.stages.protocol import FramePick, Rows, Stage, Transform, Uniform, Workspace, resource
from clipmill.stages.references import ModelReference

VIDEO_SIMILARITY = clip_table(
    ("video_similarity", pa.float32()), ("video_similarity_reason", pa.string())
)


class ScoreVideoSimilarity(Stage):
    """The cosine, from -1 to 1, of a clip and its caption by a video–text model (X-CLIP).

    Not comparable with the similarity of score_similarity. A clip without a caption has none.
    """

    name: ClassVar[str] = "score_video_similarity"
    writes: ClassVar[pa.Schema] = VIDEO_SIMILARITY
    score: ClassVar[str | None] = "video_similarity"

    model: ModelReference = Field(
        ModelReference(hub="microsoft/xclip-base-patch32"),
        description="an X-CLIP model of transformers: hub id or folder",
    )
    caption: str = Field(
        "summarize_captions.caption",
        pattern=r"^\w+\.\w+$",
        description="label.column of the text to compare",
    )
    frames_per_clip: int = Field(
        8,
        ge=1,
        description="frames to use per clip; if the model takes another number, "
        "evenly spread ones are used",
    )
    dtype: DType = Field(
        "auto",
        description="number format of the model; auto is bfloat16 if the CPU or GPU has "
        "instructions for it, otherwise float32",
    )
    batch_clips: int = resource(
        8, ge=1, description="clips per model call; halved when memory runs out"
    )

    def columns_read(self) -> tuple[str, ...]:
        return (f"{self.caption}? as text",)

    def frames_picked(self) -> tuple[FramePick, ...]:
        return (Uniform(self.frames_per_clip),)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        model = VideoTextModel(
            self.model, setting=f"{self.name}.model", dtype=self.dtype, batch_clips=self.batch_clips
        )

        def transform(batch: pa.Table) -> pa.Table:
            rows = Rows(self)
            ready = [row for row in batch.to_pylist() if self._can_be_scored(row, rows)]
            scores = model.cosines(
                [[frame["jpeg"] for frame in row["frames"]] for row in ready],
                [row["text"] for row in ready],
            )
            for row, score in zip(ready, scores.tolist(), strict=True):
                finite = bool(np.isfinite(score))
                rows.keep(
                    row["clip_id"],
                    video_similarity=score if finite else None,
                    video_similarity_reason=None
                    if finite
                    else f"{self.model} gave a score that is not finite",
                )
            return rows.table()

        yield transform

    def _can_be_scored(self, row: dict[str, Any], rows: Rows) -> bool:
        if not row["frames"]:
            rows.fail(row["clip_id"], "bad_media", "no frame of this clip can be read")
        elif not (row.get("text") or "").strip():
            rows.keep(row["clip_id"], video_similarity_reason=f"the clip has no {self.caption}")
        else:
            return True
        return False
