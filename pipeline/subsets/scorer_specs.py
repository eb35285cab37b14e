"""What a subset recipe requires of the scorers that its rules use."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_BOUND = re.compile(r"\s*(?P<sign><=|>=|<|>)\s*(?P<number>-?\d+(\.\d+)?)\s*\Z")


class Made(BaseModel):
    """How a stage must have been configured: patterns by setting.

    A pattern is a value, a text with `*` and `?`, a bound such as `">= 8"`, or a list of which any
    entry may match. A model matches by its reference, with or without revision, or by its hash.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    models: dict[str, str | list[str]] = Field(
        default_factory=dict, description="setting: pattern of the model or file that it names"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="setting: pattern")

    def mismatches(self, record: Mapping[str, Any]) -> list[str]:
        """What in a stage's run record doesn't match, in words; empty if everything does."""
        found = []
        for setting, pattern in self.models.items():
            model = record["models"].get(setting)
            if model is None or not fits_any(pattern, _names(model)):
                found.append(
                    f"its {setting} is {reference_of(model)}, not {pattern_words(pattern, 1)}"
                )
        for setting, pattern in self.settings.items():
            value = record["settings"].get(setting)
            if not fits_any(pattern, [value]):
                found.append(f"its {setting} is {_value(value)}, not {pattern_words(pattern)}")
        return found


class Accepted(Made):
    """One accepted scorer: the stage, or the column if any stage may have made it."""

    stage: str | None = Field(None, description="name of the stage, whatever its label")
    column: str | None = Field(
        None, description="column of `clips`, made by a custom stage or by take_given_score"
    )
    upstream: dict[str, Made] = Field(
        default_factory=dict,
        description="name of a stage that it reads from: its expected settings",
    )

    @model_validator(mode="after")
    def _names_something(self) -> Accepted:
        if self.stage is None and self.column is None:
            raise ValueError("name a stage, a column, or both")
        return self


class ScorerSpec(BaseModel):
    """The requirements for a column that the rules use."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(description="the scorer's usual name")
    means: str = Field("", description="what the number is: unit, frames, direction")
    accepts: list[Accepted] = Field(min_length=1, description="any one of these is accepted")
    add: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="label: settings of the stages to add to the run's "
        "recipe, the scorer last; `stage:` names the stage where the label doesn't",
    )
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="STAGE.SETTING: value with which a stage of the run's recipe makes it",
    )
    note: str = Field("", description="what else the user must know to add it")

    @field_validator("add", mode="before")
    @classmethod
    def _null_means_defaults(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {label: given or {} for label, given in value.items()}
        return value


def _names(model: Mapping[str, Any]) -> list[str]:
    """All names by which a model may be identified."""
    reference, revision = model["reference"], model.get("revision")
    return [
        reference,
        *([f"{reference}@{revision}"] if revision else []),
        Path(reference).name,
        model["identity"],
    ]


def reference_of(model: Mapping[str, Any] | None) -> str:
    if model is None:
        return "not set"
    place = str(model["reference"])
    # A server's address has the model's name after `#`; a web file's address ends in its name.
    is_file = place.startswith("/") or (place.startswith("http") and "#" not in place)
    return Path(place).name if is_file else place


def fits_any(pattern: Any, values: list[Any]) -> bool:
    """Whether any value matches the pattern, or any one of a list of patterns."""
    patterns = pattern if isinstance(pattern, list) else [pattern]
    return any(_fits(one, value) for one in patterns for value in values)


def _fits(pattern: Any, value: Any) -> bool:
    if not isinstance(pattern, str):
        return isinstance(pattern, bool) == isinstance(value, bool) and bool(pattern == value)
    if isinstance(value, str):
        return fnmatch.fnmatchcase(value, pattern)
    bound = _BOUND.match(pattern)
    if bound is None or isinstance(value, bool) or not isinstance(value, int | float):
        return False
    limit = float(bound["number"])
    return {"<=": value <= limit, ">=": value >= limit, "<": value < limit, ">": value > limit}[
        bound["sign"]
    ]


def _value(value: Any) -> str:
    return "not set" if value is None else str(value)


def pattern_words(pattern: Any, most: int | None = None) -> str:
    """A readable pattern: a limited number of its choices, and no hash if there is a name."""
    patterns = pattern if isinstance(pattern, list) else [pattern]
    said = [str(one).strip("*") for one in patterns if not str(one).startswith("sha256:")]
    return " or ".join((said or list(map(str, patterns)))[:most])
