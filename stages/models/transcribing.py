"""Settings shared by the steps of transcribe_clips."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from clipmill.stages.models.serving import ServedStage
from clipmill.stages.protocol import resource
from clipmill.stages.reading_stage import ReadingStage
from clipmill.stages.references import ModelReference

DType = Literal["auto", "float32", "bfloat16", "float16"]
_CODE = re.compile(r"[a-z]{2,3}")


class TranscribingStage(ReadingStage, ServedStage):
    """The model that writes what is said, and how it is asked."""

    model: ModelReference = Field(
        ModelReference(hub="openai/whisper-small"),
        description="a model of Whisper's family, or another that makes text of sound: hub id, "
        "folder, or a server that transcribes (http://HOST:PORT/v1#NAME)",
    )
    language: str | None = Field(
        None,
        description="code of the language that is spoken, such as en; by default the model tells "
        "that of each video",
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="longest text of 30 seconds, in tokens; by default as long as the model can. "
        "Not for servers",
    )
    dtype: DType = Field(
        "auto",
        description="number format of the weights; auto is bfloat16 if the CPU or GPU has "
        "instructions for it, otherwise float32",
    )
    device: str = resource("auto", description="auto, cpu, cuda or cuda:N")
    batch_windows: int = resource(
        8,
        ge=1,
        description="windows of up to 30 seconds per model call; halved when memory runs out",
    )
    server_concurrency: int = resource(
        8, ge=1, description="requests in flight at a time when the model is a server"
    )

    @field_validator("language")
    @classmethod
    def _check_language(cls, code: str | None) -> str | None:
        if code is not None and not _CODE.fullmatch(code):
            raise ValueError(f"{code!r}: expected the code of a language, such as en or de")
        return code

    @property
    def requests_at_once(self) -> int:
        """Requests to a server that are in flight at a time."""
        return self.server_concurrency

    @property
    def uses_gpus(self) -> bool:
        return not self.model.server

    @property
    def most_gpus(self) -> float | None:
        return 1.0

    @property
    def most_workers(self) -> int | None:
        # One process bounds the requests.
        return 1 if self.model.server and self.workers is None else self.workers
