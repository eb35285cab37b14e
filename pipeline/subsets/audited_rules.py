"""Finds the audits of a frozen subset's rules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipmill.pipeline.dataset.audit_estimates import Estimate
from clipmill.pipeline.dataset.audit_records import AuditRecord, audit_records


def audits_of(dataset: Path, info: Mapping[str, Any]) -> list[AuditRecord]:
    """The audits with labels of a subset's rules, in the order of the rules."""
    found = [
        (number, record)
        for record in audit_records(dataset)
        if record.labelled and (number := rule_of(info, record)) is not None
    ]
    return [record for _, record in sorted(found, key=lambda one: (one[0], one[1].name))]


def rule_of(info: Mapping[str, Any], audit: AuditRecord) -> int | None:
    """The number of the subset's rule that an audit is about; None if it has no such rule.

    The same predicate, over a score made by the same step, is the same rule wherever it stands. A
    percentile is the same if its threshold is the same number.
    """
    verb, body = _verb(audit.rules[-1])
    crop = audit.rules[-1].get("crop")
    funnel = info.get("funnel") or [{} for _ in info["rules"]]
    for number, (rule, outcome) in enumerate(zip(info["rules"], funnel, strict=True), 1):
        its_verb, its_body = _verb(rule)
        same = (its_verb, _plain(its_body), rule.get("crop")) == (verb, _plain(body), crop)
        if not same or not _same_score(info, audit):
            continue
        if verb == "where" or any(
            (one["operator"], one["value"]) == (audit.operator, audit.threshold)
            for one in outcome.get("thresholds", ())
        ):
            return number
    return None


def _verb(rule: Mapping[str, Any]) -> tuple[str, Any]:
    return next((key, value) for key, value in rule.items() if key not in ("name", "crop"))


def _plain(body: Any) -> Any:
    return " ".join(body.split()) if isinstance(body, str) else body


def _same_score(info: Mapping[str, Any], audit: AuditRecord) -> bool:
    """Whether the step that made the score was the same when the subset was frozen."""
    if audit.scorer is None:
        return True
    column = info["scorers"].get(audit.score, {}).get("column", audit.score)
    step = info["catalog"]["steps"].get(audit.scorer["step"])
    return (
        column == audit.scorer["column"]
        and step is not None
        and step["fingerprint"] == audit.scorer["fingerprint"]
    )


def said(estimate: Estimate | None) -> str:
    """`71% (52–85%)`; a dash if the labels don't tell."""
    if estimate is None:
        return "–"
    low, high = (f"{100 * value:.0f}" for value in (estimate.low, estimate.high))
    return f"{100 * estimate.value:.0f}% ({low}–{high}%)"
