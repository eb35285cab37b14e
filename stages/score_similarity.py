"""score_similarity: how well the captions of a clip fit its frames, by a contrastive model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.tables import clip_table
from clipmill.stages.models.embedders import ClipEmbedder, EmbedderStage
from clipmill.stages.models.long_texts import DividedText, TextScorer, divided, text_columns
from clipmill.stages.models.vectors import frame_mean, stored
from clipmill.stages.protocol import ModelCheck, Rows, Stage, Transform, Workspace
from clipmill.stages.wires import TEXT_OR_TEXTS_AT, ColumnName, check_wires

SIMILARITY = clip_table(
    ("similarity", pa.float32()),
    ("similarity_coarse", pa.float32()),
    ("similarity_fine", pa.float32()),
    ("similarity_reason", pa.string()),
    *text_columns("similarity"),
    ("similarity_coarse_truncated", pa.bool_()),
    ("similarity_fine_truncated", pa.bool_()),
)


class ScoreSimilarity(EmbedderStage, TextScorer):
    """Cosines, from -1 to 1, of a clip's frames and its texts.

    One cosine of the frame mean, which is the mean of the frames' embeddings of length 1, scaled
    to length 1 again; or, as `over_frames` says, the mean of the single frames' cosines.
    similarity is that of the caption (the summary), similarity_coarse that of the coarse caption,
    similarity_fine the mean of the cosines of the fine captions. A text that a clip lacks leaves
    its score null, and so does a score that is not finite; similarity_reason says why similarity is
    null, and which scores were not finite.
    """

    name: ClassVar[str] = "score_similarity"
    writes: ClassVar[pa.Schema] = SIMILARITY
    score: ClassVar[str | None] = "similarity"

    embeddings: str = Field(
        "embed_clips",
        description="label of the embed_clips whose embeddings are compared; it "
        "must use the same model",
    )
    caption: ColumnName = Field(
        "summarize_captions.caption", description="label.column of the text for similarity"
    )
    over_frames: Literal["direction", "cosine"] = Field(
        "direction",
        description="what is averaged over the frames: their directions, before one cosine, or "
        "the cosine of each (Data-Juicer, UMT-SIM)",
    )
    captions: str = Field(
        "caption_frames",
        pattern=r"^\w+$",
        description="label of the caption_frames for similarity_coarse and similarity_fine",
    )

    def columns_read(self) -> tuple[str, ...]:
        return (
            f"{self.embeddings}.embeddings",
            f"{self.caption}? as text",
            f"{self.captions}.caption_coarse?",
            f"{self.captions}.captions_fine?",
        )

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        """ValueError if the embeddings are those of another model, or a text can't come."""
        self.same_model(self.embeddings, before)
        check_wires(self, before, {"caption": TEXT_OR_TEXTS_AT})
        default = type(self).model_fields["captions"].default
        if self.captions != default and self.captions not in before:
            raise ValueError(
                f"captions is {self.captions}, but no stage of that name comes before it"
            )

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        yield self.embedder_check(label, "text")

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        embedder = self.load("text")

        def transform(batch: pa.Table) -> pa.Table:
            return self._scored(batch, embedder)

        yield transform

    def _scored(self, batch: pa.Table, embedder: ClipEmbedder) -> pa.Table:
        keys = batch["clip_id"].to_pylist()
        scales = list(
            zip(
                *(
                    self._texts(batch, name, len(keys))
                    for name in ("text", "caption_coarse", "captions_fine")
                ),
                strict=True,
            )
        )
        texts = divided(
            (text for clip in scales for scale in clip for text in scale),
            embedder,
            self.long_text,
            sentence_scores=self.sentence_scores,
        )
        scored = list(dict.fromkeys(part for text in texts.values() for part in text.scored))
        vectors = dict(zip(scored, embedder.embed_texts(scored), strict=True))
        rows = Rows(self)
        for key, frames, clip in zip(keys, stored(batch["embeddings"]), scales, strict=True):
            if not len(frames):
                reason = f"{self.embeddings} has no embedding of this clip"
                rows.keep(key, similarity_reason=reason)
                continue
            # A cosine is linear in a frame of length 1: that of the plain mean is the mean of all.
            mean = frames.mean(axis=0) if self.over_frames == "cosine" else frame_mean(frames)
            cosines = self._cosines(mean, clip, texts, vectors)
            summary, coarse, fine = (self._score(scale, texts, cosines) for scale in clip)
            rows.keep(
                key,
                similarity=summary,
                similarity_coarse=coarse,
                similarity_fine=fine,
                similarity_reason=self._reason((summary, coarse, fine), clip),
                similarity_coarse_truncated=self._truncated(clip[1], texts),
                similarity_fine_truncated=self._truncated(clip[2], texts),
                **(texts[clip[0][0]].columns("similarity", cosines) if clip[0] else {}),
            )
        return rows.table()

    @staticmethod
    def _texts(batch: pa.Table, column: str, count: int) -> list[list[str]]:
        """The texts of a scale by clip, without those that are null, empty or not in the recipe."""
        if column not in batch.column_names:
            return [[]] * count
        found = []
        for value in batch[column].to_pylist():
            texts = [value] if isinstance(value, str) else [item["text"] for item in value or ()]
            found.append([text for text in texts if text and text.strip()])
        return found

    def _cosines(
        self,
        mean: np.ndarray,
        clip: Sequence[list[str]],
        texts: Mapping[str, DividedText],
        vectors: Mapping[str, np.ndarray],
    ) -> dict[str, float]:
        """The cosine of everything that is scored of a clip's texts."""
        scored = list(
            dict.fromkeys(part for scale in clip for text in scale for part in texts[text].scored)
        )
        if not scored:
            return {}
        towards = np.stack([vectors[text] for text in scored])
        if towards.shape[1] != len(mean):
            raise ClipmillError(
                f"score_similarity: the embeddings of {self.embeddings} have {len(mean)} numbers, "
                f"those of {self.model} have {towards.shape[1]}; set score_similarity.model to the "
                f"model of {self.embeddings}"
            )
        return dict(zip(scored, (towards @ mean).tolist(), strict=True))

    def _score(
        self, scale: Sequence[str], texts: Mapping[str, DividedText], cosines: Mapping[str, float]
    ) -> float | None:
        if not scale:
            return None
        score = float(np.mean([texts[text].score(cosines, self.long_text) for text in scale]))
        return score if np.isfinite(score) else None

    @staticmethod
    def _truncated(scale: Sequence[str], texts: Mapping[str, DividedText]) -> bool | None:
        return any(texts[text].truncated for text in scale) if scale else None

    def _reason(self, scores: Sequence[float | None], texts: Sequence[list[str]]) -> str | None:
        names = ("similarity", "similarity_coarse", "similarity_fine")
        lost = [
            name
            for name, score, scale in zip(names, scores, texts, strict=True)
            if scale and score is None
        ]
        said = [f"{self.model} gave a score that is not finite ({', '.join(lost)})"] if lost else []
        if not texts[0]:
            said.insert(0, f"the clip has no {self.caption}")
        return "; ".join(said) or None
