"""choose_caption: the caption that fits a clip best, of those that several stages wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.tables import clip_table
from clipmill.stages.models.embedders import ClipEmbedder, EmbedderStage
from clipmill.stages.models.long_texts import LongText, divided
from clipmill.stages.models.vectors import frame_mean, stored
from clipmill.stages.protocol import ModelCheck, Rows, Stage, Transform, Workspace
from clipmill.stages.wires import TEXTS, ColumnName, check_column

CANDIDATE = pa.struct(
    [("source", pa.string()), ("text", pa.string()), ("similarity", pa.float32())]
)
CHOSEN_CAPTIONS = clip_table(
    ("caption_chosen", pa.string()),
    ("chosen_from", pa.string()),
    ("chosen_similarity", pa.float32()),
    # All of them, in the order of the setting.
    ("caption_candidates", pa.list_(CANDIDATE)),
    ("chosen_reason", pa.string()),
)


class ChooseCaption(EmbedderStage):
    """Of several captions of a clip, the one whose text is most similar to its frames.

    Similarity is that of score_similarity: the cosine of the text and the clip's frame mean. All
    captions are kept with theirs. A clip without a caption that can be scored has none chosen, and
    chosen_reason says why.
    """

    name: ClassVar[str] = "choose_caption"
    writes: ClassVar[pa.Schema] = CHOSEN_CAPTIONS

    embeddings: str = Field(
        "embed_clips",
        pattern=r"^\w+$",
        description="label of the embed_clips whose embeddings are compared; it must use the same "
        "model",
    )
    captions: tuple[ColumnName, ...] = Field(
        ("summarize_captions.caption", "caption_frames.caption_coarse"),
        min_length=1,
        description="columns of captions, LABEL.COLUMN: each a text or a list of texts, all of "
        "which are candidates",
    )
    margin: float = Field(
        0.0,
        ge=0,
        le=2,
        description="a caption replaces one that is named before it only if it is more similar by "
        "more than this",
    )
    long_text: LongText = Field(
        "truncate",
        description="what is scored of a text with more tokens than the model reads: its beginning "
        "(truncate), or its sentences, of whose scores the mean or the best is taken",
    )

    @field_validator("captions")
    @classmethod
    def _check_places(cls, places: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(places)) < len(places):
            raise ValueError("a column is named twice")
        return places

    def columns_read(self) -> tuple[str, ...]:
        texts = [f"{place}? as text_{i}" for i, place in enumerate(self.captions)]
        return (f"{self.embeddings}.embeddings", *texts)

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        """ValueError if a caption can't come, or the embeddings are those of another model."""
        self.same_model(self.embeddings, before)
        for place in self.captions:
            check_column(f"captions has {place}", place, before, TEXTS)

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        yield self.embedder_check(label, "text")

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        embedder = self.load("text")
        yield lambda batch: self._chosen(batch, embedder)

    def _chosen(self, batch: pa.Table, embedder: ClipEmbedder) -> pa.Table:
        clips = [self._candidates(row) for row in batch.drop_columns(["embeddings"]).to_pylist()]
        texts = divided((text for clip in clips for _, text in clip), embedder, self.long_text)
        parts = list(dict.fromkeys(part for text in texts.values() for part in text.parts))
        vectors = dict(zip(parts, embedder.embed_texts(parts), strict=True))
        rows = Rows(self)
        keys = batch["clip_id"].to_pylist()
        for key, frames, clip in zip(keys, stored(batch["embeddings"]), clips, strict=True):
            scores: dict[str, float] = {}
            if len(frames):
                mean = frame_mean(frames)
                own = [part for _, text in clip for part in texts[text].parts]
                cosines = {part: self._cosine(vectors[part], mean) for part in own}
                scores = {text: texts[text].score(cosines, self.long_text) for _, text in clip}
            rows.keep(key, **self._columns(clip, scores, has_frames=len(frames) > 0))
        return rows.table()

    def _candidates(self, row: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The captions of a clip with the columns that they are from, each text once."""
        found: dict[str, str] = {}
        for i, place in enumerate(self.captions):
            value = row.get(f"text_{i}") or []
            listed = [value] if isinstance(value, str) else value
            for one in listed:
                text = one if isinstance(one, str) else (one or {}).get("text")
                if text and text.strip():
                    found.setdefault(text, place)
        return [(place, text) for text, place in found.items()]

    def _columns(
        self, clip: list[tuple[str, str]], scores: Mapping[str, float], *, has_frames: bool
    ) -> dict[str, Any]:
        scored = {text: score for text, score in scores.items() if np.isfinite(score)}
        columns: dict[str, Any] = {
            "caption_candidates": [
                {"source": place, "text": text, "similarity": scored.get(text)}
                for place, text in clip
            ]
        }
        best: tuple[str, str] | None = None
        for place, text in clip:
            if text in scored and (best is None or scored[text] > scored[best[1]] + self.margin):
                best = place, text
        if best is not None:
            place, text = best
            named = {"caption_chosen": text, "chosen_from": place}
            return {**columns, **named, "chosen_similarity": scored[text]}
        reason = (
            f"the clip has none of {', '.join(self.captions)}"
            if not clip
            else f"{self.embeddings} has no embedding of this clip"
            if not has_frames
            else f"{self.model} gave no finite score"
        )
        return {**columns, "chosen_reason": reason}

    def _cosine(self, text: np.ndarray, mean: np.ndarray) -> float:
        if len(text) != len(mean):
            raise ClipmillError(
                f"choose_caption: the embeddings of {self.embeddings} have {len(mean)} numbers, "
                f"those of {self.model} have {len(text)}; set choose_caption.model to the model "
                f"of {self.embeddings}"
            )
        return float(text @ mean)
