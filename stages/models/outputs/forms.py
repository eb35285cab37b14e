"""Forms: answers with several fields of known types, asked for as one JSON object."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from clipmill.schemas.errors import RowFailed, storable
from clipmill.stages.models.generated_text import LONGEST_CHARACTERS, fault_of, shortened, tidy
from clipmill.stages.models.outputs.control_tokens import without_tokens
from clipmill.stages.models.outputs.markup import without_fences
from clipmill.stages.models.outputs.reasoning import without_reasoning

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
_PAIR = re.compile(r'[\s,]*("(?:[^"\\]|\\.)*")\s*:\s*', re.DOTALL)
_MOST_STARTS = 20
_MOST_SHOWN = 80
ANSWER = "_answer"
"""Ends the name of the column with the model's own answer to a question."""


class AskedField(BaseModel):
    """One field of an answer, as a recipe declares it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: FieldType = Field("text", description="text, texts, number, integer or boolean")
    one_of: tuple[str, ...] = Field((), description="the only texts that it may be")
    ask: str = Field("", description="what the model is asked for")

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
    """The columns of an answer; `faults` says why those that are null have no value."""

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
                columns[name] = _value(asked, _present(answer, name))
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


def object_of(said: str, *, off: Collection[str] = ()) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The JSON object in an answer, and the rules that were needed to find it; RowFailed if it has
    none.

    Of an object that was cut off, or is broken, those fields are there that are whole.
    """
    rules: tuple[str, ...] = ()
    text = said
    if "reasoning" not in off:
        answer = without_reasoning(said)
        if answer.unfinished:
            raise RowFailed("model", f"reasoning without an answer: {shortened(tidy(said))}")
        rules = ("reasoning",) if answer.reasoned else ()
        text = answer.text
    if len(text) > LONGEST_CHARACTERS:
        raise RowFailed(
            "model",
            f"the answer has {len(text):,} characters, more than {LONGEST_CHARACTERS:,}: "
            f"{shortened(tidy(text))}",
        )
    found = _object_in(without_fences(text))
    if not found:
        shown = shortened(tidy(text)) if tidy(text) else "it is empty"
        raise RowFailed("model", f"the answer has no JSON object with fields: {shown}")
    return found, rules


def _object_in(text: str) -> dict[str, Any]:
    decoder = json.JSONDecoder(strict=False)
    best: dict[str, Any] = {}
    starts = [match.start() for match in re.finditer(r"\{", text)][:_MOST_STARTS]
    for start in starts:
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            found = _whole_pairs(text, start + 1, decoder)
        if isinstance(found, dict) and len(found) > len(best):
            best = found
    return best


def _whole_pairs(text: str, at: int, decoder: json.JSONDecoder) -> dict[str, Any]:
    """The fields of a broken object up to the first that can't be read."""
    found: dict[str, Any] = {}
    while pair := _PAIR.match(text, at):
        try:
            found[json.loads(pair.group(1), strict=False)], at = decoder.raw_decode(
                text, pair.end()
            )
        except (ValueError, RecursionError):
            break
    return found


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
        case "texts":
            listed = said if isinstance(said, list) else [said]
            return [text for text in map(_text, listed) if text]
        case "boolean":
            return said if isinstance(said, bool) else _yes_or_no(said)
    number = _number(said)
    if asked.type == "integer":
        if number != int(number) or abs(number) >= 2**63:
            raise ValueError(f"{_shown(said)} is no whole number")
        return int(number)
    return number


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


def _yes_or_no(said: Any) -> bool:
    if isinstance(said, bool):
        return said
    if isinstance(said, str) and (found := _YES_OR_NO.match(said)):
        return found.group(1).lower() in (YES, "true")
    if said == UNSURE:
        raise ValueError("the model is unsure")
    raise ValueError(f"{_shown(said)} is neither yes nor no")


def _shown(said: Any) -> str:
    text = storable(json.dumps(said, ensure_ascii=False))
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…"
