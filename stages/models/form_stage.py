"""Shared by stages whose model may fill in a form: their columns depend on their settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from clipmill.schemas.errors import RowFailed
from clipmill.schemas.tables import OUTCOME
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.generation import AnsweringStage
from clipmill.stages.models.outputs.forms import KNOWN_FIELDS, AskedField, Form, columns_of
from clipmill.stages.models.outputs.json_answers import object_of
from clipmill.stages.models.outputs.stored import LENGTH, StoredText, stored_text

if TYPE_CHECKING:
    from pydantic import ValidationInfo

CAPTION = "caption"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_MOST_FIELDS = 64
# Names by which rows of tables are matched.
_KEYS = ("source_key", "video_id")


class FormStage(AnsweringStage):
    """Settings of a stage that asks for a form, and the columns of a filled one."""

    fields: dict[str, AskedField] = Field(
        default_factory=dict,
        description="fields of a structured caption, by the name of their column: a type (text, "
        "texts, number, integer, boolean), a list of the only texts allowed, or type, one_of and "
        "ask; or a list of well-known fields: short, dense, subjects, action, background, style, "
        "camera, text_on_screen",
    )
    caption_field: str | None = Field(
        None,
        description="the field that is the caption; by default the first one of type text, "
        "and without one, caption is asked for as well",
    )
    questions: dict[str, str] = Field(
        default_factory=dict,
        description="yes–no questions by the name of their column, asked in the same request; "
        "NAME_answer is the model's own answer",
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
        taken = {*cls.writes.names, *_KEYS, CAPTION}
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
    def _check_form(self) -> Self:
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

    @property
    def form(self) -> Form | None:
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
        """The field of the form that is the caption."""
        texts = (name for name, asked in self.fields.items() if _may_be_caption(asked))
        return self.caption_field or next(texts, CAPTION)

    def with_form(self, prompt: str) -> str:
        """The prompt, and what the form's fields should hold, if there is one."""
        return prompt if self.form is None else f"{prompt}\n\n{self.form.words()}"

    def filled(
        self, answer: Completion, form: Form, asked: Sequence[str]
    ) -> tuple[StoredText, dict[str, Any], str | None]:
        """The caption, the columns of fields and questions, and why some of them lack values.

        RowFailed if the answer has no usable caption. `asked` is what the model was asked beside
        the form.
        """
        if not answer.complete and self.when_cut_off in (None, "fail"):
            raise RowFailed("model", f"the answer was {self._cut_off}; raise max_new_tokens")
        wanted = (*form.fields, *form.questions)
        said, rules = object_of(answer.text, wanted, off=self.text_rules_off)
        found = form.filled(said)
        source = self._caption_from
        if (caption := found.columns[source]) is None:
            raise RowFailed("model", f"the answer has no usable {source}: {found.faults[source]}")
        # The fields of an answer that was cut off are whole, or missing.
        stored = stored_text(
            replace(answer, text=caption, complete=True),
            when_cut_off="fail",
            limit=self.max_new_tokens,
            setting="max_new_tokens",
            asked=asked,
            off=self.text_rules_off,
        )
        stored = replace(stored, cleaned_by=(*rules, *stored.cleaned_by))
        faults = dict(found.faults)
        if not answer.complete:
            stored = replace(stored, finish_reason=LENGTH)
            lost = [name for name in faults if name not in said]
            faults |= dict.fromkeys(lost, f"the answer was {self._cut_off} before")
        columns = {**found.columns, source: stored.text}
        if source not in self.fields:
            del columns[source]
        said_of_faults = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
        return stored, columns, said_of_faults or None

    @property
    def _cut_off(self) -> str:
        return f"cut off at {self.max_new_tokens} tokens (max_new_tokens)"


def _may_be_caption(asked: AskedField) -> bool:
    return asked.type == "text" and not asked.one_of
