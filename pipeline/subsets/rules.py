"""The rules of a subset recipe: the values of each verb, checked as plain data.

A rule is one mapping with one verb and, if wanted, a `name`; a `where` may have `crop: safe`. What
it does to clips is in `rule_engine.py`; here it is only read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from clipmill.schemas.words import counted


def _as_sql(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _no_switch(value: Any) -> Any:
    """YAML reads `yes` and `true` as booleans, which Python would count as the number 1."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


Sql = Annotated[str, BeforeValidator(_as_sql), Field(min_length=1)]
"""A DuckDB expression over the columns of `clips`."""
Count = Annotated[int, BeforeValidator(_no_switch), Field(ge=1)]
Percent = Annotated[float, BeforeValidator(_no_switch), Field(ge=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_no_switch), Field(gt=0, le=1)]


class Body(BaseModel):
    """The value of a verb."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def describe(self) -> str:
        """The rule in a few words, for the funnel."""
        raise NotImplementedError

    def plain(self) -> Any:
        """The rule's value as a recipe would write it."""
        return self.model_dump(mode="json", exclude_none=True)


class Where(Body):
    """Keeps the clips for which the predicate is true; null counts as no."""

    expression: Sql

    def describe(self) -> str:
        return " ".join(self.expression.split())

    def plain(self) -> Any:
        return self.expression


class Percentile(Body):
    """Keeps one end, or the middle, of a column's distribution among the clips that reach it.

    Of N clips with a value, `top: 30` removes the floor(70% of N) lowest; clips that tie with the
    threshold stay; clips without a value (null or NaN) are removed.
    """

    column: Sql
    top: Percent | None = None
    bottom: Percent | None = None
    between: tuple[Percent, Percent] | None = None

    @model_validator(mode="after")
    def _one_end(self) -> Percentile:
        given = [name for name in ("top", "bottom", "between") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "give one of top, bottom and between"
                + (f", not {' and '.join(given)}" if given else "")
            )
        if self.between is not None and self.between[0] >= self.between[1]:
            raise ValueError(
                f"between: the first number must be smaller than the second, not "
                f"{self.between[0]:g} and {self.between[1]:g}"
            )
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """The percentiles between which clips stay."""
        if self.top is not None:
            return 100 - self.top, 100
        if self.bottom is not None:
            return 0, self.bottom
        assert self.between is not None
        return self.between

    def describe(self) -> str:
        if self.top is not None:
            return f"{self.column}: top {self.top:g}%"
        if self.bottom is not None:
            return f"{self.column}: bottom {self.bottom:g}%"
        low, high = self.bounds
        return f"{self.column}: {low:g}% to {high:g}%"


class Cap(Body):
    """Keeps at most this many clips of each group, or this share of them (rounded up): the first
    ones in the order `by`, or any.

    Clips whose group is null are removed.
    """

    per: Sql
    clips: Count | None = None
    fraction: Share | None = None
    by: Sql | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Cap:
        if (self.clips is None) == (self.fraction is None):
            raise ValueError("give one of clips and fraction")
        return self

    def describe(self) -> str:
        order = "at random" if self.by is None else f"by {self.by}"
        size = self.clips if self.clips is not None else f"{100 * (self.fraction or 0):.6g}%"
        return f"{size} per {self.per}, {order}"


class Quota(Body):
    """A cap that may differ by group: `{en: 1000, "*": 100}`, with `*` for every other group.

    Groups that are not listed are removed if there is no `*`. Clips whose group is null are
    removed, unless the mapping has a key `null`.
    """

    per: Sql
    clips: Count | dict[str | None, Annotated[int, Field(ge=0)]]
    by: Sql | None = None

    @field_validator("clips", mode="before")
    @classmethod
    def _group_names(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if not value:
            raise ValueError("the mapping names no group")
        for key, number in value.items():
            if isinstance(key, bool):
                raise ValueError(
                    'a group is read as true or false; put its name in quotes, e.g. "no": 100'
                )
            _no_switch(number)
        return {key if key is None else str(key): number for key, number in value.items()}

    def describe(self) -> str:
        order = "at random" if self.by is None else f"by {self.by}"
        if isinstance(self.clips, int):
            return f"{self.clips} per {self.per}, {order}"
        shares = ", ".join(
            f"{'null' if key is None else key} {number}" for key, number in self.clips.items()
        )
        return f"per {self.per}: {shares}; {order}"

    def plain(self) -> Any:
        value = super().plain()
        if isinstance(self.clips, Mapping):
            value["clips"] = {
                "null" if key is None else key: number for key, number in self.clips.items()
            }
        return value


GROUP_WEIGHTS = {"inverse": "clips", "inverse_sqrt": "√ clips"}


class Sample(Body):
    """Draws clips at random, without replacement, with the recipe's seed.

    `weight` is `uniform`, `one_per_video` (1 / clips of the video among those that reach the
    rule, which is how InternVid-DIV was drawn), or any positive SQL expression. With `per`, it is
    `inverse` (1 / clips of the group among those that reach the rule) or `inverse_sqrt` (1 / their
    square root, which is how Movie Gen balanced concepts); clips whose group is null are removed.
    """

    clips: Count | None = None
    fraction: Share | None = None
    weight: Sql = "uniform"
    per: Sql | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Sample:
        if (self.clips is None) == (self.fraction is None):
            raise ValueError("give one of clips and fraction")
        if (self.per is None) == (self.weight in GROUP_WEIGHTS):
            raise ValueError(
                "`per` and a weight by group belong together: {per: cluster, weight: "
                f"{' or '.join(GROUP_WEIGHTS)}}}"
            )
        return self

    def describe(self) -> str:
        size = f"{self.fraction:.6g} of them" if self.clips is None else counted(self.clips, "clip")
        if self.per is None:
            return f"{size}, {self.weight}"
        return f"{size}, weighted by 1 / {GROUP_WEIGHTS[self.weight]} per {self.per}"


class Stratify(Body):
    """Draws this many clips in total from groups: proportionally, or as equally as possible.

    Null is a group like any other.
    """

    by: tuple[Sql, ...] = Field(min_length=1)
    clips: Count
    allocation: Literal["proportional", "equal"] = "proportional"

    @field_validator("by", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def describe(self) -> str:
        return f"{counted(self.clips, 'clip')} over {', '.join(self.by)}, {self.allocation}"


class Balance(Body):
    """Draws this many clips in total, with as equal a share of each embedding cluster as possible.

    Clips without an embedding are removed.
    """

    clusters: Annotated[int, BeforeValidator(_no_switch), Field(ge=2)]
    clips: Count
    embeddings: str | None = None

    def describe(self) -> str:
        return f"{counted(self.clips, 'clip')} over {counted(self.clusters, 'cluster')}"


class Deduplicate(Body):
    """Keeps the first of similar clips in the order `prefer`.

    `bytes`: same file (SHA-256) and span. `frames`: perceptual hashes within `max_distance` bits.
    `embedding`: cosine of at least `min_cosine` of the pictures' embeddings, or of those of the
    step that `embeddings` names; `text`: of the texts' embeddings. For models whose threshold was
    measured, `min_cosine` may be left out. A clip that lacks the compared value stays. With
    `within`, only clips of one group, such as a cluster, are compared, each with each.
    """

    by: Literal["bytes", "frames", "embedding", "text"]
    max_distance: Annotated[int, BeforeValidator(_no_switch), Field(ge=0, le=64)] | None = None
    min_cosine: Annotated[float, BeforeValidator(_no_switch), Field(gt=0, le=1)] | None = None
    embeddings: str | None = None
    within: Sql | None = None
    prefer: Sql | None = None

    @model_validator(mode="after")
    def _what_belongs(self) -> Deduplicate:
        own = {"bytes": set(), "frames": {"max_distance"}}.get(
            self.by, {"min_cosine", "embeddings", "within"}
        )
        for name in ("max_distance", "min_cosine", "embeddings", "within"):
            if getattr(self, name) is not None and name not in own:
                raise ValueError(f"{name} can't be combined with by: {self.by}")
        if self.by == "frames" and self.max_distance is None:
            raise ValueError("by: frames needs max_distance")
        return self

    def describe(self) -> str:
        if self.by == "bytes":
            return "same file and span"
        if self.by == "frames":
            return f"frames within {self.max_distance} bits"
        what = "texts" if self.by == "text" else "embeddings"
        within = "" if self.within is None else f" within {self.within}"
        if self.min_cosine is None:
            return f"{what} that are near-duplicates for their model{within}"
        return f"{what} with cosine ≥ {self.min_cosine:g}{within}"


VERBS: dict[str, type[Body]] = {
    "where": Where,
    "percentile": Percentile,
    "cap": Cap,
    "quota": Quota,
    "sample": Sample,
    "stratify": Stratify,
    "balance": Balance,
    "deduplicate": Deduplicate,
}


@dataclass(frozen=True)
class Rule:
    """One checked rule, numbered from 1 in the order in which rules apply."""

    number: int
    verb: str
    body: Body
    name: str | None = None
    file: str = ""
    crop: Literal["safe"] | None = None
    """Of a `where`: clips that have a safe rectangle pass, too, to be cropped on export."""

    @property
    def place(self) -> str:
        """How errors refer to it."""
        named = f" {self.name!r}" if self.name else ""
        return f"{self.file}: rule {self.number}{named} ({self.verb})"

    def describe(self) -> str:
        return self.body.describe() + (" (or cropped)" if self.crop else "")

    def plain(self) -> dict[str, Any]:
        """The rule as a recipe would write it, with all parameters filled in."""
        name = {"name": self.name} if self.name else {}
        crop = {"crop": self.crop} if self.crop else {}
        return {**name, self.verb: self.body.plain(), **crop}
