"""The audits of thresholds for the page: what people's labels say about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipmill.jobs.report.numbers import number
from clipmill.pipeline.dataset.audit_records import audit_records
from clipmill.pipeline.subsets.audited_rules import audits_of, said
from clipmill.pipeline.subsets.freeze import FrozenSubset


@dataclass(frozen=True)
class AuditMade:
    """One audit; `others` are its other thresholds, each with precision, recall and clips."""

    name: str
    comparison: str
    operator: str
    says: str
    question: str | None
    precision: str
    recall: str
    clips: int
    labelled: int
    sampled: int
    by: str
    on: str
    others: list[tuple[str, str, str, int]]


def audits_made(dataset: Path, subset: FrozenSubset | None) -> list[AuditMade]:
    """The audits with labels: all of the dataset, or those of a subset's rules."""
    records = (
        [record for record in audit_records(dataset) if record.labelled]
        if subset is None
        else audits_of(dataset, subset.info)
    )
    return [
        AuditMade(
            record.name,
            record.comparison,
            record.operator,
            " ".join(record.says.split()),
            record.question,
            said(record.audited.precision),
            said(record.audited.recall),
            record.audited.clips,
            record.labelled,
            len(record.sample),
            ", ".join(record.labelled_by),
            (record.updated_at or record.created_at)[:10],
            [
                (number(at.value), said(one.precision), said(one.recall), one.clips)
                for at, one in record.table
                if at.value != record.threshold
            ],
        )
        for record in records
    ]
