"""detect_speech: how much of each clip somebody speaks, and where.

Runs as two steps. find_speech reads each video's sound once and keeps the spans of speech; this one
gives clips their part of them, and so never opens a video.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import pyarrow as pa

from clipmill.schemas.tables import HOLE, clip_table
from clipmill.stages.find_speech import FindSpeech, SpeechSettings
from clipmill.stages.protocol import Rows, Stage, Transform, Workspace, resource

CLIP_SPEECH = clip_table(
    # Of the clip's length, 0 to 1.
    ("speech_share", pa.float32()),
    ("speech_share_reason", pa.string()),
    ("speech_spans", pa.list_(HOLE)),
)

_NONE_HERE = "its video's sound track has nothing at that time"


class DetectSpeech(SpeechSettings):
    """The share of a clip in which somebody speaks, and the spans, by Silero's detector.

    `speech_share` is of the clip's length; null, with a reason, where the video has no sound.
    `videos` has the spans of the whole video.
    """

    name: ClassVar[str] = "detect_speech"
    reads: ClassVar[tuple[str, ...]] = (
        "find_speech.speech_spans",
        "find_speech.sound_spans",
        "find_speech.speech_reason",
        "split_clips.start_seconds",
        "split_clips.end_seconds",
    )
    writes: ClassVar[pa.Schema] = CLIP_SPEECH
    robust: ClassVar[bool] = True

    cpus: float = resource(1.0, gt=0, description="CPUs per worker")

    def steps(self) -> tuple[Stage, ...]:
        """The step that reads the sound, and this stage."""
        shared = {name: getattr(self, name) for name in SpeechSettings.model_fields}
        shared["batch_rows"] = 1
        return (FindSpeech(**shared), self)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        yield self._transform

    def _transform(self, batch: pa.Table) -> pa.Table:
        rows = Rows(self)
        for row in batch.to_pylist():
            rows.keep(row["clip_id"], **_columns(row))
        return rows.table()


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    start, end = row["start_seconds"], row["end_seconds"]
    if not list(inside(row["sound_spans"] or (), start, end)):
        return {"speech_share_reason": row["speech_reason"] or _NONE_HERE}
    found = list(inside(row["speech_spans"] or (), start, end))
    share = sum(last - first for first, last in found) / (end - start)
    return {
        "speech_share": min(1.0, share),
        "speech_spans": [{"start_seconds": first, "end_seconds": last} for first, last in found],
    }


def inside(
    spans: Sequence[Mapping[str, float]], start_seconds: float, end_seconds: float
) -> Iterable[tuple[float, float]]:
    """The parts of spans between two times."""
    for span in spans:
        first = max(span["start_seconds"], start_seconds)
        last = min(span["end_seconds"], end_seconds)
        if first < last:
            yield first, last
