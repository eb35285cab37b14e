"""Forms: answers with several fields of known types, asked for as one JSON object."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from clipmill.schemas.errors import storable
from clipmill.stages.models.generated_text import fault_of, tidy
from clipmill.stages.models.outputs.control_tokens import without_tokens

FieldType = Literal["text", "texts", "number", "integer", "boolean"]

_COLUMN_TYPES: dict[str, pa.DataType] = {
    "text": pa.string(),
    "texts": pa.list_(pa.string()),
    "number": pa.float64(),
    "integer": pa.int64(),
    "boolean": pa.bool_(),
}
_JSON_TYPES: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "texts": {"type": "array", "items": {"type": "string"}},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "boolean": {"type": "boolean"},
}
_WORDS = {
    "text": "a text",
    "texts": "a list of texts",
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
}
# What fields of these names ask for, where the recipe says nothing else.
KNOWN_FIELDS: dict[str, tuple[FieldType, str]] = {
    "short": ("text", "one short sentence about what happens"),
    "dense": (
        "text",
        "three to six sentences: who or what can be seen, what happens in which order, and where",
    ),
    "subjects": ("texts", "the main people, animals and things, each in a few words"),
    "action": ("text", "what the main subject does"),
    "background": ("text", "the place, and what can be seen behind the main subject"),
    "style": ("text", "the look, such as live action, animation or a screen recording"),
    "camera": ("text", "how the camera is placed, and how it moves"),
    "text_on_screen": ("texts", "each text that can be read, word by word; empty without any"),
}
YES, NO, UNSURE = "yes", "no", "unsure"
_YES_OR_NO = re.compile(r"\W*(yes|no|true|false)\b", re.IGNORECASE)
_MOST_SHOWN = 80
ANSWER = "_answer"
"""Ends the name of the column with the model's own answer to a question."""


class AskedField(BaseModel):
    """One field of an answer, as a recipe declares it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: FieldType = Field("text", description="text, texts, number, integer or boolean")
    one_of: tuple[str, ...] = Field((), description="the only texts that it may be")
    ask: str = Field("", description="what the model is asked for")

    @field_validator("one_of", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        """YAML reads numbers as such, and yes and no as true and false."""
        if not isinstance(value, list | tuple):
            return value
        if any(isinstance(one, bool) for one in value):
            raise ValueError('yes, no, on and off need quotes in YAML, e.g. ["yes", "no"]')
        return [str(one) if isinstance(one, int | float) else one for one in value]

    @model_validator(mode="after")
    def _check(self) -> AskedField:
        if self.one_of and self.type != "text":
            raise ValueError(f"one_of is for texts, and the type is {self.type}")
        if len({tidy(one).casefold() for one in self.one_of}) < len(self.one_of):
            raise ValueError("two of the texts in one_of are the same")
        if self.one_of and not all(tidy(one) for one in self.one_of):
            raise ValueError("one_of has an empty text")
        return self

    @classmethod
    def declared(cls, name: str, value: Any) -> Any:
        """What a recipe says about a field, in full: a type's name, a list of texts, or nothing."""
        kind, ask = KNOWN_FIELDS.get(name, ("text", ""))
        if value is None:
            return {"type": kind, "ask": ask}
        if isinstance(value, str):
            return {"type": value, "ask": ask if value == kind else ""}
        if isinstance(value, list | tuple):
            return {"one_of": value}
        if isinstance(value, Mapping) and not value.get("one_of"):
            return {"type": kind, "ask": ask, **value}
        return value

    def identity(self) -> dict[str, Any]:
        return self.model_dump(exclude_defaults=True)

    @property
    def in_json(self) -> dict[str, Any]:
        return (
            {"type": "string", "enum": list(self.one_of)} if self.one_of else _JSON_TYPES[self.type]
        )

    @property
    def in_words(self) -> str:
        if self.one_of:
            return "one of " + ", ".join(json.dumps(one, ensure_ascii=False) for one in self.one_of)
        return _WORDS[self.type]


def columns_of(
    fields: Mapping[str, AskedField], questions: Collection[str]
) -> list[tuple[str, pa.DataType]]:
    """A column for each field; two for each question: yes or no, and the model's own answer."""
    found = [(name, _COLUMN_TYPES.get(asked.type, pa.string())) for name, asked in fields.items()]
    for name in questions:
        found += [(name, pa.bool_()), (f"{name}{ANSWER}", pa.string())]
    return found


@dataclass(frozen=True)
class FilledForm:
    """The columns of an answer; `faults` says why those that are null have no value, and which
    texts others lack."""

    columns: dict[str, Any]
    faults: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """The fields and the yes–no questions of one request."""

    fields: Mapping[str, AskedField]
    questions: Mapping[str, str] = field(default_factory=dict)

    def schema(self) -> dict[str, Any]:
        """The JSON schema of an answer."""
        question = {"type": "string", "enum": [YES, NO, UNSURE]}
        properties = {name: asked.in_json for name, asked in self.fields.items()}
        properties |= dict.fromkeys(self.questions, question)
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def words(self) -> str:
        """What each field should hold, for the prompt: a server's grammar is not shown to the
        model."""
        lines = [
            f'- "{name}": {asked.in_words}' + (f": {asked.ask}" if asked.ask else "")
            for name, asked in self.fields.items()
        ]
        lines += [
            f'- "{name}": "{YES}", "{NO}" or "{UNSURE}": {question}'
            for name, question in self.questions.items()
        ]
        return "Answer with one JSON object with these fields:\n" + "\n".join(lines)

    def filled(self, answer: Mapping[str, Any]) -> FilledForm:
        """The values of an answer; those that are missing or of another type are null."""
        columns: dict[str, Any] = {}
        faults: dict[str, str] = {}
        for name, asked in self.fields.items():
            try:
                said = _present(answer, name)
                if asked.type == "texts":
                    columns[name], left_out = _texts(said)
                    faults |= {name: left_out} if left_out else {}
                else:
                    columns[name] = _value(asked, said)
            except ValueError as error:
                columns[name], faults[name] = None, str(error)
        for name in self.questions:
            own, columns[name] = f"{name}{ANSWER}", None
            columns[own] = None
            try:
                said = _present(answer, name)
                columns[own] = storable(tidy(said if isinstance(said, str) else json.dumps(said)))
                columns[name] = _yes_or_no(said)
            except ValueError as error:
                faults[name] = str(error)
        return FilledForm(columns, faults)


def _present(answer: Mapping[str, Any], name: str) -> Any:
    if name not in answer:
        raise ValueError("missing")
    if answer[name] is None:
        raise ValueError("the model answered null")
    return answer[name]


def _value(asked: AskedField, said: Any) -> Any:
    if asked.one_of:
        return _chosen(asked.one_of, said)
    match asked.type:
        case "text":
            return _text(said)
        case "boolean":
            return _yes_or_no(said)
        case "integer":
            return _whole_number(said)
    return _number(said)


def _texts(said: Any) -> tuple[list[str], str]:
    """The texts of a list, or a single one, and which others were left out; ValueError if all."""
    found: list[str] = []
    faults: list[str] = []
    for one in said if isinstance(said, list) else [said]:
        try:
            if one is not None and (text := _text(one)):
                found.append(text)
        except ValueError as error:
            faults.append(str(error))
    if faults and not found:
        raise ValueError(faults[0])
    return found, f"left out: {'; '.join(faults)}" if faults else ""


def _text(said: Any) -> str:
    """A tidy text; an empty one is an answer, too."""
    if not isinstance(said, str):
        raise ValueError(f"{_shown(said)} is no text")
    text = tidy(without_tokens(said))
    if text and (fault := fault_of(text)):
        raise ValueError(fault)
    return text


def _chosen(options: Sequence[str], said: Any) -> str:
    wanted = tidy(said).casefold().rstrip(".") if isinstance(said, str) else None
    for option in options:
        if tidy(option).casefold().rstrip(".") == wanted:
            return option
    raise ValueError(f"{_shown(said)} is none of the choices")


def _number(said: Any) -> float:
    try:
        number = float(said) if not isinstance(said, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{_shown(said)} is no number")
    return number


def _whole_number(said: Any) -> int:
    # A large one would lose its last digits as a float.
    number = said if type(said) is int else _number(said)
    if number != int(number) or abs(number) >= 2**63:
        raise ValueError(f"{_shown(said)} is no whole number")
    return int(number)


def _yes_or_no(said: Any) -> bool:
    if isinstance(said, bool):
        return said
    if isinstance(said, str):
        if found := _YES_OR_NO.match(said):
            return found.group(1).lower() in (YES, "true")
        if tidy(said).casefold().rstrip(".") == UNSURE:
            raise ValueError("the model is unsure")
    raise ValueError(f"{_shown(said)} is neither yes nor no")


def _shown(said: Any) -> str:
    text = storable(json.dumps(said, ensure_ascii=False))
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…"
