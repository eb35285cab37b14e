"""find_speech: where somebody speaks in each video.

Users set it through detect_speech, which runs it as its first step. It knows nothing of clips, so
its results stay valid when those change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import Field, model_validator

from clipmill.schemas.clocks import CLOCK_COLUMNS, file_zero_seconds
from clipmill.schemas.errors import ErrorKind, RowFailed
from clipmill.schemas.tables import HOLE, OUTCOME
from clipmill.stages.protocol import ModelCheck, Rows, Stage, Transform, Workspace, resource
from clipmill.stages.reading_stage import ReadingStage, require_file
from clipmill.stages.references import DataFile

if TYPE_CHECKING:
    from clipmill.stages.models.voice_activity import VoiceSettings

SILERO_SHA256 = "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85"
SILERO = f"package:silero_vad/data/silero_vad_16k_sequence.onnx#sha256={SILERO_SHA256}"

# One row per video. `sound_spans` are the times at which there is sound at all; `speech_reason` is
# why all else is null.
SPEECH = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        ("speech_spans", pa.list_(HOLE)),
        ("sound_spans", pa.list_(HOLE)),
        ("speech_seconds", pa.float64()),
        ("speech_reason", pa.string()),
        *OUTCOME,
    ]
)


class SpeechSettings(ReadingStage):
    """When speech begins and ends, and the model that hears it."""

    weights: DataFile = Field(
        DataFile.model_validate(SILERO),
        description="Silero's voice activity detector: its ONNX file for sequences at 16 kHz",
    )
    threshold: float = Field(
        0.5, gt=0, lt=1, description="speech begins at this probability, for 32 ms"
    )
    end_threshold: float | None = Field(
        None, gt=0, lt=1, description="and may end below this one; by default 0.15 below threshold"
    )
    min_speech_seconds: float = Field(
        0.25, ge=0, description="what is not longer than this is no speech"
    )
    min_silence_seconds: float = Field(0.1, ge=0, description="shortest pause between two spans")
    pad_seconds: float = Field(
        0.03, ge=0, description="added before and after a span, up to the middle of a pause"
    )

    @model_validator(mode="after")
    def _check(self) -> SpeechSettings:
        if self.end_threshold is not None and self.end_threshold > self.threshold:
            raise ValueError("end_threshold must not be above threshold")
        return self

    @property
    def voice(self) -> VoiceSettings:
        from clipmill.stages.models.voice_activity import VoiceSettings

        return VoiceSettings(
            self.threshold,
            self.end_threshold,
            self.min_speech_seconds,
            self.min_silence_seconds,
            self.pad_seconds,
        )


class FindSpeech(SpeechSettings):
    """Finds the spans of speech in each video's sound.

    Only the sound track is read, once, in a helper process that also runs the model.
    """

    name: ClassVar[str] = "find_speech"
    key: ClassVar[str] = "video_id"
    reads: ClassVar[tuple[str, ...]] = (
        "download_videos.path",
        *(f"download_videos.{name}?" for name in CLOCK_COLUMNS),
    )
    writes: ClassVar[pa.Schema] = SPEECH
    error_kind: ClassVar[ErrorKind] = "bad_media"
    robust: ClassVar[bool] = True
    in_helpers: ClassVar[bool] = True

    cpus: float = resource(1.0, gt=0, description="CPUs per worker")
    batch_rows: int = resource(1, ge=1, description="videos passed to the stage at a time")

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterable[ModelCheck]:
        def check() -> str:
            from clipmill.stages.media.fetch.data_files import local_file
            from clipmill.stages.models.voice_activity import check_voice

            setting = f"{label}.weights"
            return check_voice(local_file(self.weights, setting=setting), setting)

        return (ModelCheck("weights", check, needs=("onnxruntime",)),)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        from clipmill.stages.media.fetch.data_files import local_file
        from clipmill.stages.models.voice_activity import check_voice, speech_in_file

        setting = "detect_speech.weights"
        weights = local_file(self.weights, setting=setting)
        check_voice(weights, setting)  # the helpers' own models have no place to record

        def columns(row: Mapping[str, Any]) -> dict[str, Any]:
            from clipmill.stages.media.isolation.isolated import run_isolated

            path = workspace.resolve(row["path"])
            require_file(path)
            zero = file_zero_seconds(row)
            return run_isolated(
                speech_in_file, path, weights, setting, self.voice, zero, limits=self.limits
            )

        def transform(table: pa.Table) -> pa.Table:
            rows = Rows(self)
            for row in table.to_pylist():
                try:
                    rows.keep(row["video_id"], **columns(row))
                except RowFailed as problem:
                    rows.record(row["video_id"], problem)
            return rows.table()

        yield transform
