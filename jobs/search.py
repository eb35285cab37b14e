"""`clipmill search`: prints the clips closest to some words, or to another clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

import clipmill
from clipmill.jobs.formats import write_rows
from clipmill.schemas.errors import UsageError

_SHOWN = ("search_cosine", "clip_id", "start_seconds", "end_seconds")
_TEXTS = ("caption", "caption_given", "title")


def search(
    dataset: Path,
    words: Sequence[str],
    *,
    like: str | None,
    by: str | None,
    where: str | None,
    limit: int,
    format: str,
    output: Path | None,
    memory_limit: str | None,
) -> None:
    """Prints the closest clips: in a table what they are known by, in other formats everything."""
    if bool(words) == (like is not None):
        raise UsageError("give words to search for, or a clip's id with --like; one of both")
    with clipmill.open(dataset, memory_limit=memory_limit) as opened:
        found = opened.search(
            " ".join(words) if words else None, like=like, by=by, where=where, limit=limit
        )
        table: pa.Table = found.table
        if format == "table":
            texts = [name for name in _TEXTS if table[name].null_count < len(table)]
            table = table.select([*_SHOWN, *texts])
            cosines = [round(cosine, 3) for cosine in table["search_cosine"].to_pylist()]
            table = table.set_column(0, "search_cosine", pa.array(cosines, pa.float64()))
        write_rows(table.to_reader(), format, output)
