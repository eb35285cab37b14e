"""`clipmill index`: joins clips and videos once, for faster queries."""

from __future__ import annotations

from pathlib import Path

import duckdb

from clipmill.schemas.command_line import shell_word
from clipmill.schemas.words import counted


def index_dataset(dataset: Path, *, wait: bool = False) -> None:
    """Builds or updates a dataset's index, and reports on it."""
    from clipmill.pipeline.catalog.index_writer import update_index
    from clipmill.pipeline.dataset.locks import dataset_lock
    from clipmill.pipeline.dataset.run_records import require_dataset
    from clipmill.schemas.errors import ClipmillError

    dataset = require_dataset(dataset).absolute()
    with dataset_lock(dataset, "index", wait=wait):
        try:
            report = update_index(dataset)
        except (OSError, duckdb.Error) as error:
            raise ClipmillError(f"the index could not be made: {error}") from error
    if report is None:
        print(
            "Nothing to index: the newest run has no videos split into clips, or a column has a "
            "type that can't be stored. Queries read the tables directly; see `clipmill status "
            f"{shell_word(dataset)}`."
        )
        return
    print(
        f"{counted(report.n_clips, 'clip')} in {counted(report.n_parts, 'part')}, "
        f"{report.n_new:,} built now."
    )
