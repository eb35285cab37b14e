"""caption_frames: captions the middle frame, and frames along the clip."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import pyarrow as pa
from pydantic import Field, model_validator

from clipmill.schemas.errors import RowFailed, ServerRefused
from clipmill.schemas.tables import TEXT_AT, clip_table
from clipmill.stages.media.read.sampling import pick_frames
from clipmill.stages.models.captioners import Captioner, PictureToCaption, open_captioner
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.engines.requests import CHAT_PROMPT
from clipmill.stages.models.form_stage import FormStage
from clipmill.stages.models.generation import Generation
from clipmill.stages.models.outputs.stored import StoredText, stored_text
from clipmill.stages.models.prompts import render, variables_of
from clipmill.stages.protocol import (
    FramePick,
    Middle,
    ModelCheck,
    PerSecond,
    Rows,
    Stage,
    Transform,
    Workspace,
    resource,
)
from clipmill.stages.references import ModelReference

# Settings may add columns: those of `fields` and `questions`.
CAPTIONS = clip_table(
    ("caption_coarse", pa.string()),
    ("coarse_seconds", pa.float64()),
    ("captions_fine", pa.list_(TEXT_AT)),
    # How each text ended (stop or length), and what cleaned it; null in earlier tables. The lists
    # have one entry per fine caption; `fine_cleaned_by` has one per fine caption and rule.
    ("coarse_finish_reason", pa.string()),
    ("coarse_new_tokens", pa.int32()),
    ("coarse_cleaned_by", pa.list_(pa.string())),
    ("fine_finish_reasons", pa.list_(pa.string())),
    ("fine_new_tokens", pa.list_(pa.int32())),
    ("fine_cleaned_by", pa.list_(pa.string())),
    # Why columns of fields and questions are null, or which texts their lists lack.
    ("coarse_fields_reason", pa.string()),
)

COARSE = "coarse"
FINE = "fine"


class Ticket(NamedTuple):
    """What a picture belongs to: a clip in the batch, a caption scale, a time."""

    clip_id: str
    scale: str
    seconds: float


class CaptionFrames(FormStage):
    """Captions of frames, by an image captioner.

    With `fields` or `questions`, the model is asked for one JSON object about the frame in the
    middle, and each of them becomes a column; coarse_fields_reason says why one is null.

    A text that is no caption (empty, without a word, repeating itself, a refusal, reasoning) makes
    its clip a failure of kind `model`; so does a picture that the model can't process.
    """

    name: ClassVar[str] = "caption_frames"
    writes: ClassVar[pa.Schema] = CAPTIONS

    model: ModelReference = Field(
        ModelReference(hub="Salesforce/blip-image-captioning-base"),
        description="captioner: hub id, folder, or server",
    )
    fine_model: ModelReference | None = Field(
        None, description="captioner for the fine captions; by default the same as model"
    )
    coarse: bool = Field(True, description="caption the frame in the middle of the clip")
    fine: bool = Field(True, description="caption frames along the clip, in time order")
    prompt: str | None = Field(
        None,
        description="prompt for the captioner; its effect depends on the kind of model "
        "(see docs/captioning.md)",
    )
    fine_prompt: str | None = Field(
        None,
        description="prompt for fine captions; by default the same as prompt. With "
        "guide_with_tags, a Jinja template with the variable tags (list of texts)",
    )
    guide_with_tags: bool = Field(
        False,
        description="render fine_prompt, a template, with the tags of tag_clips for each clip",
    )
    max_new_tokens: int = Field(60, ge=1, description="longest text, in tokens")
    fine_max_new_tokens: int | None = Field(
        None, ge=1, description="max_new_tokens for fine captions, if different"
    )
    fine_min_new_tokens: int | None = Field(
        None, ge=0, description="min_new_tokens for fine captions, if different"
    )
    fine_num_beams: int | None = Field(
        None, ge=1, description="num_beams for fine captions, if different"
    )
    fine_frames_per_second: float = Field(
        1.0, gt=0, description="frames per second of the clip that get a fine caption"
    )
    fine_at_least: int = Field(
        8,
        ge=1,
        description="minimum number of frames with a fine caption, even in short clips, "
        "if that many were kept",
    )
    skip_similar: float = Field(
        4.0,
        ge=0,
        le=255,
        description="a frame is not captioned again if no cell of its 16 × 16 thumbnail differs by "
        "more than this (levels of 0–255) from the last captioned one, whose text it then gets; "
        "0 captions every frame",
    )
    batch_images: int = resource(
        16, ge=1, description="pictures per model call; halved when memory runs out"
    )

    @model_validator(mode="after")
    def _check(self) -> CaptionFrames:
        if not (self.coarse or self.fine):
            raise ValueError("coarse and fine are both off, so there is nothing to caption")
        if self.form is not None and not self.coarse:
            raise ValueError(
                "fields and questions are asked about the frame in the middle, but coarse is off"
            )
        if self.coarse:
            self.check_server(self.model, self.generation)
        if self.fine:
            self.check_server(self.fine_model or self.model, self._fine_generation)
        if self.guide_with_tags:
            if not self.fine:
                raise ValueError("guide_with_tags guides fine captions, but fine is off")
            if "tags" not in variables_of(self._fine_prompt or "", ("tags",)):
                raise ValueError(
                    "guide_with_tags needs a fine_prompt that uses tags, such as "
                    "\"a picture of {{ tags|join(', ') }}, \""
                )
        return self

    def columns_read(self) -> tuple[str, ...]:
        """Tags only if they guide captions: otherwise new tags would make old captions stale."""
        spans = ("split_clips.start_seconds", "split_clips.end_seconds")
        return (*spans, "tag_clips.tags?") if self.guide_with_tags else spans

    def frames_picked(self) -> tuple[FramePick, ...]:
        return (*[Middle()] * self.coarse, *[self._fine_pick] * self.fine)

    @property
    def _fine_pick(self) -> FramePick:
        return PerSecond(self.fine_frames_per_second, self.fine_at_least)

    @property
    def _coarse_prompt(self) -> str | None:
        return self.prompt if self.form is None else self.with_form(self.prompt or CHAT_PROMPT)

    @property
    def _fine_prompt(self) -> str | None:
        return self.prompt if self.fine_prompt is None else self.fine_prompt

    @property
    def _fine_generation(self) -> Generation:
        def first(value: int | None, otherwise: int) -> int:
            return otherwise if value is None else value

        return Generation(
            first(self.fine_max_new_tokens, self.max_new_tokens),
            first(self.fine_min_new_tokens, self.min_new_tokens),
            first(self.fine_num_beams, self.num_beams),
            self.no_repeat_ngram_size,
        )

    def prompts(self) -> dict[str, str]:
        found = {
            "prompt": self._coarse_prompt if self.coarse else None,
            "fine_prompt": self._fine_prompt if self.fine else None,
        }
        return {name: text for name, text in found.items() if text is not None}

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        prompts: dict[str, list[str | None]] = {}
        models: dict[str, ModelReference] = {}
        for _, setting, reference, prompt in self._uses():
            guided = self.guide_with_tags and prompt == self._fine_prompt
            prompts.setdefault(setting, []).append(None if guided else prompt)
            models[setting] = reference
        for setting, reference in models.items():
            yield self.writer_check(
                label,
                setting,
                reference,
                partial(self._check_captioner, reference, prompts[setting]),
                pictures=1,
                depends_on=tuple(prompts[setting]),
            )

    def _check_captioner(
        self, reference: ModelReference, prompts: list[str | None], setting: str
    ) -> str:
        from clipmill.stages.models.checks.generators import check_captioner

        fills_in = self.form is not None and self._coarse_prompt in prompts
        return check_captioner(reference, self, setting, prompts, fills_in=fills_in)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        with ExitStack() as stack:
            captioners: dict[str, Captioner] = {}
            opened: dict[ModelReference, Captioner] = {}
            for scale, setting, reference, prompt in self._uses():
                if reference not in opened:
                    opened[reference] = stack.enter_context(
                        open_captioner(
                            reference, self, f"caption_frames.{setting}", self.batch_images
                        )
                    )
                captioners[scale] = opened[reference]
                captioners[scale].check_prompt(
                    prompt, fills_in=scale == COARSE and self.form is not None
                )
            yield lambda table: self.transform(table, captioners)

    def models_used(self) -> tuple[ModelReference, ...]:
        return tuple(reference for _, _, reference, _ in self._uses())

    def _uses(self) -> Iterator[tuple[str, str, ModelReference, str | None]]:
        if self.coarse:
            yield COARSE, "model", self.model, self._coarse_prompt
        if self.fine:
            setting = "fine_model" if self.fine_model else "model"
            yield FINE, setting, self.fine_model or self.model, self._fine_prompt

    def transform(self, table: pa.Table, captioners: Mapping[str, Captioner]) -> pa.Table:
        """One row per clip; captioners by scale. Pictures of all clips share model batches."""
        clips = [self._look_at(row) for row in table.to_pylist()]
        answers: dict[Hashable, Completion | RowFailed] = {}
        for scale, generation in ((COARSE, self.generation), (FINE, self._fine_generation)):
            pictures = [picture for clip in clips for picture in clip.pictures[scale]]
            if pictures:
                answers |= captioners[scale].describe(pictures, generation)
        rows = Rows(self)
        for clip in clips:
            try:
                rows.keep(clip.clip_id, **self._columns(clip, answers, captioners))
            except ServerRefused:
                raise  # it concerns all clips
            except RowFailed as failure:
                rows.record(clip.clip_id, failure)
        return rows.table()

    def _columns(
        self,
        clip: _Clip,
        answers: Mapping[Hashable, Completion | RowFailed],
        captioners: Mapping[str, Captioner],
    ) -> dict[str, Any]:
        """The columns of a clip; RowFailed if one of its captions can't be used."""
        if clip.failure is not None:
            raise clip.failure
        found: dict[str, Any] = {}
        if clip.coarse is not None:
            coarse, of_form = self._coarse(clip.coarse, clip, answers, captioners[COARSE])
            found |= {
                **of_form,
                "caption_coarse": coarse.text,
                "coarse_seconds": clip.coarse.seconds,
                "coarse_finish_reason": coarse.finish_reason,
                "coarse_new_tokens": coarse.new_tokens,
                "coarse_cleaned_by": list(coarse.cleaned_by),
            }
        if self.fine:
            fine = [
                (seconds, self._stored(ticket, clip, answers, captioners[FINE]))
                for seconds, ticket in clip.fine
            ]
            found |= {
                "captions_fine": [
                    {"seconds": seconds, "text": stored.text} for seconds, stored in fine
                ],
                "fine_finish_reasons": [stored.finish_reason for _, stored in fine],
                "fine_new_tokens": [stored.new_tokens for _, stored in fine],
                "fine_cleaned_by": [rule for _, stored in fine for rule in stored.cleaned_by],
            }
        return found

    def _coarse(
        self,
        ticket: Ticket,
        clip: _Clip,
        answers: Mapping[Hashable, Completion | RowFailed],
        captioner: Captioner,
    ) -> tuple[StoredText, dict[str, Any]]:
        """The coarse caption, and the columns of the form; RowFailed without a caption."""
        answer = answers[ticket]
        if self.form is None or isinstance(answer, RowFailed):
            return self._stored(ticket, clip, answers, captioner), {}
        try:
            stored, columns, reason = self.filled(answer, self.form, (self.prompt or CHAT_PROMPT,))
        except RowFailed as failure:
            raise _of_ticket(ticket, failure) from failure
        return stored, {**columns, "coarse_fields_reason": reason}

    def _stored(
        self,
        ticket: Ticket,
        clip: _Clip,
        answers: Mapping[Hashable, Completion | RowFailed],
        captioner: Captioner,
    ) -> StoredText:
        """The cleaned text of a ticket; RowFailed if it can't be used."""
        is_coarse = ticket.scale == COARSE
        own_limit = not is_coarse and self.fine_max_new_tokens is not None
        instructed = captioner.takes_instructions
        prompt = clip.prompts.get(ticket) or (CHAT_PROMPT if instructed else None)
        try:
            return stored_text(
                answers[ticket],
                when_cut_off=self.when_cut_off or ("fail" if instructed else "keep"),
                limit=(self.generation if is_coarse else self._fine_generation).max_new_tokens,
                setting="fine_max_new_tokens" if own_limit else "max_new_tokens",
                asked=[prompt] if prompt else [],
                off=self.text_rules_off,
            )
        except ServerRefused:
            raise
        except RowFailed as failure:
            raise _of_ticket(ticket, failure) from failure

    def _look_at(self, row: Mapping[str, Any]) -> _Clip:
        """Which of a clip's frames to caption, and which frames share a caption."""
        clip = _Clip(row["clip_id"])
        frames = row["frames"] or []
        if not frames:
            clip.failure = RowFailed("bad_media", "no frame of this clip was kept or can be read")
            return clip
        try:
            seconds = [frame["seconds"] for frame in frames]
            span = (row["start_seconds"], row["end_seconds"])
            if self.coarse:
                self._add_coarse(clip, [frames[i] for i in pick_frames(seconds, *span, [Middle()])])
            if self.fine:
                chosen = [frames[i] for i in pick_frames(seconds, *span, [self._fine_pick])]
                self._add_fine(clip, chosen, self._fine_prompt_for(row))
        except RowFailed as failure:
            clip.give_up(failure)
        return clip

    def _add_coarse(self, clip: _Clip, chosen: Sequence[Mapping[str, Any]]) -> None:
        if not chosen:
            raise RowFailed("bad_media", "none of this clip's frames is within its span")
        ticket = Ticket(clip.clip_id, COARSE, chosen[0]["seconds"])
        clip.coarse = ticket
        schema = None if self.form is None else self.form.schema()
        clip.ask(ticket, chosen[0]["jpeg"], self._coarse_prompt, schema)

    def _add_fine(
        self, clip: _Clip, chosen: Sequence[Mapping[str, Any]], prompt: str | None
    ) -> None:
        if not chosen:
            raise RowFailed("bad_media", "none of this clip's frames is within its span")
        for frame, leader in zip(chosen, leaders(chosen, self.skip_similar), strict=True):
            ticket = Ticket(clip.clip_id, FINE, chosen[leader]["seconds"])
            clip.fine.append((frame["seconds"], ticket))
            if chosen[leader] is frame:
                clip.ask(ticket, frame["jpeg"], prompt)

    def _fine_prompt_for(self, row: Mapping[str, Any]) -> str | None:
        if not self.guide_with_tags:
            return self._fine_prompt
        tags = [tag["tag"] for tag in row.get("tags") or []]
        try:
            return render(self._fine_prompt or "", {"tags": tags})
        except ValueError as error:
            raise RowFailed("model", f"caption_frames.fine_prompt: {error}") from error


@dataclass
class _Clip:
    """The questions about one clip, and their tickets."""

    clip_id: str
    coarse: Ticket | None = None
    fine: list[tuple[float, Ticket]] = field(default_factory=list)
    pictures: dict[str, list[PictureToCaption]] = field(
        default_factory=lambda: {COARSE: [], FINE: []}
    )
    prompts: dict[Ticket, str | None] = field(default_factory=dict)
    failure: RowFailed | None = None

    def ask(
        self,
        ticket: Ticket,
        jpeg: bytes,
        prompt: str | None,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        self.prompts[ticket] = prompt
        self.pictures[ticket.scale].append(PictureToCaption(ticket, jpeg, prompt, schema))

    def give_up(self, failure: RowFailed) -> None:
        self.failure = failure
        for pictures in self.pictures.values():
            pictures.clear()


def _of_ticket(ticket: Ticket, failure: RowFailed) -> RowFailed:
    return RowFailed(
        failure.kind, f"{ticket.scale} caption at {ticket.seconds:.3f} s: {failure.message}"
    )


def leaders(frames: Sequence[Mapping[str, Any]], threshold: float) -> list[int]:
    """For each frame the index of the frame whose caption it gets: its own if it has changed.

    Each frame is compared with the last captioned one, so that slow changes add up.
    """
    if threshold <= 0:
        return list(range(len(frames)))
    from clipmill.stages.media.read.thumbnails import largest_difference, thumbnail

    found: list[int] = []
    last = None
    for i, frame in enumerate(frames):
        small = thumbnail(frame["jpeg"])
        if last is not None and largest_difference(last, small) <= threshold:
            found.append(found[-1])
        else:
            found.append(i)
            last = small
    return found
