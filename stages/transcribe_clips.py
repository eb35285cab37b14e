"""transcribe_clips: what is said in each clip, by Whisper or another speech recogniser.

Runs as two steps. transcribe_videos writes what is said in each video, with the times of words;
this one gives clips the words that begin in them, and so never opens a video.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import model_validator

from clipmill.schemas.tables import clip_table
from clipmill.stages.models.transcribing import TranscribingStage
from clipmill.stages.protocol import Resources, Rows, Stage, Transform, Workspace, resource
from clipmill.stages.transcribe_videos import NOBODY_SPEAKS, WORD, TranscribeVideos

CLIP_TRANSCRIPTS = clip_table(
    ("transcript", pa.string()),
    ("transcript_reason", pa.string()),
    ("transcript_words", pa.list_(WORD)),
    ("spoken_language", pa.string()),
    ("spoken_language_probability", pa.float32()),
    # The largest of the lines that the words are from, by the model itself.
    ("no_speech_probability", pa.float32()),
    # Whether one of these lines repeats itself, as what models invent does.
    ("transcript_repeats", pa.bool_()),
)


class TranscribeClips(TranscribingStage):
    """The words that are said in a clip, where detect_speech has found speech.

    A word is in the clip in which it begins, so neighbouring clips share none. `videos` has the
    lines of the whole video. Nothing is dropped: what a model may have invented is marked
    (`transcript_repeats`, `no_speech_probability`).
    """

    name: ClassVar[str] = "transcribe_clips"
    reads: ClassVar[tuple[str, ...]] = (
        "transcribe_videos.transcript_lines",
        "transcribe_videos.spoken_language",
        "transcribe_videos.spoken_language_probability",
        "transcribe_videos.transcript_reason",
        "split_clips.start_seconds",
        "split_clips.end_seconds",
    )
    writes: ClassVar[pa.Schema] = CLIP_TRANSCRIPTS
    # The first step, with the model, is not.
    robust: ClassVar[bool] = True

    batch_videos: int = resource(4, ge=1, description="videos that are heard at a time")

    @model_validator(mode="after")
    def _check(self) -> TranscribeClips:
        if self.model.server:
            for name in ("dtype", "max_new_tokens"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"{name} is for models in the worker's process, and {self.model} is "
                        "served; use server_options for what the server supports"
                    )
        elif self.server_options:
            raise ValueError(f"server_options are for servers, and {self.model} is none")
        return self

    def steps(self) -> tuple[Stage, ...]:
        """The step that hears the videos, and this stage."""
        shared = {name: getattr(self, name) for name in TranscribingStage.model_fields}
        return (TranscribeVideos(**(shared | {"batch_rows": self.batch_videos})), self)

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        if "find_speech" not in before:
            raise ValueError(
                "only speech is transcribed, and no stage finds it; put `detect_speech: {}` before "
                "transcribe_clips"
            )

    @property
    def resources(self) -> Resources:
        # The first step has the GPU.
        return Resources(self.cpus, 0.0, self.batch_rows)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        yield self._transform

    def _transform(self, batch: pa.Table) -> pa.Table:
        rows = Rows(self)
        for row in batch.to_pylist():
            rows.keep(row["clip_id"], **_columns(row))
        return rows.table()


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    lines = row["transcript_lines"]
    if lines is None:
        return {"transcript_reason": row["transcript_reason"]}
    start, end = row["start_seconds"], row["end_seconds"]
    words, own = [], []
    for line in lines:
        said = [word for word in line["words"] if start <= word["start_seconds"] < end]
        words += said
        own += [line] if said else []
    if not words:
        return {"transcript_reason": NOBODY_SPEAKS}
    quiet = [line["no_speech_probability"] for line in own]
    return {
        "transcript": _text(own, start, end),
        "transcript_words": words,
        "spoken_language": row["spoken_language"],
        "spoken_language_probability": row["spoken_language_probability"],
        "no_speech_probability": max((one for one in quiet if one is not None), default=None),
        "transcript_repeats": any(line["repeats"] for line in own),
    }


def _text(lines: list[dict[str, Any]], start: float, end: float) -> str:
    """The words of each line that begin in the clip, line by line."""
    texts = (
        "".join(w["text"] for w in line["words"] if start <= w["start_seconds"] < end)
        for line in lines
    )
    return " ".join(" ".join(texts).split())
