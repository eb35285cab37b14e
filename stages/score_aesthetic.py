"""score_aesthetic: how pleasing a clip's frames look, by one of LAION's aesthetic heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.tables import clip_table
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.models.aesthetic_heads import AestheticHead, load_head
from clipmill.stages.models.embedders import EmbedderStage
from clipmill.stages.models.places import note_place
from clipmill.stages.models.vectors import stored
from clipmill.stages.protocol import ModelCheck, Rows, Stage, Transform, Workspace
from clipmill.stages.references import DataFile

AESTHETIC = clip_table(("aesthetic", pa.float32()), ("aesthetic_reason", pa.string()))

_OVER_FRAMES: dict[str, Callable[[np.ndarray], Any]] = {
    "max": np.max,
    "mean": np.mean,
    "min": np.min,
}


class ScoreAesthetic(Stage):
    """The head's score of each embedded frame, then one number per clip.

    The embeddings must be those of the model that the head was trained on (OpenAI's CLIP of the
    size in the head's name, for LAION's). Scores of V1 and V2 heads are not comparable: give a
    second scorer its own label.
    """

    name: ClassVar[str] = "score_aesthetic"
    writes: ClassVar[pa.Schema] = AESTHETIC
    score: ClassVar[str | None] = "aesthetic"

    head: DataFile = Field(
        description="weights of the head: LAION's V1 or V2 .pth, or safetensors with weight (1 × d)"
        " and bias (1); a path, or URL#sha256=HEX"
    )
    embeddings: str = Field(
        "embed_clips", description="label of the embed_clips whose embeddings are scored"
    )
    over_frames: Literal["max", "mean", "min"] = Field(
        "max", description="how the frames' scores become the clip's; InternVid uses max"
    )

    def columns_read(self) -> tuple[str, ...]:
        return (f"{self.embeddings}.embeddings",)

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        maker = before.get(self.embeddings)
        model = maker.model if isinstance(maker, EmbedderStage) else None
        has_pair = model is not None and model.hub is not None

        def run() -> str:
            from clipmill.stages.models.checks.embedders import check_head

            path = local_file(self.head, setting=f"{label}.head")
            return check_head(path, model, f"{label}.head", self.embeddings)

        yield ModelCheck(
            "head", run, (str(model),), ("torch", "open_clip") if has_pair else ("torch",)
        )

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        head = load_head(local_file(self.head, setting="score_aesthetic.head"))
        note_place("score_aesthetic.head", "cpu", "float64")

        def transform(batch: pa.Table) -> pa.Table:
            rows = Rows(self)
            clips = stored(batch["embeddings"])
            for key, frames in zip(batch["clip_id"].to_pylist(), clips, strict=True):
                score, reason = self._score(frames, head)
                rows.keep(key, aesthetic=score, aesthetic_reason=reason)
            return rows.table()

        yield transform

    def _score(self, frames: np.ndarray, head: AestheticHead) -> tuple[float | None, str | None]:
        if not len(frames):
            return None, f"{self.embeddings} has no embedding of this clip"
        if frames.shape[1] != head.dimensions:
            raise ClipmillError(
                f"score_aesthetic: the head {self.head.name} scores embeddings of "
                f"{head.dimensions} numbers, those of {self.embeddings} have {frames.shape[1]}; "
                "set embed_clips.model to the model that the head was trained on, or use the head "
                "of that model (512: ViT-B/32 and B/16, 768: ViT-L/14)"
            )
        with np.errstate(all="ignore"):
            # As stored: a finite number may overflow the shorter type.
            score = float(np.float32(_OVER_FRAMES[self.over_frames](head(frames))))
        return (score, None) if np.isfinite(score) else (None, "the score is not finite")
