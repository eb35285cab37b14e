"""A page with key frames of an audit's clips, to look at while labelling."""

from __future__ import annotations

from pathlib import Path

from clipmill.jobs.report.page import check_page, render, write_page
from clipmill.jobs.report.pictures import make_strips
from clipmill.jobs.report.sample_clips import sample_of
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.catalog.kept_frames import ClipSpan
from clipmill.pipeline.dataset.audit_records import AuditRecord
from clipmill.schemas.sql_text import literal

DEFAULT_QUESTION = "Should this clip be kept?"
_NOT_SCORES = ("start_seconds", "end_seconds", "duration_seconds", "fps")


def write_audit_page(
    dataset: Path, record: AuditRecord, output: Path, *, blind: bool = False
) -> int:
    """Writes the page; returns its size in bytes. `blind` leaves out the scores."""
    check_page(dataset, output, "--page")
    ids = [clip.clip_id for clip in record.sample]
    listed = ", ".join(map(literal, ids)) or "NULL"
    with open_catalog(dataset) as catalog:
        found = catalog.execute(f"SELECT * FROM clips WHERE clip_id IN ({listed})")
        names = [name for name, *_ in found.description]
        rows = {
            row["clip_id"]: row
            for row in (dict(zip(names, values, strict=True)) for values in found.fetchall())
        }
        strips = make_strips(
            catalog,
            [
                ClipSpan(clip, row["video_id"], row["start_seconds"], row["end_seconds"])
                for clip, row in rows.items()
            ],
        )
    samples = []
    for place, clip in enumerate(record.sample, 1):
        if (row := rows.get(clip.clip_id)) is None:
            continue
        label = {True: ": yes", False: ": no", None: ""}[clip.label]
        scores = [] if blind else score_names(row)
        samples.append(
            sample_of(row, strips.get(clip.clip_id), scores, f"{place} of {len(ids)}{label}")
        )
    context = {
        "record": record,
        "question": record.question or DEFAULT_QUESTION,
        "samples": samples,
    }
    return write_page(output, render(context, "audit.html"), "--page")


def score_names(row: dict[str, object]) -> list[str]:
    """The columns of a clip that are scores."""
    return [
        name for name, value in row.items() if isinstance(value, float) and name not in _NOT_SCORES
    ]
