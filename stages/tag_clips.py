"""tag_clips: the tags of a closed vocabulary that fit a clip, by a contrastive model, zero-shot."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.tables import TAG, clip_table
from clipmill.schemas.words import counted
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.models.embedders import IMAGE_CALLS_AT_ONCE, ClipEmbedder, EmbedderStage
from clipmill.stages.models.vectors import stored, unit
from clipmill.stages.protocol import (
    FramePick,
    ModelCheck,
    Rows,
    Stage,
    Transform,
    Uniform,
    Workspace,
)
from clipmill.stages.references import DataFile

logger = logging.getLogger(__name__)

TAGS = clip_table(("tags", pa.list_(TAG)))

SHIPPED_VOCABULARY = Path(__file__).parent / "data" / "tags.txt"


class TagClips(EmbedderStage):
    """Tags with scores, best first, from a vocabulary with one tag per line (`#` starts a comment).

    A frame's score for a tag is the cosine of their embeddings (scores: cosine), or the softmax
    of these over the whole vocabulary at the model's own temperature, so that a frame's scores sum
    to 1 (scores: softmax). For SigLIP, which was trained so, it is the sigmoid at the model's own
    temperature and bias: the probability that a tag fits, whatever else is in the vocabulary
    (scores: sigmoid). Over several templates a tag's text embeddings are averaged.
    """

    name: ClassVar[str] = "tag_clips"
    writes: ClassVar[pa.Schema] = TAGS

    vocabulary: DataFile | None = Field(
        None,
        description="file of tags, one per line; by default the general list that is "
        "included (stages/data/tags.txt)",
    )
    templates: tuple[str, ...] = Field(
        ("a photo of {tag}.",),
        min_length=1,
        description="texts that represent a tag; {tag} is replaced by it",
    )
    top_k: int = Field(8, ge=1, description="maximum number of tags per clip")
    min_score: float = Field(
        0.05,
        description="tags below this score are left out; adjust it for scores: cosine, "
        "where CLIP gives 0.15–0.35",
    )
    scores: Literal["softmax", "cosine", "sigmoid"] = Field(
        "softmax", description="the kind of score; sigmoid is for SigLIP models"
    )
    over_frames: Literal["mean", "max"] = Field(
        "mean", description="how the scores of a clip's frames become the clip's"
    )
    frames_per_clip: int = Field(4, ge=1, description="frames to use per clip")
    embeddings: str | None = Field(
        None,
        description="label of an earlier embed_clips with the same model, whose "
        "embeddings are reused, so that no frame is embedded twice",
    )

    @field_validator("templates", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("templates")
    @classmethod
    def _with_tag(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if lacking := [template for template in value if "{tag}" not in template]:
            raise ValueError(f"the template {lacking[0]!r} lacks {{tag}}")
        return value

    def columns_read(self) -> tuple[str, ...]:
        return (f"{self.embeddings}.embeddings",) if self.embeddings else ()

    @property
    def calls_at_once(self) -> int:
        return 1 if self.embeddings else IMAGE_CALLS_AT_ONCE

    def frames_picked(self) -> tuple[FramePick, ...]:
        return () if self.embeddings else (Uniform(self.frames_per_clip),)

    def prompts(self) -> dict[str, str]:
        return {"templates": "\n".join(self.templates)}

    def identity(self) -> dict[str, Any]:
        shipped = {"vocabulary": DataFile(path=str(SHIPPED_VOCABULARY)).identity()}
        return super().identity() if self.vocabulary else {**super().identity(), **shipped}

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        """ValueError if the embeddings that it reads are those of another model."""
        if self.embeddings:
            self.same_model(self.embeddings, before)

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        yield self.embedder_check(label, *(("text",) if self.embeddings else ("image", "text")))
        if self.vocabulary is not None:
            yield ModelCheck("vocabulary", self._check_vocabulary)

    def _check_vocabulary(self) -> str:
        return counted(len(self._vocabulary()), "tag")

    def _vocabulary(self) -> list[str]:
        return read_vocabulary(
            local_file(self.vocabulary, setting="tag_clips.vocabulary")
            if self.vocabulary
            else SHIPPED_VOCABULARY
        )

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        tags = self._vocabulary()
        embedder = self.load("text") if self.embeddings else self.load("image", "text")
        self._check_kind_of_score(embedder)
        vectors = self._tag_vectors(tags, embedder)

        def transform(batch: pa.Table) -> pa.Table:
            rows = Rows(self)
            clips = self._frame_vectors(batch, embedder)
            for key, frames in zip(batch["clip_id"].to_pylist(), clips, strict=True):
                if not len(frames):
                    rows.fail(key, "bad_media", "no frame of this clip can be read")
                    continue
                if frames.shape[1] != vectors.shape[1]:
                    raise ClipmillError(
                        f"tag_clips: the embeddings of {self.embeddings} have {frames.shape[1]} "
                        f"numbers, those of {self.model} have {vectors.shape[1]}; use one model"
                    )
                scores = self._scores(frames @ vectors.T, embedder)
                if np.isfinite(scores).all():
                    rows.keep(key, tags=self._best(tags, scores))
                else:
                    rows.fail(key, "model", f"{self.model} gave a score that is not finite")
            return rows.table()

        yield transform

    def _tag_vectors(self, tags: list[str], embedder: ClipEmbedder) -> np.ndarray:
        texts = [template.replace("{tag}", tag) for tag in tags for template in self.templates]
        found = embedder.embed_texts(texts).reshape(len(tags), len(self.templates), -1)
        return unit(found.astype(np.float64).mean(axis=1))

    def _frame_vectors(self, batch: pa.Table, embedder: ClipEmbedder) -> list[np.ndarray]:
        if self.embeddings:
            return stored(batch["embeddings"])
        frames = [clip or [] for clip in batch["frames"].to_pylist()]
        everything = embedder.embed_images([f["jpeg"] for clip in frames for f in clip])
        ends = np.cumsum([len(clip) for clip in frames])
        return [
            everything[end - len(clip) : end].astype(np.float64)
            for clip, end in zip(frames, ends, strict=True)
        ]

    def _check_kind_of_score(self, embedder: ClipEmbedder) -> None:
        if self.scores == "sigmoid" and embedder.logit_bias is None:
            raise UsageError(
                f"tag_clips.scores: {self.model} has no bias for a sigmoid, as SigLIP models have; "
                "use softmax or cosine"
            )
        if self.scores == "softmax" and embedder.logit_bias is not None:
            logger.warning(
                "%s was trained with a sigmoid, not a softmax; tag_clips.scores=sigmoid gives each "
                "tag's own probability",
                self.model,
            )

    def _scores(self, cosines: np.ndarray, embedder: ClipEmbedder) -> np.ndarray:
        """Scores of the vocabulary, from cosines of shape (frames, tags)."""
        scale = embedder.logit_scale
        if embedder.logit_bias is not None and self.scores == "sigmoid":
            cosines = 1 / (1 + np.exp(-(scale * cosines + embedder.logit_bias)))
        elif self.scores == "softmax":
            logits = scale * (cosines - cosines.max(axis=1, keepdims=True))
            cosines = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        scores: np.ndarray = (
            cosines.mean(axis=0) if self.over_frames == "mean" else cosines.max(axis=0)
        )
        return scores

    def _best(self, tags: list[str], scores: np.ndarray) -> list[dict[str, Any]]:
        # A stable order, so that equal scores keep the vocabulary's.
        order = np.argsort(-scores, kind="stable")[: self.top_k]
        return [
            {"tag": tags[i], "score": float(scores[i])}
            for i in order
            if scores[i] >= self.min_score
        ]


def read_vocabulary(path: Path) -> list[str]:
    """The tags of a file in order, without duplicates; UsageError if there are none."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(
            f"tag_clips.vocabulary: cannot read {path}: {error.strerror}; it should "
            "be a text file with one tag per line"
        ) from error
    tags = [line.partition("#")[0].strip() for line in lines]
    found = list(dict.fromkeys(tag for tag in tags if tag))
    if not found:
        raise UsageError(f"tag_clips.vocabulary: {path} contains no tags; write one per line")
    return found
