"""SQL for rules that count the clips of groups: shares, weights, and limits by group."""

from __future__ import annotations

from fractions import Fraction

from clipmill.schemas.sql_text import literal
from clipmill.schemas.words import counted


def part_of(fraction: float, count: str) -> str:
    """This share of a count, rounded up: in whole numbers, so the same on every machine."""
    exact = Fraction(str(fraction))
    above, below = exact.numerator, exact.denominator
    return f"(({above} * {count} + {below - 1}) // {below})"


def weighted_by_group(source: str, group: str, weight: str) -> tuple[str, str]:
    """The clips of groups with `of_group`, and what to multiply -ln(u) by: 1 / their weight."""
    sizes = (
        f"SELECT {group} AS _of, count(*) AS of_group FROM {source} WHERE {group} IS NOT NULL "
        f"GROUP BY {group}"
    )
    reach = f"(SELECT s.*, of_group FROM {source} AS s JOIN ({sizes}) AS g ON g._of = s.{group})"
    return reach, " * sqrt(of_group)" if weight == "inverse_sqrt" else " * of_group"


def largest_shares(source: str, target: str, group: str) -> str:
    """A query for the number of groups, and the largest group's clips and all, before and after."""
    sizes = (
        f"SELECT count(*) AS n, count(t.id) AS m FROM {source} AS s LEFT JOIN {target} AS t "
        f"USING (id) WHERE s.{group} IS NOT NULL GROUP BY s.{group}"
    )
    return f"SELECT count(*), max(n), sum(n), max(m), sum(m) FROM ({sizes})"


def describe_shares(
    per: str, groups: int, most: int | None, clips: int | None, left: int | None, kept: int | None
) -> str:
    """What drawing did to the largest group."""
    if not clips or not kept:
        return f"no clip has a {per}"
    assert most is not None
    assert left is not None
    return (
        f"{counted(groups, 'group')} by {per}: the largest had {most / clips:.1%} of the clips, "
        f"and now has {left / kept:.1%}"
    )


def limits(group: str, clips: dict[str | None, int]) -> tuple[str, bool]:
    """How many clips of each group may stay, as SQL; and whether null counts as a group."""
    cases = "".join(
        f" WHEN CAST({group} AS VARCHAR) = {literal(name)} THEN {number}"
        for name, number in clips.items()
        if name not in (None, "*")
    )
    rest = clips.get("*", 0)
    null = clips.get(None)
    first = f" WHEN {group} IS NULL THEN {null}" if null is not None else ""
    both = first + cases
    return (f"(CASE{both} ELSE {rest} END)" if both else str(rest)), null is not None
