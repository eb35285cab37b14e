"""`clipmill runs`: lists the runs so far."""

from __future__ import annotations

from pathlib import Path

import clipmill
from clipmill.jobs.sql import answer


def print_runs(dataset: Path, *, format: str = "table", output: Path | None = None) -> None:
    """The runs, oldest first; as a table without the settings."""
    columns = "*"
    if format == "table":
        columns = (
            "run_id, strftime(started_at, '%Y-%m-%d %H:%M') AS started_at, "
            "round(epoch(finished_at - started_at), 1) AS seconds, state, recipe, engine, "
            "code_version, array_to_string(list_sort(list_distinct([regexp_replace(m.reference, "
            "'^.*/([^/]+/[^/]+)$', '\\1') || coalesce('@' || m.revision, '') "
            "FOR m IN flatten([s.models FOR s IN stages]) IF m.reference IS NOT NULL])), ', ') "
            "AS models"
        )
    with clipmill.open(dataset) as opened:
        answer(opened, f"SELECT {columns} FROM runs ORDER BY started_at", format, output)
