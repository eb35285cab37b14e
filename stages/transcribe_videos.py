"""transcribe_videos: what is said in each video, with the times of words.

Users set it through transcribe_clips, which runs it as its first step. It knows nothing of clips,
so its results stay valid when those change.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from clipmill.schemas.clocks import CLOCK_COLUMNS, file_zero_seconds
from clipmill.schemas.errors import RowFailed, ServerRefused
from clipmill.schemas.tables import OUTCOME
from clipmill.stages.models.transcribing import TranscribingStage
from clipmill.stages.protocol import ModelCheck, Rows, Stage, Transform, Workspace, resource
from clipmill.stages.reading_stage import require_file

if TYPE_CHECKING:
    from clipmill.stages.models.transcribers import Transcriber
    from clipmill.stages.models.transcripts import Line, Transcript, Window

# A word with the white space before it. Times of models that tell none are spread by length.
WORD = pa.struct(
    [("start_seconds", pa.float64()), ("end_seconds", pa.float64()), ("text", pa.string())]
)

# `repeats`: a model repeats itself here, so that it has most likely invented the line.
LINE = pa.struct(
    [
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("text", pa.string()),
        ("words", pa.list_(WORD)),
        ("no_speech_probability", pa.float32()),
        ("repeats", pa.bool_()),
    ]
)

# One row per video; `transcript_reason` is why the lines are null.
TRANSCRIPTS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        ("transcript_lines", pa.list_(LINE)),
        ("spoken_language", pa.string()),
        ("spoken_language_probability", pa.float32()),
        ("transcript_reason", pa.string()),
        *OUTCOME,
    ]
)

NOBODY_SPEAKS = "nobody speaks"


class TranscribeVideos(TranscribingStage):
    """Writes what is said in each video where detect_speech has found speech.

    A helper process reads the sound there, once; the model hears it in windows of at most 30
    seconds, which end in pauses, or at the quietest moment.
    """

    name: ClassVar[str] = "transcribe_videos"
    key: ClassVar[str] = "video_id"
    reads: ClassVar[tuple[str, ...]] = (
        "download_videos.path",
        *(f"download_videos.{name}?" for name in CLOCK_COLUMNS),
        "find_speech.speech_spans",
        "find_speech.speech_reason",
    )
    writes: ClassVar[pa.Schema] = TRANSCRIPTS

    batch_rows: int = resource(4, ge=1, description="videos passed to the stage at a time")

    @property
    def calls_at_once(self) -> int:
        # One call's sound is read while the model hears another's.
        return 2

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterable[ModelCheck]:
        setting = f"{label}.model"

        def run() -> str:
            from clipmill.stages.models.checks.transcribers import check_transcriber

            return check_transcriber(self.model, self, setting)

        if self.model.server:
            return (ModelCheck("model", run, asks=True),)
        depends = (self.language,)
        return (ModelCheck("model", run, depends, needs=("torch", "transformers")),)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        from clipmill.stages.models.transcribers import open_transcriber

        with open_transcriber(self.model, self, "transcribe_clips.model") as transcriber:
            yield lambda table: self._transform(table, transcriber, workspace)

    def _transform(
        self, table: pa.Table, transcriber: Transcriber, workspace: Workspace
    ) -> pa.Table:
        rows = Rows(self)
        heard: list[str] = []
        windows: list[Sequence[Window]] = []
        with tempfile.TemporaryDirectory(dir=workspace.scratch) as folder:
            for number, row in enumerate(table.to_pylist()):
                key = row["video_id"]
                if not row["speech_spans"]:
                    rows.keep(key, **_nothing(row["speech_reason"]))
                    continue
                try:
                    target = Path(folder, f"{number}.f32")
                    found, problem = self._windows(row, target, transcriber, workspace)
                except RowFailed as failure:
                    rows.record(key, failure)
                    continue
                if found:
                    heard.append(key)
                    windows.append(found)
                else:
                    rows.keep(key, **_nothing(problem))
            answers = transcriber.transcribe(windows) if windows else []
            for key, answer in zip(heard, answers, strict=True):
                if isinstance(answer, ServerRefused):
                    raise answer  # it concerns all videos
                if isinstance(answer, RowFailed):
                    rows.record(key, answer)
                else:
                    rows.keep(key, **_columns(answer))
        return rows.table()

    def _windows(
        self, row: Mapping[str, Any], target: Path, transcriber: Transcriber, workspace: Workspace
    ) -> tuple[list[Window], str | None]:
        """The video's speech in windows, in a file that is mapped into memory."""
        import numpy as np

        from clipmill.stages.media.isolation.isolated import run_isolated
        from clipmill.stages.media.read.speech_samples import write_speech
        from clipmill.stages.models.transcripts import parts_to_read, windows

        path = workspace.resolve(row["path"])
        require_file(path)
        parts = parts_to_read(
            (span["start_seconds"], span["end_seconds"]) for span in row["speech_spans"]
        )
        zero = file_zero_seconds(row)
        pieces, problem = run_isolated(write_speech, path, target, parts, zero, limits=self.limits)
        found: list[Window] = []
        at = 0
        if pieces:
            samples = np.memmap(target, np.float32, "r")
            for start, length in pieces:
                piece = samples[at : at + length]
                found += windows(start, piece, transcriber.longest_seconds)
                at += length
        return found, problem


def _nothing(reason: str | None) -> dict[str, Any]:
    if reason is None:
        return {"transcript_lines": []}
    return {"transcript_reason": reason}


def _columns(transcript: Transcript) -> dict[str, Any]:
    return {
        "transcript_lines": [_line(line) for line in transcript.lines],
        "spoken_language": transcript.language,
        "spoken_language_probability": transcript.language_probability,
    }


def _line(line: Line) -> dict[str, Any]:
    return {
        "start_seconds": line.start_seconds,
        "end_seconds": line.end_seconds,
        "text": line.text,
        "words": [
            {"start_seconds": one.start_seconds, "end_seconds": one.end_seconds, "text": one.text}
            for one in line.words
        ],
        "no_speech_probability": line.no_speech_probability,
        "repeats": line.repeats,
    }
