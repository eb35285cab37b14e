"""Run records: one JSON file a run, which says what the run's tables were made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.shards import write_json
from schemas.command_line import shell_word
from schemas.errors import UsageError, storable

RUNS = "runs"


def write_run(dataset: Path, record: dict[str, Any]) -> None:
    write_json(dataset / RUNS / f"{record['run_id']}.json", record)


def run_records(dataset: Path) -> list[dict[str, Any]]:
    """All runs, oldest first; run ids sort by the time they started."""
    paths = sorted((dataset / RUNS).glob("[!.]*.json"))
    return [json.loads(path.read_text()) for path in paths]


def latest_run(dataset: Path) -> dict[str, Any] | None:
    """The newest run: its fingerprints are the current ones."""
    paths = sorted((dataset / RUNS).glob("[!.]*.json"))
    return json.loads(paths[-1].read_text()) if paths else None


def check_place(dataset: Path) -> None:
    """UsageError where no catalog could be opened on `dataset`, whatever is in it."""
    place = str(dataset.absolute())
    if "\\" in place:
        raise UsageError(f"{dataset}: DuckDB, which reads the tables, takes a backslash in a "
                         "folder's name for a separator; give the dataset another place")
    try:
        place.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{storable(str(dataset))}: the folder's name is not UTF-8, so that no "
                         "table can be read there; give the dataset another place") from error


def require_dataset(dataset: Path) -> Path:
    """`dataset` if it is one, else a usage error that says what to do."""
    check_place(dataset)
    if not dataset.is_dir():
        raise UsageError(f"no dataset at {dataset}: the folder does not exist; "
                         f"make one with `clipmill run RECIPE --dataset {shell_word(dataset)}`")
    if not (dataset / RUNS).is_dir() and not (dataset / "sources").is_dir():
        raise UsageError(f"{dataset} is not a Clipmill dataset (it has no runs/ folder); "
                         f"make one with `clipmill run RECIPE --dataset {shell_word(dataset)}`")
    return dataset
