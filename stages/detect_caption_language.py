"""detect_caption_language: the language of each clip's caption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from clipmill.schemas.tables import clip_table
from clipmill.stages.models.languages import LanguageStage
from clipmill.stages.protocol import Rows, Stage, Transform, Workspace
from clipmill.stages.wires import ONE_TEXT, ColumnName, check_wires

CAPTION_LANGUAGES = clip_table(
    # ISO 639-1 where there is such a code.
    ("caption_language", pa.string()),
    # The probability of the likeliest language, also where that is too unsure.
    ("caption_language_confidence", pa.float32()),
    ("caption_language_reason", pa.string()),
)


class DetectCaptionLanguage(LanguageStage):
    """The likeliest language of the clip's caption, of whatever stage or list."""

    name: ClassVar[str] = "detect_caption_language"
    writes: ClassVar[pa.Schema] = CAPTION_LANGUAGES
    robust: ClassVar[bool] = True

    caption: ColumnName = Field(
        "summarize_captions.caption", description="the column of the caption, LABEL.COLUMN"
    )

    def columns_read(self) -> tuple[str, ...]:
        return (f"{self.caption} as caption",)

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        """ValueError if the caption can't come, or is no text."""
        check_wires(self, before, {"caption": ONE_TEXT})

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        detector = self.detector(self.name)

        def transform(batch: pa.Table) -> pa.Table:
            rows = Rows(self)
            for row in batch.to_pylist():
                found = detector.detect(row.get("caption") or "")
                rows.keep(
                    row["clip_id"],
                    caption_language=found.language,
                    caption_language_confidence=found.confidence,
                    caption_language_reason=found.reason,
                )
            return rows.table()

        yield transform
