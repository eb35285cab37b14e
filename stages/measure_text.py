"""measure_text: text on a clip's frames: how much, of which kind, and what it says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import Field, model_validator

from clipmill.schemas.errors import RowFailed
from clipmill.schemas.tables import clip_table
from clipmill.schemas.words import counted
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.protocol import (
    FramePick,
    ModelCheck,
    Rows,
    Stage,
    Transform,
    Uniform,
    Workspace,
    resource,
)
from clipmill.stages.references import DataFile, ModelReference

if TYPE_CHECKING:
    from clipmill.stages.models.onnx_sessions import OnnxModel
    from clipmill.stages.models.screen_text import ClipFrames, ScreenText
    from clipmill.stages.models.text_boxes import TextDetector
    from clipmill.stages.models.text_reading import TextReader

# A line, where it was read best; sides are shares of the picture. Its text and confidence are null
# if it wasn't read, or not surely; its kind if there is one frame only.
TEXT_LINE = pa.struct(
    [
        ("seconds", pa.float64()),
        ("last_seconds", pa.float64()),
        ("frames", pa.int32()),
        ("text", pa.string()),
        ("confidence", pa.float32()),
        ("kind", pa.string()),
        ("left", pa.float32()),
        ("top", pa.float32()),
        ("right", pa.float32()),
        ("bottom", pa.float32()),
    ]
)

TEXT_MEASURES = clip_table(
    # Shares of the picture under boxes of text: mean over frames, largest.
    ("text_area", pa.float32()),
    ("text_area_max", pa.float32()),
    # The same by kind, mean over frames; they add up to text_area.
    ("text_area_overlay", pa.float32()),
    ("text_area_subtitle", pa.float32()),
    ("text_area_scene", pa.float32()),
    ("text_area_scene_reason", pa.string()),
    # Boxes per frame.
    ("text_boxes", pa.float32()),
    ("text_boxes_max", pa.int32()),
    # The band that contains all subtitles, as shares of the height; null without any.
    ("text_subtitle_top", pa.float32()),
    ("text_subtitle_bottom", pa.float32()),
    ("text_lines", pa.list_(TEXT_LINE)),
    # Each text that was read, once, in time order.
    ("text_read", pa.list_(pa.string())),
    ("text_read_reason", pa.string()),
)

# Clips whose pictures are in memory at a time.
_CLIPS_AT_ONCE = 16


class MeasureText(Stage):
    """Boxes around text on evenly spread frames, by PP-OCR's detector; what they say by choice.

    Overlay is text at one place in at least half of the frames, such as a logo, a name or a time
    code; a subtitle is a line, or a few, in the middle of the lower part of the picture; all else
    is text in the scene. Where nothing moves, text in the scene stays in place too. Frames that
    look the same are looked at once. The default weights come with `clipmill[signals]`.
    """

    name: ClassVar[str] = "measure_text"
    writes: ClassVar[pa.Schema] = TEXT_MEASURES

    detector: DataFile = Field(
        DataFile(
            package="rapidocr/models/PP-OCRv6_det_small.onnx",
            sha256="090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
        ),
        description="weights of a detector of PP-OCR's as ONNX: a path, URL#sha256=HEX, or "
        "package:NAME/path#sha256=HEX",
    )
    read: bool = Field(
        False, description="read the text too: text_read, and text and confidence in text_lines"
    )
    reader: DataFile = Field(
        DataFile(
            package="rapidocr/models/PP-OCRv6_rec_small.onnx",
            sha256="6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
        ),
        description="weights of a recogniser of PP-OCR's as RapidOCR publishes them, with its "
        "characters in the ONNX file; the default reads Latin letters, Chinese and Japanese",
    )
    frames_per_clip: int = Field(
        4, ge=1, le=64, description="frames to look at per clip; kinds of text need two"
    )
    short_side: int = Field(
        384,
        ge=64,
        le=2048,
        description="pixels of the shorter side for the detector; frames are scaled to it",
    )
    least_score: float = Field(
        0.6, ge=0, le=1, description="boxes of which the detector is less sure don't count"
    )
    least_confidence: float = Field(
        0.8, ge=0, le=1, description="what is read with less confidence is left out of the text"
    )
    batch_rows: int = resource(16, ge=1, description="rows passed to the stage at a time")
    batch_images: int | None = resource(
        None,
        ge=1,
        description="frames per call of the detector; by default 1 on a CPU, 16 on a GPU",
    )

    @property
    def most_gpus(self) -> float | None:
        return 1.0

    @model_validator(mode="after")
    def _check(self) -> MeasureText:
        for name in ("reader", "least_confidence"):
            if not self.read and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is set, but read is not: nothing is read")
        return self

    def frames_picked(self) -> tuple[FramePick, ...]:
        return (Uniform(self.frames_per_clip),)

    def left_empty(self) -> Mapping[str, str]:
        return {} if self.read else {"text_read": "read: true"}

    def references(self) -> dict[str, ModelReference | DataFile]:
        return {
            name: file
            for name, file in super().references().items()
            if name != "reader" or self.read
        }

    def identity(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in super().identity().items()
            if name != "reader" or self.read
        }

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        needs = ("onnxruntime",)
        yield ModelCheck("detector", lambda: self._check_detector(label), needs=needs)
        if self.read:
            yield ModelCheck("reader", lambda: self._check_reader(label), needs=needs)

    def _check_detector(self, label: str) -> str:
        self._detector(label)
        return "finds text"

    def _check_reader(self, label: str) -> str:
        return f"reads {counted(len(self._reader(label).characters) - 1, 'character')}"

    def _detector(self, label: str) -> TextDetector:
        from clipmill.stages.models.text_boxes import TextDetector

        setting = f"{label}.detector"
        return TextDetector(
            self._model(self.detector, setting),
            setting=setting,
            short_side=self.short_side,
            least_score=self.least_score,
            batch=self.batch_images,
        )

    def _reader(self, label: str) -> TextReader:
        from clipmill.stages.models.text_reading import TextReader

        setting = f"{label}.reader"
        return TextReader(self._model(self.reader, setting), setting=setting)

    def _model(self, file: DataFile, setting: str) -> OnnxModel:
        from clipmill.stages.models.onnx_sessions import OnnxModel

        path = local_file(file, setting=setting)
        return OnnxModel(path, threads=math.ceil(self.cpus), setting=setting)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        detector = self._detector(self.name)
        reader = self._reader(self.name) if self.read else None

        def transform(batch: pa.Table) -> pa.Table:
            rows = Rows(self)
            for begin in range(0, batch.num_rows, _CLIPS_AT_ONCE):
                part = batch.slice(begin, _CLIPS_AT_ONCE).to_pylist()
                self._measure(part, rows, detector, reader)
            return rows.table()

        yield transform

    def _measure(
        self,
        part: Sequence[Mapping[str, Any]],
        rows: Rows,
        detector: TextDetector,
        reader: TextReader | None,
    ) -> None:
        from clipmill.stages.models import screen_text

        clips: dict[str, ClipFrames] = {}
        for row in part:
            try:
                clips[row["clip_id"]] = _frames(row)
            except RowFailed as failed:
                rows.record(row["clip_id"], failed)
        screen_text.detect([*clips.values()], detector)
        if reader is not None:
            screen_text.read([*clips.values()], reader)
        for clip_id, clip in clips.items():
            found = screen_text.screen_text(clip, least_confidence=self.least_confidence)
            rows.keep(clip_id, **self._columns(found))

    def _columns(self, found: ScreenText) -> dict[str, Any]:
        count = len(found.areas)
        by_kind = found.areas_of or {}
        band = found.subtitle_band or (None, None)
        return {
            "text_area": sum(found.areas) / count,
            "text_area_max": max(found.areas),
            **{f"text_area_{kind}": sum(areas) / count for kind, areas in by_kind.items()},
            "text_area_scene_reason": None
            if found.areas_of
            else "there is one frame: kinds of text are told apart by what stays in place",
            "text_boxes": sum(found.boxes) / count,
            "text_boxes_max": max(found.boxes),
            "text_subtitle_top": band[0],
            "text_subtitle_bottom": band[1],
            "text_lines": [
                {
                    "seconds": line.seconds,
                    "last_seconds": line.last_seconds,
                    "frames": line.frames,
                    "text": line.text,
                    "confidence": line.confidence,
                    "kind": line.kind,
                    "left": line.place.left,
                    "top": line.place.top,
                    "right": line.place.right,
                    "bottom": line.place.bottom,
                }
                for line in found.lines
            ],
            "text_read": [*dict.fromkeys(line.text for line in found.lines if line.text)]
            if self.read
            else None,
            "text_read_reason": None if self.read else "read is false: text is found, not read",
        }


def _frames(row: Mapping[str, Any]) -> ClipFrames:
    from clipmill.stages.media.read.images import decode_jpeg
    from clipmill.stages.models.screen_text import ClipFrames

    if not row["frames"]:
        raise RowFailed("bad_media", "no frame of this clip can be read")
    return ClipFrames.of(
        [frame["seconds"] for frame in row["frames"]],
        (decode_jpeg(frame["jpeg"]) for frame in row["frames"]),
    )
