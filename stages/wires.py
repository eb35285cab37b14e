"""Settings of a stage that name a column of an earlier stage, as LABEL.COLUMN."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa
from pydantic import AfterValidator

from clipmill.schemas.tables import TEXT_AT
from clipmill.stages.protocol import Stage

_PLACE = re.compile(r"[^\s.?]+\.[^\s.?]+")


def _place(value: str) -> str:
    if not _PLACE.fullmatch(value):
        raise ValueError(f"{value!r}: expected LABEL.COLUMN, such as caption_clip.short")
    return value


ColumnName = Annotated[str, AfterValidator(_place)]
"""The type of such a setting."""


@dataclass(frozen=True)
class Kind:
    """What a stage can use of a column."""

    words: str
    fits: Callable[[pa.DataType], bool]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list_of_texts(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) and (_is_text(kind.value_type) or kind.value_type == TEXT_AT)
    )


ONE_TEXT = Kind("one text", _is_text)
TEXTS = Kind("texts", lambda kind: _is_text(kind) or _is_list_of_texts(kind))
PLAIN_TEXTS = Kind(
    "texts", lambda kind: _is_text(kind) or (pa.types.is_list(kind) and _is_text(kind.value_type))
)
TEXT_OR_TEXTS_AT = Kind(
    "one text, or texts with times",
    lambda kind: _is_text(kind) or (pa.types.is_list(kind) and kind.value_type == TEXT_AT),
)
NUMBER = Kind(
    "a number",
    lambda kind: (
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    ),
)


def check_column(said: str, place: str, before: Mapping[str, Stage], kind: Kind) -> None:
    """ValueError, which begins with `said`, if a column can't come, or can't be used.

    Whether its stage writes a column of that name is up to the plan.
    """
    label, _, column = place.partition(".")
    if label not in before:
        raise ValueError(f"{said}, but no stage {label!r} comes before it")
    if (setting := before[label].left_empty().get(column)) is not None:
        raise ValueError(f"{said}, which is there with {label}.{setting}")
    schema = before[label].table_schema
    if column in schema.names and not kind.fits(found := schema.field(column).type):
        raise ValueError(f"{said}, which is {found}, not {kind.words}")


def check_wires(stage: Stage, before: Mapping[str, Stage], kinds: Mapping[str, Kind]) -> None:
    """The same for settings of a stage, given with what each of them can be.

    The default of a setting may be a column of a stage that the recipe doesn't have.
    """
    for setting, kind in kinds.items():
        place = getattr(stage, setting)
        is_default = place == type(stage).model_fields[setting].default
        if place is not None and not (is_default and place.partition(".")[0] not in before):
            check_column(f"{setting} is {place}", place, before, kind)
