"""The views `audits` and `audit_labels`, from the files of the audits."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill.pipeline.dataset.audit_records import audit_records
from clipmill.schemas.step_tables import Columns

_TIME = pa.timestamp("us", tz="UTC")
AUDITS_VIEW: Columns = (
    ("name", pa.string()),
    ("predicate", pa.string()),
    ("recipe", pa.string()),
    ("subset", pa.string()),
    ("rule", pa.int32()),
    ("says", pa.string()),
    ("score", pa.string()),
    ("operator", pa.string()),
    ("threshold", pa.float64()),
    ("question", pa.string()),
    ("seed", pa.int64()),
    ("n", pa.int64()),
    ("labelled", pa.int64()),
    ("yes", pa.int64()),
    ("clips", pa.int64()),
    ("clips_kept", pa.int64()),
    ("without_value", pa.int64()),
    ("precision", pa.float64()),
    ("precision_low", pa.float64()),
    ("precision_high", pa.float64()),
    ("recall", pa.float64()),
    ("recall_low", pa.float64()),
    ("recall_high", pa.float64()),
    ("labelled_by", pa.list_(pa.string())),
    ("created_at", _TIME),
    ("updated_at", _TIME),
    ("snapshot", pa.string()),
)
AUDIT_LABELS_VIEW: Columns = (
    ("name", pa.string()),
    ("clip_id", pa.string()),
    ("video_id", pa.string()),
    ("value", pa.float64()),
    ("kept", pa.bool_()),
    ("label", pa.bool_()),
    ("weight", pa.float64()),
    ("labelled_by", pa.string()),
    ("labelled_at", _TIME),
)


def audit_rows(dataset: Path) -> list[dict[str, Any]]:
    """One row per audit, oldest first."""
    rows = []
    for record in sorted(audit_records(dataset), key=lambda one: (one.created_at, one.name)):
        found = record.audited
        limits = {
            f"{name}{end}": None if one is None else getattr(one, part)
            for name, one in (("precision", found.precision), ("recall", found.recall))
            for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
        people = record.population
        shown = {name: getattr(record, name, None) for name, _ in AUDITS_VIEW}
        rows.append(
            {
                **shown,
                **limits,
                "n": len(record.sample),
                "clips": people.clips,
                "clips_kept": people.kept,
                "without_value": people.without_value + people.not_a_number,
                "created_at": _time(record.created_at),
                "updated_at": _time(record.updated_at),
            }
        )
    return rows


def audit_label_rows(dataset: Path) -> list[dict[str, Any]]:
    """One row per clip of each sample, labelled or not."""
    return [
        {
            "name": record.name,
            "clip_id": clip.clip_id,
            "video_id": clip.video_id,
            "value": clip.value,
            "kept": record.is_kept(clip),
            "label": clip.label,
            "weight": record.weight(clip),
            "labelled_by": clip.labelled_by,
            "labelled_at": _time(clip.labelled_at),
        }
        for record in audit_records(dataset)
        for clip in record.sample
    ]


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
