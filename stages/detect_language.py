"""detect_language: the language of each video's title, description and given captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from clipmill.schemas.tables import OUTCOME
from clipmill.stages.models.languages import Detected, LanguageDetector, LanguageStage
from clipmill.stages.protocol import Rows, Transform, Workspace

VIDEO_LANGUAGES = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        # ISO 639-1 where there is such a code. The views use it where the source names none.
        ("language_detected", pa.string()),
        # The probability of the likeliest language, also where that is too unsure.
        ("language_confidence", pa.float32()),
        ("language_detected_reason", pa.string()),
        # `text`: the title and the description; or `captions`.
        ("language_detected_from", pa.string()),
        *OUTCOME,
    ]
)
_ABOUT = ("title", "description")
_GIVEN = ("caption_given", "captions_given", "spans")


class DetectLanguage(LanguageStage):
    """The likeliest language of what the source says about the video.

    Title and description count together; given captions, which are often in another language than
    the video, only where those don't tell. The views fill `language` with the result for videos
    whose source names no language.
    """

    name: ClassVar[str] = "detect_language"
    key: ClassVar[str] = "video_id"
    writes: ClassVar[pa.Schema] = VIDEO_LANGUAGES
    robust: ClassVar[bool] = True

    texts: tuple[Literal["title", "description", "captions"], ...] = Field(
        ("title", "description", "captions"), min_length=1, description="texts to look at"
    )

    @field_validator("texts")
    @classmethod
    def _check_texts(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(texts)) < len(texts):
            raise ValueError("a text is named twice")
        return texts

    def columns_read(self) -> tuple[str, ...]:
        named: list[str] = [name for name in _ABOUT if name in self.texts]
        named += _GIVEN if "captions" in self.texts else ()
        return tuple(f"download_videos.{name}" for name in named)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        detector = self.detector(self.name)

        def transform(batch: pa.Table) -> pa.Table:
            rows = Rows(self)
            for row in batch.to_pylist():
                rows.keep(row["video_id"], **_columns(row, detector))
            return rows.table()

        yield transform


def _columns(row: Mapping[str, Any], detector: LanguageDetector) -> dict[str, Any]:
    parts: dict[str, list[str | None]] = {
        "text": [row.get(name) for name in _ABOUT],
        "captions": list(dict.fromkeys(_captions(row))),
    }
    found = {
        source: detector.detect(joined)
        for source, texts in parts.items()
        if (joined := "\n".join(text for text in texts if text))
    }
    # Of those that tell, the first counts, not the surest.
    told = [one for one in found.items() if one[1].language is not None]
    nothing = ("", Detected(None, None, "the source says nothing about the video"))
    source, best = max(
        told[:1] or found.items(), key=lambda one: one[1].confidence or 0.0, default=nothing
    )
    return {
        "language_detected": best.language,
        "language_confidence": best.confidence,
        "language_detected_reason": best.reason,
        "language_detected_from": source if best.language is not None else None,
    }


def _captions(row: Mapping[str, Any]) -> Iterable[str]:
    """What was given with the video, and with its spans."""
    given: list[Mapping[str, Any]] = [row, *(row.get("spans") or ())]
    for one in given:
        texts = [one.get(name) for name in ("caption_given", "caption")]
        texts += [text for name in ("captions_given", "captions") for text in one.get(name) or ()]
        yield from filter(None, texts)
