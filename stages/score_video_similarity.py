"""score_video_similarity: how well a clip's caption fits it, by a model that sees motion."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill.schemas.tables import clip_table
from clipmill.stages.models.embedders import DType
from clipmill.stages.models.long_texts import TextScorer, divided, text_columns
from clipmill.stages.models.video_text.base import VideoTextModel
from clipmill.stages.models.video_text.choose import load_video_text_model
from clipmill.stages.protocol import (
    FramePick,
    ModelCheck,
    Rows,
    Stage,
    Starts,
    Transform,
    Uniform,
    Workspace,
    resource,
)
from clipmill.stages.references import ModelReference
from clipmill.stages.wires import ONE_TEXT, ColumnName, check_wires

logger = logging.getLogger(__name__)

VIDEO_SIMILARITY = clip_table(
    ("video_similarity", pa.float32()),
    ("video_similarity_reason", pa.string()),
    *text_columns("video_similarity"),
)


class ScoreVideoSimilarity(TextScorer):
    """The cosine, from -1 to 1, of a clip and its caption by a video–text model.

    The models are X-CLIP, ViCLIP, VideoPrism and UMT (UMT-SIM). Their scales differ, also from that
    of score_similarity. A clip without a caption has no score.
    """

    name: ClassVar[str] = "score_video_similarity"
    writes: ClassVar[pa.Schema] = VIDEO_SIMILARITY
    score: ClassVar[str | None] = "video_similarity"

    model: ModelReference = Field(
        ModelReference(hub="microsoft/xclip-base-patch32"),
        description="hub id or folder of X-CLIP, VideoPrism with text, or ViCLIP, or a folder with "
        "the published .pth of ViCLIP or UMT",
    )
    caption: ColumnName = Field(
        "summarize_captions.caption", description="label.column of the text to compare"
    )
    frames_per_clip: int = Field(
        8,
        ge=1,
        description="frames to use per clip; if the model takes another number, "
        "evenly spread ones are used, or some twice; UMT takes any number (UMT-SIM: 4)",
    )
    frame_choice: Literal["middles", "starts"] = Field(
        "middles",
        description="frames nearest to the middles of equal parts of the clip, or to their starts, "
        "as in ViCLIP's demo",
    )
    preprocessing: Literal["demo", "evaluation", "vbench"] | None = Field(
        None,
        description="how frames are prepared, where more than one way was published: for ViCLIP "
        "demo (the default), evaluation or vbench",
    )
    dtype: DType = Field(
        "auto",
        description="number format of the model; auto is bfloat16 if the CPU or GPU has "
        "instructions for it, otherwise float32",
    )
    batch_clips: int = resource(
        8, ge=1, description="clips per model call; halved when memory runs out"
    )

    @property
    def most_gpus(self) -> float | None:
        return 1.0

    def columns_read(self) -> tuple[str, ...]:
        return (f"{self.caption}? as text",)

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        """ValueError if the caption can't come, or is no text."""
        check_wires(self, before, {"caption": ONE_TEXT})

    def frames_picked(self) -> tuple[FramePick, ...]:
        count = self.frames_per_clip
        return (Uniform(count) if self.frame_choice == "middles" else Starts(count),)

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        def run() -> str:
            from clipmill.stages.models.checks.embedders import check_video_text

            return check_video_text(self.model, f"{label}.model", self.preprocessing)

        yield ModelCheck("model", run, (self.preprocessing,), ("torch", "transformers"))

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        model = load_video_text_model(
            self.model,
            setting=f"{self.name}.model",
            dtype=self.dtype,
            batch_clips=self.batch_clips,
            preparation=self.preprocessing,
        )
        if model.frames is not None and model.frames > self.frames_per_clip:
            logger.info(
                "%s shows %s some of the %d frames per clip twice: it takes %d",
                self.name,
                self.model,
                self.frames_per_clip,
                model.frames,
            )

        def transform(batch: pa.Table) -> pa.Table:
            return self._scored(batch, model)

        yield transform

    def _scored(self, batch: pa.Table, model: VideoTextModel) -> pa.Table:
        rows = Rows(self)
        ready = [row for row in batch.to_pylist() if self._can_be_scored(row, rows)]
        texts = divided(
            (row["text"] for row in ready),
            model,
            self.long_text,
            sentence_scores=self.sentence_scores,
        )
        own = [texts[row["text"]] for row in ready]
        cosines = model.cosines(
            [[frame["jpeg"] for frame in row["frames"]] for row in ready],
            [text.scored for text in own],
        )
        for row, text, found in zip(ready, own, cosines, strict=True):
            scores = dict(zip(text.scored, found.tolist(), strict=True))
            score = text.score(scores, self.long_text)
            finite = bool(np.isfinite(score))
            rows.keep(
                row["clip_id"],
                video_similarity=score if finite else None,
                video_similarity_reason=None
                if finite
                else f"{self.model} gave a score that is not finite",
                **text.columns("video_similarity", scores),
            )
        return rows.table()

    def _can_be_scored(self, row: dict[str, Any], rows: Rows) -> bool:
        if not row["frames"]:
            rows.fail(row["clip_id"], "bad_media", "no frame of this clip can be read")
        elif not (row.get("text") or "").strip():
            rows.keep(row["clip_id"], video_similarity_reason=f"the clip has no {self.caption}")
        else:
            return True
        return False
