"""rewrite_captions: a caption in other words, or corrected by what else is known of its clip."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from clipmill.schemas.errors import RowFailed, ServerRefused
from clipmill.schemas.tables import CLIP_CAPTION, clip_table
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.fitting import fitted, spread
from clipmill.stages.models.generation import GeneratingStage, Generation
from clipmill.stages.models.outputs.forms import object_of
from clipmill.stages.models.outputs.stored import LENGTH, STOP, stored_text
from clipmill.stages.models.outputs.wording import normal
from clipmill.stages.models.prompts import render, variables_of
from clipmill.stages.models.rewriting_prompts import NAMED_REWRITINGS
from clipmill.stages.protocol import ModelCheck, Rows, Stage, Transform, Workspace, resource
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from clipmill.stages.models.text_models import TextModel

REWRITTEN = clip_table(
    ("captions_rewritten", pa.list_(pa.string())),
    ("rewritten_finish_reason", pa.string()),
    ("rewritten_prompt_tokens", pa.int32()),
    ("rewritten_new_tokens", pa.int32()),
    ("rewritten_cleaned_by", pa.list_(pa.string())),
    # Why there are fewer than asked for.
    ("rewritten_reason", pa.string()),
)

# Which columns a prompt needs for each variable beside the caption; a clip may lack any of them.
_READS = {
    "tags": "tag_clips.tags?",
    "coarse": "caption_frames.caption_coarse?",
    "fine": "caption_frames.captions_fine?",
}
_CLIP = "clip"
_VARIABLES = ("caption", *_READS, _CLIP, "variants")
_FIELD = "captions"
_PLACE = re.compile(r"[^\s.?]+\.[^\s.?]+")


class RewriteCaptions(GeneratingStage):
    """Further captions of a clip, made of one that it has, by a language model.

    With `variants` above 1, the model is asked for a list of different texts in one request. Texts
    that say the same as the caption, or as another of them, are left out; rewritten_reason says how
    many. Which clips are rewritten is up to a gate, such as `where: similarity < 0.2`.
    """

    name: ClassVar[str] = "rewrite_captions"
    writes: ClassVar[pa.Schema] = REWRITTEN

    model: ModelReference = Field(
        ModelReference(hub="Qwen/Qwen2.5-1.5B-Instruct"),
        description="language model: hub id, folder, or server",
    )
    caption: str = Field(
        "summarize_captions.caption", description="the column of the caption, LABEL.COLUMN"
    )
    clip_caption: str = Field(
        CLIP_CAPTION,
        description="the column with another caption of the whole clip for prompts, LABEL.COLUMN",
    )
    variants: int = Field(1, ge=1, le=32, description="texts asked for")
    prompt: str = Field(
        "paraphrase",
        description="paraphrase (the same in other words), correct (as little as needed, so that "
        "it agrees with tags and the other captions), or a Jinja template with the variables "
        "caption, tags (list of texts), coarse, fine (list of texts), clip (see clip_caption) "
        "and variants",
    )
    system: str | None = Field(
        None, description="the system's message; by default none, or that of a named prompt"
    )
    max_new_tokens: int = Field(256, ge=1, description="longest answer, in tokens")
    min_new_tokens: int = Field(0, ge=0, description="shortest answer, in tokens")
    num_beams: int = Field(1, ge=1, description="beams of the beam search; 1 is greedy")
    no_repeat_ngram_size: int = Field(
        0,
        ge=0,
        description="no run of this many tokens occurs twice in an answer; 0 turns this off",
    )
    batch_texts: int = resource(
        16, ge=1, description="prompts per model call; halved when memory runs out"
    )

    @field_validator("caption", "clip_caption")
    @classmethod
    def _check_place(cls, place: str) -> str:
        if not _PLACE.fullmatch(place):
            raise ValueError(f"{place!r}: expected LABEL.COLUMN, such as caption_clip.short")
        return place

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, template: str) -> str:
        if template not in NAMED_REWRITINGS and "caption" not in variables_of(template, _VARIABLES):
            raise ValueError(
                "the template doesn't use caption, and there is no prompt of that name; there are "
                f"{', '.join(NAMED_REWRITINGS)}"
            )
        return template

    @model_validator(mode="after")
    def _check(self) -> RewriteCaptions:
        self.check_server(self.model, self._generation)
        if self.clip_caption != CLIP_CAPTION and _CLIP not in self._used:
            raise ValueError("clip_caption is set, but the prompt doesn't use clip")
        return self

    @property
    def _used(self) -> frozenset[str]:
        return variables_of(self._template, _VARIABLES)

    @property
    def _template(self) -> str:
        named = NAMED_REWRITINGS.get(self.prompt)
        return self.prompt if named is None else named.prompt

    @property
    def _system(self) -> str | None:
        named = NAMED_REWRITINGS.get(self.prompt)
        return named.system if named is not None and self.system is None else self.system

    @property
    def _generation(self) -> Generation:
        return Generation(
            self.max_new_tokens, self.min_new_tokens, self.num_beams, self.no_repeat_ngram_size
        )

    @property
    def _schema(self) -> dict[str, Any] | None:
        """The JSON schema of an answer with several texts."""
        if self.variants == 1:
            return None
        count = {"minItems": self.variants, "maxItems": self.variants}
        texts = {"type": "array", "items": {"type": "string"}, **count}
        return {
            "type": "object",
            "properties": {_FIELD: texts},
            "required": [_FIELD],
            "additionalProperties": False,
        }

    def columns_read(self) -> tuple[str, ...]:
        return (
            f"{self.caption} as caption",
            *(read for name, read in _READS.items() if name in self._used),
            *([f"{self.clip_caption} as {_CLIP}?"] if _CLIP in self._used else []),
        )

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        """ValueError if a caption is no text, or the other one's stage is missing."""
        for name in ("caption", "clip_caption"):
            place = getattr(self, name)
            label, _, column = place.partition(".")
            if name == "clip_caption" and place != CLIP_CAPTION and label not in before:
                raise ValueError(f"{name} is {place}, but no stage {label!r} comes before it")
            schema = before[label].table_schema if label in before else pa.schema([])
            if column in schema.names and (kind := schema.field(column).type) != pa.string():
                raise ValueError(f"{name} is {place}, which is {kind}, not one text")

    def prompts(self) -> dict[str, str]:
        found = {"prompt": self._template, "system": self._system}
        return {name: text for name, text in found.items() if text is not None}

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        from clipmill.stages.models.checks.generators import check_text_model

        yield self.writer_check(
            label,
            "model",
            self.model,
            lambda name: check_text_model(self.model, self, name),
            with_picture=False,
        )

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        from clipmill.stages.models.text_models import open_text_model

        with open_text_model(
            self.model,
            self,
            "rewrite_captions.model",
            self._generation,
            self.batch_texts,
            system=self._system,
            schema=self._schema,
        ) as model:
            yield lambda table: self.transform(table, model)

    def transform(self, table: pa.Table, model: TextModel) -> pa.Table:
        """One row per clip."""
        rows = Rows(self)
        asked: dict[str, tuple[str, str]] = {}
        for row in table.to_pylist():
            try:
                asked[row["clip_id"]] = row["caption"], self._prompt_for(row, model)
            except RowFailed as failure:
                rows.record(row["clip_id"], failure)
        found = model.complete([prompt for _, prompt in asked.values()])
        for (clip_id, (caption, prompt)), answer in zip(asked.items(), found, strict=True):
            try:
                rows.keep(clip_id, **self._columns(answer, caption, prompt))
            except ServerRefused:
                raise  # it concerns all clips
            except RowFailed as failure:
                rows.record(clip_id, failure)
        return rows.table()

    def _prompt_for(self, row: Mapping[str, Any], model: TextModel) -> str:
        """The prompt, with as many fine captions as fit."""
        if not row["caption"]:
            raise RowFailed("model", f"the clip has no {self.caption}")
        fine = [one["text"] for one in row.get("captions_fine") or [] if one["text"]]
        values = {
            "caption": row["caption"],
            "tags": [entry["tag"] for entry in row.get("tags") or []],
            "coarse": row.get("caption_coarse") or "",
            _CLIP: row.get(_CLIP) or "",
            "variants": self.variants,
        }
        return fitted(
            lambda lines: self._render({**values, "fine": [*spread(fine, lines)]}), len(fine), model
        )

    def _render(self, values: Mapping[str, Any]) -> str:
        try:
            prompt = render(self._template, values)
        except ValueError as error:
            raise RowFailed("model", f"rewrite_captions.prompt: {error}") from error
        if self.variants == 1:
            return prompt
        return (
            f'{prompt}\n\nAnswer with one JSON object whose field "{_FIELD}" is a list of '
            f"{self.variants} texts."
        )

    def _columns(self, answer: Completion | RowFailed, caption: str, prompt: str) -> dict[str, Any]:
        """The columns of a clip; RowFailed if no text of the answer can be used."""
        if isinstance(answer, RowFailed):
            raise answer
        texts, rules = self._texts_in(answer)
        kept: dict[str, str] = {}
        faults: list[str] = []
        same = 0
        for text in texts[: self.variants]:
            try:
                stored = stored_text(
                    text,
                    when_cut_off=self.when_cut_off or "fail",
                    limit=self.max_new_tokens,
                    setting="max_new_tokens",
                    asked=[prompt],
                    off=self.text_rules_off,
                )
            except RowFailed as failure:
                faults.append(failure.message)
                continue
            rules += stored.cleaned_by
            words = normal(stored.text)
            if words == normal(caption) or words in kept:
                same += 1
            else:
                kept[words] = stored.text
        if not kept and not same:
            raise RowFailed("model", faults[0] if faults else "the answer has no texts")
        return {
            "captions_rewritten": list(kept.values()),
            "rewritten_finish_reason": STOP if answer.complete else LENGTH,
            "rewritten_prompt_tokens": answer.prompt_tokens,
            "rewritten_new_tokens": answer.new_tokens,
            "rewritten_cleaned_by": list(dict.fromkeys(rules)),
            "rewritten_reason": self._reason(len(kept), same, faults),
        }

    def _texts_in(self, answer: Completion) -> tuple[list[Completion], tuple[str, ...]]:
        """The texts of an answer, and the rules that were needed to find them."""
        if self.variants == 1:
            return [answer], ()
        if not answer.complete and self.when_cut_off in (None, "fail"):
            raise RowFailed(
                "model", f"the answer was cut off at {self.max_new_tokens} tokens (max_new_tokens)"
            )
        said, rules = object_of(answer.text, off=self.text_rules_off)
        listed = said.get(_FIELD)
        if not isinstance(listed, list):
            raise RowFailed("model", f"the answer has no list {_FIELD}")
        return [Completion(text) for text in listed if isinstance(text, str)], rules

    def _reason(self, kept: int, same: int, faults: list[str]) -> str | None:
        if kept == self.variants:
            return None
        said = [f"{kept} of {self.variants} texts"]
        said += [f"{same} say what others say"] * bool(same)
        return "; ".join([*said, *faults])
