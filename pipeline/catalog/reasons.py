"""Counts why rows were rejected, failed or skipped: by rule, by kind, by gate or choice."""

from __future__ import annotations

import math
import re
from typing import TypedDict

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.dataset.run_records import of_no_download

# The detail of a rule that compares a value with a setting: `180 < 360`.
_COMPARED = re.compile(r"(-?\d+(?:\.(\d+))?) ([<>]) -?[\d.]+")


class RejectionReason(TypedDict):
    """Rows that one rule rejected."""

    rule: str
    count: int
    detail: str
    keep: str | None


class FailureReason(TypedDict):
    """Failures of one kind."""

    kind: str
    count: int
    message: str | None
    messages: int
    can_be_retried: int
    parts: int
    after_downloads: int


class SkipReason(TypedDict):
    """Rows that one gate, or one run's choice, left out of one stage."""

    stage: str
    detail: str
    count: int


class Reasons(TypedDict):
    """Why rows were rejected, failed or skipped."""

    rejections: list[RejectionReason]
    failures: list[FailureReason]
    skipped: list[SkipReason]


def reasons(catalog: Catalog, *, skipped: bool = True) -> Reasons:
    """`rejections` by rule, `failures` by kind and `skipped` by stage and reason, the most common
    first.

    For a rule that compares, `detail` is that of the row furthest from the limit, and `keep` the
    setting that would keep every row, in the form of `--set`. For failures, `message` is the most
    common of `messages` different ones; `parts` counts those of kept rows, which no stage's
    `failed` includes, and `after_downloads` those of stages that fetch nothing. If no row was
    `skipped`, none is looked for.
    """
    # The number before the sign, so that the furthest row comes first.
    number = r"TRY_CAST(regexp_extract(detail, '^(-?[0-9.]+) [<>] ', 1) AS DOUBLE)"
    rows = catalog.execute(
        f"SELECT rule, count(*) AS n, arg_min(detail, CASE WHEN detail LIKE '% > %' "
        f"THEN -{number} ELSE {number} END), min(detail) FROM rejections GROUP BY rule "
        "ORDER BY n DESC, rule"
    ).fetchall()
    settings = _settings(catalog)
    rejections: list[RejectionReason] = []
    for rule, count, furthest, example in rows:
        detail = furthest or example or ""
        rejections.append(
            {
                "rule": rule,
                "count": count,
                "detail": detail,
                "keep": _kept_by(settings.get(rule), detail),
            }
        )
    rows = catalog.execute(
        "SELECT kind, count(*) AS n, mode(message), count(DISTINCT message), "
        "count(*) FILTER (stage <> 'ingest'), count(*) FILTER (contains(stage, '.')), "
        f"count(*) FILTER ({of_no_download(catalog.layout.record)}) "
        "FROM failures GROUP BY kind "
        "ORDER BY n DESC, kind"
    ).fetchall()
    failures: list[FailureReason] = [
        {
            "kind": kind,
            "count": count,
            "message": message,
            "messages": messages,
            "can_be_retried": can_be_retried,
            "parts": parts,
            "after_downloads": after,
        }
        for kind, count, message, messages, can_be_retried, parts, after in rows
    ]
    if not skipped:
        return {"rejections": rejections, "failures": failures, "skipped": []}
    rows = catalog.execute(
        "SELECT stage, coalesce(detail, '') AS detail, count(*) AS n FROM skipped "
        "GROUP BY ALL ORDER BY n DESC, stage, detail"
    ).fetchall()
    skips: list[SkipReason] = [
        {"stage": stage, "detail": detail, "count": count} for stage, detail, count in rows
    ]
    return {"rejections": rejections, "failures": failures, "skipped": skips}


def _settings(catalog: Catalog) -> dict[str, str]:
    """The setting's path in the newest run's recipe, by the name that rules use for it."""
    record = catalog.layout.record
    return {
        f"{stage['name']}.{setting}": f"{stage['stage']}.{setting}"
        for stage in (record["stages"] if record else ())
        for setting in stage["settings"]
    }


def _kept_by(setting: str | None, detail: str) -> str | None:
    """`label.setting=value` with the nearest value that would keep the row with this detail."""
    found = _COMPARED.fullmatch(detail)
    if setting is None or found is None:
        return None
    # The shown value was rounded, so drop its last decimal, rounding towards keeping.
    decimals = max(len(found[2] or "") - 1, 0)
    nearest = math.floor if found[3] == "<" else math.ceil
    value = nearest(float(found[1]) * 10**decimals) / 10**decimals
    return f"{setting}={value:g}" if value > 0 else f"{setting}=null"
