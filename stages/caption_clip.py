"""caption_clip: captions a whole clip from several frames in one prompt, freely or as a form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from clipmill.schemas.errors import ClipmillError, RowFailed, ServerRefused
from clipmill.schemas.tables import clip_table
from clipmill.stages.media.read.sampling import pick_frames
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.engines.opening import open_engine
from clipmill.stages.models.engines.requests import Engine, Request, Sees, Video, answers
from clipmill.stages.models.form_stage import FormStage
from clipmill.stages.models.outputs.stored import StoredText, stored_text
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
from clipmill.stages.references import ModelReference

# Settings may add columns: those of `fields` and `questions`.
CLIP_CAPTIONS = clip_table(
    ("caption_clip", pa.string()),
    # The times of the frames that the model was shown, and whether as a video or as images.
    ("clip_seconds", pa.list_(pa.float64())),
    ("clip_shown_as", pa.string()),
    ("clip_finish_reason", pa.string()),
    ("clip_prompt_tokens", pa.int32()),
    ("clip_new_tokens", pa.int32()),
    ("clip_cleaned_by", pa.list_(pa.string())),
    # Why columns of fields and questions are null, or which texts their lists lack.
    ("clip_fields_reason", pa.string()),
)

CLIP_PROMPT = (
    "Describe in one or two sentences what happens in this video clip. Say only what can be seen."
)
AS_IMAGES = "These pictures are frames of one video clip, in time order, each after its time."
Shown = Literal["video", "images"]


class CaptionClip(FormStage):
    """A caption of the whole clip, by a model that sees several of its frames at once.

    The frames are kept ones at the middles of equal parts of the clip. With `fields` or
    `questions`, the model is asked for one JSON object, and each of them becomes a column; a field
    that is missing or of another type is null, and clip_fields_reason says why. An answer without a
    usable caption is a failure of kind `model`.
    """

    name: ClassVar[str] = "caption_clip"
    writes: ClassVar[pa.Schema] = CLIP_CAPTIONS

    model: ModelReference = Field(
        ModelReference(hub="Qwen/Qwen2-VL-2B-Instruct"),
        description="model with a chat template that takes a video or several pictures: hub id, "
        "folder, or server",
    )
    clip_frames: int = Field(
        8, ge=2, le=256, description="frames of the clip that the model sees, if as many were kept"
    )
    shown_as: Literal["auto", "video", "images"] = Field(
        "auto",
        description="how the model gets the frames: as a video with their times, or as images, "
        "each after its time; auto is video where the model takes one (no server does)",
    )
    prompt: str = Field(CLIP_PROMPT, description="the user's message that accompanies the frames")
    system: str | None = Field(None, description="the system's message, if there is to be one")
    batch_clips: int = resource(
        4, ge=1, description="clips per model call; halved when memory runs out"
    )

    @model_validator(mode="after")
    def _check(self) -> CaptionClip:
        self.check_server(self.model, self.generation)
        if not self.prompt.strip():
            raise ValueError("prompt is empty, so the model is asked for nothing")
        if self.shown_as == "video" and (self.model.server or self.engine is not None):
            raise ValueError(
                "shown_as is video, but OpenAI's protocol has no videos; servers get images, each "
                "after its time"
            )
        return self

    def frames_picked(self) -> tuple[FramePick, ...]:
        return (Uniform(self.clip_frames),)

    def columns_read(self) -> tuple[str, ...]:
        return ("split_clips.start_seconds", "split_clips.end_seconds")

    def prompts(self) -> dict[str, str]:
        """With the form, so that the order of its fields counts for the fingerprint."""
        found = {"prompt": self.with_form(self.prompt), "system": self.system}
        return {name: text for name, text in found.items() if text is not None}

    def request(self, frames: Sequence[tuple[float, bytes]], shown: Shown) -> Request:
        """What the model is asked about frames, given with their seconds within the clip."""
        text = self.with_form(self.prompt)
        request = Request.of(
            text if shown == "video" else f"{AS_IMAGES}\n{text}",
            Video(tuple(frames)),
            generation=self.generation,
            system=self.system,
            schema=None if self.form is None else self.form.schema(),
        )
        return request if shown == "video" else request.without_videos()

    def shown(self, sees: Sees, setting: str) -> Shown:
        """How a model gets the frames; ClipmillError if it can't get them."""
        if sees in ("nothing", "picture"):
            raise ClipmillError(
                f"{setting}: {self.model} sees one picture at a time, and caption_clip shows "
                f"{self.clip_frames}; it needs a model with a chat template such as Qwen2.5-VL, "
                "LLaVA-OneVision or SmolVLM"
            )
        if self.shown_as == "video" and sees != "video":
            raise ClipmillError(
                f"{setting}: {self.model} takes no videos, only pictures (as LLaVA, Gemma 3 and "
                "Idefics 3 do); set shown_as to images"
            )
        return "video" if sees == "video" and self.shown_as != "images" else "images"

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        yield self.writer_check(
            label,
            "model",
            self.model,
            self._check_model,
            pictures=self.clip_frames,
            depends_on=(self.shown_as, self.clip_frames, *self.prompts().values()),
        )

    def _check_model(self, setting: str) -> str:
        from clipmill.stages.models.checks.clips import check_clip_captioner

        return check_clip_captioner(self.model, self, setting, self.shown, self.request)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        setting = "caption_clip.model"
        with open_engine(
            self.model, self, setting, takes="pictures", batch=self.batch_clips
        ) as engine:
            yield partial(self.transform, engine=engine, shown=self.shown(engine.sees, setting))

    def transform(self, table: pa.Table, engine: Engine, shown: Shown) -> pa.Table:
        """One row per clip."""
        rows = Rows(self)
        clips: list[_Clip] = []
        for row in table.to_pylist():
            try:
                clips.append(_Clip.of(row, self.frames_picked()))
            except RowFailed as failure:
                rows.record(row["clip_id"], failure)
        # Some families take no video of a single frame.
        how: list[Shown] = ["images" if len(clip.frames) == 1 else shown for clip in clips]
        asked = [self.request(clip.frames, own) for clip, own in zip(clips, how, strict=True)]
        found = answers(engine, asked)
        for clip, own, answer in zip(clips, how, found, strict=True):
            try:
                columns = self._columns(answer)
            except ServerRefused:
                raise  # it concerns all clips
            except RowFailed as failure:
                rows.record(clip.clip_id, failure)
                continue
            rows.keep(clip.clip_id, clip_seconds=clip.seconds, clip_shown_as=own, **columns)
        return rows.table()

    def _columns(self, answer: Completion | RowFailed) -> dict[str, Any]:
        """The columns of a clip; RowFailed if it has no caption."""
        if isinstance(answer, RowFailed):
            raise answer
        asked = (self.prompt,)
        if self.form is not None:
            stored, columns, reason = self.filled(answer, self.form, asked)
            return {**columns, **_beside(stored), "clip_fields_reason": reason}
        return _beside(
            stored_text(
                answer,
                when_cut_off=self.when_cut_off or "fail",
                limit=self.max_new_tokens,
                setting="max_new_tokens",
                asked=asked,
                off=self.text_rules_off,
            )
        )


def _beside(stored: StoredText) -> dict[str, Any]:
    return {
        "caption_clip": stored.text,
        "clip_finish_reason": stored.finish_reason,
        "clip_prompt_tokens": stored.prompt_tokens,
        "clip_new_tokens": stored.new_tokens,
        "clip_cleaned_by": list(stored.cleaned_by),
    }


@dataclass(frozen=True)
class _Clip:
    """A clip's frames: with seconds from its start, and the seconds in the video."""

    clip_id: str
    frames: tuple[tuple[float, bytes], ...]
    seconds: list[float]

    @classmethod
    def of(cls, row: Mapping[str, Any], picks: Sequence[FramePick]) -> _Clip:
        frames = row["frames"] or []
        if not frames:
            raise RowFailed("bad_media", "no frame of this clip was kept or can be read")
        span = (row["start_seconds"], row["end_seconds"])
        seconds = [frame["seconds"] for frame in frames]
        chosen = [frames[i] for i in pick_frames(seconds, *span, picks)]
        if not chosen:
            raise RowFailed("bad_media", "none of this clip's frames is within its span")
        shown = tuple((frame["seconds"] - span[0], frame["jpeg"]) for frame in chosen)
        return cls(row["clip_id"], shown, [frame["seconds"] for frame in chosen])
