"""caption_clip: captions a whole clip from several frames in one prompt, freely or as a form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from clipmill.schemas.errors import ClipmillError, RowFailed, ServerRefused
from clipmill.schemas.tables import OUTCOME, clip_table
from clipmill.stages.media.read.sampling import pick_frames
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.engines.opening import open_engine
from clipmill.stages.models.engines.requests import Engine, Request, Sees, Video, answers
from clipmill.stages.models.generation import GeneratingStage, Generation
from clipmill.stages.models.outputs.forms import (
    KNOWN_FIELDS,
    AskedField,
    Form,
    columns_of,
    object_of,
)
from clipmill.stages.models.outputs.stored import LENGTH, StoredText, stored_text
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

if TYPE_CHECKING:
    from pydantic import ValidationInfo

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
    # Why columns of fields and questions are null.
    ("clip_fields_reason", pa.string()),
)

CLIP_PROMPT = (
    "Describe in one or two sentences what happens in this video clip. Say only what can be seen."
)
AS_IMAGES = "These pictures are frames of one video clip, in time order, each after its time."
CAPTION = "caption"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_MOST_FIELDS = 64
# Names by which rows of tables are matched.
_KEYS = ("source_key", "video_id")
Shown = Literal["video", "images"]


class CaptionClip(GeneratingStage):
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
    fields: dict[str, AskedField] = Field(
        default_factory=dict,
        description="fields of a structured caption, by the name of their column: a type (text, "
        "texts, number, integer, boolean), a list of the only texts allowed, or type, one_of and "
        "ask; or a list of well-known fields: short, dense, subjects, action, background, style, "
        "camera, text_on_screen",
    )
    caption_field: str | None = Field(
        None,
        description="the field that is the clip's caption; by default the first one of type text, "
        "and without one, caption is asked for as well",
    )
    questions: dict[str, str] = Field(
        default_factory=dict,
        description="yes–no questions by the name of their column, asked in the same request; "
        "NAME_answer is the model's own answer",
    )
    max_new_tokens: int = Field(256, ge=1, description="longest answer, in tokens")
    min_new_tokens: int = Field(0, ge=0, description="shortest answer, in tokens")
    num_beams: int = Field(1, ge=1, description="beams of the beam search; 1 is greedy")
    no_repeat_ngram_size: int = Field(
        0,
        ge=0,
        description="no run of this many tokens occurs twice in an answer; 0 turns this off",
    )
    batch_clips: int = resource(
        4, ge=1, description="clips per model call; halved when memory runs out"
    )

    @field_validator("fields", mode="before")
    @classmethod
    def _in_full(cls, given: Any) -> Any:
        if isinstance(given, list | tuple) and all(isinstance(name, str) for name in given):
            if unknown := [name for name in given if name not in KNOWN_FIELDS]:
                raise ValueError(
                    f"{', '.join(unknown)}: no well-known field (these are "
                    f"{', '.join(KNOWN_FIELDS)}); write it as `name: type`"
                )
            given = dict.fromkeys(given)
        if not isinstance(given, Mapping):
            return given
        return {name: AskedField.declared(str(name), value) for name, value in given.items()}

    @field_validator("fields", "questions")
    @classmethod
    def _check_names(cls, named: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        taken = {*CLIP_CAPTIONS.names, *_KEYS, CAPTION}
        for name in named:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} can't be the name of a column: use lower-case letters, digits and _"
                )
            if name in taken and not (name == CAPTION and info.field_name == "fields"):
                raise ValueError(f"{name!r} is already the name of a column; choose another")
        if len(named) > _MOST_FIELDS:
            raise ValueError(f"{len(named)} are too many for one request, use up to {_MOST_FIELDS}")
        return named

    @model_validator(mode="after")
    def _check(self) -> CaptionClip:
        self.check_server(self.model, self._generation)
        if not self.prompt.strip():
            raise ValueError("prompt is empty, so the model is asked for nothing")
        if self.shown_as == "video" and (self.model.server or self.engine is not None):
            raise ValueError(
                "shown_as is video, but OpenAI's protocol has no videos; servers get images, each "
                "after its time"
            )
        names = [name for name, _ in columns_of(self.fields, self.questions)]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two columns would be named {', '.join(sorted(doubled))}")
        if not all(question.strip() for question in self.questions.values()):
            raise ValueError("questions has an empty question")
        if CAPTION in self.fields and not _may_be_caption(self.fields[CAPTION]):
            raise ValueError("the field caption is not of type text; give it another name")
        if self.caption_field is not None:
            asked = self.fields.get(self.caption_field)
            if asked is None or not _may_be_caption(asked):
                texts = [name for name, one in self.fields.items() if _may_be_caption(one)]
                raise ValueError(
                    f"caption_field is {self.caption_field!r}, which is no field of type text; "
                    f"there are {', '.join(texts) or 'none'}"
                )
        return self

    def columns_written(self) -> pa.Schema:
        """Those of the fields and questions are added."""
        own = [field for field in self.writes if field not in OUTCOME]
        return pa.schema([*own, *columns_of(self.fields, self.questions)])

    @classmethod
    def table_of(cls, settings: Mapping[str, Any]) -> pa.Schema:
        fields = {
            name: AskedField.model_construct(**asked)
            for name, asked in (settings.get("fields") or {}).items()
        }
        made = cls.model_construct(fields=fields, questions=settings.get("questions") or {})
        return made.table_schema

    def frames_picked(self) -> tuple[FramePick, ...]:
        return (Uniform(self.clip_frames),)

    def columns_read(self) -> tuple[str, ...]:
        return ("split_clips.start_seconds", "split_clips.end_seconds")

    def prompts(self) -> dict[str, str]:
        """With the form, so that the order of its fields counts for the fingerprint."""
        found = {"prompt": self._asked, "system": self.system}
        return {name: text for name, text in found.items() if text is not None}

    @property
    def _generation(self) -> Generation:
        return Generation(
            self.max_new_tokens, self.min_new_tokens, self.num_beams, self.no_repeat_ngram_size
        )

    @property
    def _form(self) -> Form | None:
        """What the model fills in; None if it writes freely."""
        if not (self.fields or self.questions):
            return None
        fields = dict(self.fields)
        if self._caption_from not in fields:
            asked = "one or two sentences about what happens"
            fields = {CAPTION: AskedField(type="text", ask=asked), **fields}
        return Form(fields, self.questions)

    @property
    def _caption_from(self) -> str:
        """The field of the form that is the clip's caption."""
        texts = (name for name, asked in self.fields.items() if _may_be_caption(asked))
        return self.caption_field or next(texts, CAPTION)

    @property
    def _asked(self) -> str:
        return self.prompt if self._form is None else f"{self.prompt}\n\n{self._form.words()}"

    def request(self, frames: Sequence[tuple[float, bytes]], shown: Shown) -> Request:
        """What the model is asked about frames, given with their seconds within the clip."""
        text = self._asked if shown == "video" else f"{AS_IMAGES}\n{self._asked}"
        request = Request.of(
            text,
            Video(tuple(frames)),
            generation=self._generation,
            system=self.system,
            schema=None if self._form is None else self._form.schema(),
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
            with_picture=True,
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
        found = answers(engine, [self.request(clip.frames, shown) for clip in clips])
        for clip, answer in zip(clips, found, strict=True):
            try:
                columns = self._columns(answer)
            except ServerRefused:
                raise  # it concerns all clips
            except RowFailed as failure:
                rows.record(clip.clip_id, failure)
                continue
            rows.keep(clip.clip_id, clip_seconds=clip.seconds, clip_shown_as=shown, **columns)
        return rows.table()

    def _columns(self, answer: Completion | RowFailed) -> dict[str, Any]:
        """The columns of a clip; RowFailed if it has no caption."""
        if isinstance(answer, RowFailed):
            raise answer
        if self._form is None:
            return _beside(self._stored(answer))
        return self._filled(answer, self._form)

    def _filled(self, answer: Completion, form: Form) -> dict[str, Any]:
        if not answer.complete and self.when_cut_off in (None, "fail"):
            raise RowFailed("model", f"the answer was {self._cut_off}; raise max_new_tokens")
        said, rules = object_of(answer.text, off=self.text_rules_off)
        filled = form.filled(said)
        source = self._caption_from
        if (caption := filled.columns[source]) is None:
            raise RowFailed("model", f"the answer has no usable {source}: {filled.faults[source]}")
        # The fields of an answer that was cut off are whole, or missing.
        stored = self._stored(replace(answer, text=caption, complete=True))
        stored = replace(stored, cleaned_by=(*rules, *stored.cleaned_by))
        faults = dict(filled.faults)
        if not answer.complete:
            stored = replace(stored, finish_reason=LENGTH)
            lost = [name for name in faults if name not in said]
            faults |= dict.fromkeys(lost, f"the answer was {self._cut_off} before")
        columns = {**filled.columns, source: stored.text}
        if source not in self.fields:
            del columns[source]
        said_of_faults = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
        return {**columns, **_beside(stored), "clip_fields_reason": said_of_faults or None}

    @property
    def _cut_off(self) -> str:
        return f"cut off at {self.max_new_tokens} tokens (max_new_tokens)"

    def _stored(self, answer: Completion) -> StoredText:
        return stored_text(
            answer,
            when_cut_off=self.when_cut_off or "fail",
            limit=self.max_new_tokens,
            setting="max_new_tokens",
            asked=[self.prompt],
            off=self.text_rules_off,
        )


def _may_be_caption(asked: AskedField) -> bool:
    return asked.type == "text" and not asked.one_of


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
