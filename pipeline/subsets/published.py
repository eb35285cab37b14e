"""Published funnels of recipes: which share of its clips a publication kept, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


class PublishedStep(BaseModel):
    """One step of a published funnel."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    step: str = Field(description="what was filtered, in the publication's words")
    kept: Share = Field(description="per cent of all that came in which are left after it")
    rule: str | None = Field(None, description="name of the rule that does the same here")


class PublishedFunnel(BaseModel):
    """The shares of a funnel, as published."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    of: str = Field(description="what came in, in words")
    source: str = Field(description="where the shares were published")
    verified: bool = Field(True, description="false if they are quoted from a third party")
    steps: list[PublishedStep] = Field(min_length=1, description="the steps, in order")

    @property
    def share(self) -> float:
        """What is left in the end, in per cent."""
        return self.steps[-1].kept


def unknown_rule(funnel: PublishedFunnel, names: Sequence[str | None]) -> str | None:
    """A rule that the funnel names and the recipe doesn't have."""
    return next((step.rule for step in funnel.steps if step.rule not in (None, *names)), None)


def beside_own(
    funnel: PublishedFunnel, rules: Sequence[Mapping[str, Any]], clips: int
) -> dict[str, Any]:
    """A published funnel with the shares of one's own, as plain data.

    `rules` is a funnel of the recipe, `clips` what came in.
    """
    left = {rule["name"]: rule for rule in rules if rule["name"]}
    steps = []
    for step in funnel.steps:
        rule = left.get(step.rule)
        own = 100 * rule["remaining"]["clips"] / clips if rule and clips else None
        steps.append(
            {
                "step": step.step,
                "rule": rule["number"] if rule else None,
                "published_share": step.kept,
                "share": None if own is None else round(own, 4),
            }
        )
    return {**funnel.model_dump(include={"of", "source", "verified"}), "steps": steps}
