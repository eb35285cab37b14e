"""What became of every input: the funnel with reasons, failures, and a subset's rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmill.jobs.report.sample_clips import shortened
from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.status import Status
from clipmill.pipeline.subsets.freeze import FrozenSubset
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.step_tables import SKIPPED_RULE

SHOWN_REASONS = 30
SHOWN_MESSAGES = 20
# The variable parts of otherwise equal messages: addresses, paths, ids and numbers.
_SAME_MESSAGE = (
    (r"[a-z][a-z0-9+.-]*://[^\s''\"]+", "URL"),
    (r"(/[^\s/''\"]+){2,}", "PATH"),
    (r"\b[0-9a-f]{12,}\b", "ID"),
    (r"\d+(\.\d+)?", "N"),
)


@dataclass(frozen=True)
class FunnelStep:
    """One stage of the funnel; parts are per cent of the widest stage with the same unit."""

    stage: str
    noun: str
    inputs: int
    kept: int
    rejected: int
    failed: int
    skipped: int
    pending: int
    parts: list[tuple[str, float, float]] = field(default_factory=list)
    """(outcome, from, width) on a bar of 100."""


@dataclass(frozen=True)
class Reason:
    """Why inputs were rejected or skipped: a rule, a count, and one example."""

    stage: str
    rule: str
    count: int
    example: str | None


@dataclass(frozen=True)
class Failure:
    """Failures of one kind at one stage with the same message."""

    stage: str
    kind: str
    count: int
    message: str
    attempts: int


@dataclass(frozen=True)
class Failures:
    """All failures, and the most common of them."""

    total: int
    kinds: list[tuple[str, int]]
    messages: list[Failure]
    more: int
    """Failures with other messages."""
    commands: list[tuple[str, str]]
    """Commands to type, with their effect."""


@dataclass(frozen=True)
class RuleStep:
    """One rule of the subset's recipe."""

    number: int
    says: str
    verb: str
    clips: int
    videos: int
    hours: float
    took: int
    because_null: int
    width: float
    notes: list[str]


def funnel(report: Status, catalog: Catalog) -> list[FunnelStep]:
    """The stages in order, ingest first, from `status_report`."""
    keys = {table.stage: table.key for table in catalog.layout.steps}
    nouns = {"source_key": "sources", "video_id": "videos", "clip_id": "clips"}
    steps = [FunnelStep("ingest", "sources", *_counts(report["ingest"]))]
    # A stage of several steps has its first step's inputs.
    for stage in report["stages"]:
        noun = nouns.get(keys.get(stage["stage"], ""), "rows")
        steps.append(FunnelStep(stage["stage"], noun, *_counts(stage)))
    widest: dict[bool, int] = {}
    for step in steps:
        clips = step.noun == "clips"
        widest[clips] = max(widest.get(clips, 0), step.inputs)
    for step in steps:
        at = 0.0
        for outcome in ("kept", "rejected", "failed", "skipped", "pending"):
            width = 100 * getattr(step, outcome) / (widest[step.noun == "clips"] or 1)
            if width:
                step.parts.append((outcome, round(at, 3), round(width, 3)))
            at += width
    return steps


def _counts(found: Mapping[str, Any]) -> tuple[int, int, int, int, int, int]:
    return (
        found["inputs"],
        found["kept"],
        found["rejected"],
        found["failed"],
        found["skipped"],
        found.get("pending", 0),
    )


def reasons(catalog: Catalog) -> tuple[list[Reason], int]:
    """The rules with the most rejections, and the number of rejections by the others."""
    rows = catalog.execute(
        "SELECT stage, rule, count(*) AS n, min(detail) FROM rejections GROUP BY stage, rule "
        "ORDER BY n DESC, stage, rule"
    ).fetchall()
    shown = [
        Reason(stage, shortened(rule, 80) or "?", count, shortened(detail, 160))
        for stage, rule, count, detail in rows[:SHOWN_REASONS]
    ]
    return shown, sum(row[2] for row in rows[SHOWN_REASONS:])


def skips(report: Status) -> list[Reason]:
    """The gates and choices that left out the most rows."""
    return [
        Reason(one["stage"], SKIPPED_RULE, one["count"], shortened(one["detail"], 160))
        for one in report["skipped"][:SHOWN_REASONS]
    ]


def shots_without_clips(catalog: Catalog) -> list[tuple[str, int]]:
    """Rules by which shots gave no clip, with counts."""
    rows = catalog.execute(
        "SELECT rule, count(*) AS n FROM shots WHERE rule IS NOT NULL "
        "GROUP BY rule ORDER BY n DESC, rule"
    ).fetchall()
    return [(shortened(rule, 80) or "?", count) for rule, count in rows[:SHOWN_REASONS]]


def failures(catalog: Catalog, dataset: Path) -> Failures:
    """Current failures, by kind and message."""
    same = "message"
    for pattern, word in _SAME_MESSAGE:
        same = f"regexp_replace({same}, '{pattern}', '{word}', 'g')"
    rows = catalog.execute(
        f"SELECT stage, kind, count(*) AS n, min(message), max(attempts) FROM failures "
        f"GROUP BY stage, kind, {same} ORDER BY n DESC, stage, kind, min(message)"
    ).fetchall()
    kinds: dict[str, int] = {}
    for row in rows:
        kinds[row[1]] = kinds.get(row[1], 0) + row[2]
    shown = [
        Failure(stage, kind, count, shortened(message, 300) or "(no message)", attempts or 0)
        for stage, kind, count, message, attempts in rows[:SHOWN_MESSAGES]
    ]
    place = shell_word(dataset)
    commands = [(f"clipmill failures {place}", "lists them all, with remedies")] if rows else []
    # Rows that failed at ingest never reached a stage: `failures` has remedies.
    tried: dict[str, int] = {}
    for stage, kind, count, *_ in rows:
        if stage != "ingest":
            tried[kind] = tried.get(kind, 0) + count
    commands += [
        (
            f"clipmill retry {place} --kind {kind}",
            f"retries the {count:,} {kind} failures, and only those",
        )
        for kind, count in sorted(tried.items())
        if kind in ("transient", "blocked")
    ]
    if tried:
        commands.append(
            (
                f"clipmill retry {place}",
                "retries all of them"
                if tried == kinds
                else "retries all of them except those of ingest",
            )
        )
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    more = sum(row[2] for row in rows[SHOWN_MESSAGES:])
    return Failures(sum(kinds.values()), ordered, shown, more, commands)


def subset_funnel(subset: FrozenSubset) -> list[RuleStep]:
    """The rules of a subset's recipe with what each left, from its file; the catalog first."""
    whole = subset.info.get("catalog") or {}
    most = whole.get("clips") or 1
    steps = [
        RuleStep(
            0,
            "the catalog at that time",
            "",
            whole.get("clips", 0),
            whole.get("videos", 0),
            whole.get("hours", 0.0),
            0,
            0,
            100.0,
            [],
        )
    ]
    funnel = subset.info.get("published") or {}
    published = {step["rule"]: step for step in funnel.get("steps", ()) if step["rule"] is not None}
    for rule in subset.info.get("funnel") or ():
        notes = [shortened(note, 200) or "" for note in rule.get("notes") or ()]
        if step := published.get(rule["number"]):
            notes.append(
                f"here {step['share']:.3g}% of all are left; {step['published_share']:.3g}% where "
                "the recipe was published" + ("" if funnel["verified"] else " (unverified)")
            )
        left, took = rule["remaining"], rule["took"]
        steps.append(
            RuleStep(
                rule["number"],
                _said(rule),
                rule["verb"],
                left["clips"],
                left["videos"],
                left["hours"],
                took["clips"],
                took.get("because_null") or 0,
                round(100 * left["clips"] / most, 3),
                notes,
            )
        )
    return steps


def _said(rule: dict[str, Any]) -> str:
    says = shortened(rule["says"], 300) or ""
    return f"{shortened(rule['name'], 100)}: {says}" if rule.get("name") else says
