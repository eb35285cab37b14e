"""Runs scan_videos and split_clips on single files, like the runner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill.schemas.tables import SPAN
from clipmill.stages.protocol import Workspace
from clipmill.stages.split_clips import SplitClips

OUTCOME = ("rejection", "error")


def source_table(
    path: Path | str,
    spans: Sequence[tuple[float, float]] | None = None,
    extra: dict[str, str] | None = None,
) -> pa.Table:
    given = None
    if spans is not None:
        given = [
            {"start_seconds": a, "end_seconds": b, "caption": f"span {i}", "extra": []}
            for i, (a, b) in enumerate(spans)
        ]
    return pa.table(
        {
            "video_id": ["video"],
            "path": [str(path)],
            "spans": pa.array([given], pa.list_(SPAN)),
            "caption_given": pa.array(["as given"], pa.string()),
            "extra": pa.array([extra], pa.map_(pa.string(), pa.string())),
        }
    )


def scan(
    path: Path | str,
    workspace: Workspace,
    spans: Sequence[tuple[float, float]] | None = None,
    extra: dict[str, str] | None = None,
    **settings: Any,
) -> dict[str, pa.Table]:
    """The tables of scan_videos for one file; `settings` are those of split_clips."""
    step = SplitClips(**settings).steps()[0]
    with step.open(workspace) as transform:
        return transform(source_table(path, spans, extra))


def split(
    scanned: dict[str, pa.Table],
    workspace: Workspace,
    spans: Sequence[tuple[float, float]] | None = None,
    **settings: Any,
) -> dict[str, pa.Table]:
    """The tables of split_clips for the results of a scan."""
    stage = SplitClips(**settings)
    table = scanned["scan_videos"].drop(list(OUTCOME))
    source = source_table("unused", spans)
    for name in ("spans", "caption_given"):
        table = table.append_column(name, source[name])
    with stage.open(workspace) as transform:
        return transform(table)


def run(
    path: Path,
    tmp_path: Path,
    spans: Sequence[tuple[float, float]] | None = None,
    extra: dict[str, str] | None = None,
    **settings: Any,
) -> dict[str, list[dict[str, Any]]]:
    """Both steps; every table as a list of rows."""
    workspace = Workspace(tmp_path, tmp_path)
    scanned = scan(path, workspace, spans, extra, **settings)
    row = scanned["scan_videos"].to_pylist()[0]
    tables = dict(scanned)
    if not (row["error"] or row["rejection"]):
        tables |= split(scanned, workspace, spans, **settings)
    return {name: table.to_pylist() for name, table in tables.items()}
