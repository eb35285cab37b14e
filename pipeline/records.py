"""Run records: one JSON file a run, which says what the run's tables were made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.fence import goes_on
from pipeline.shards import write_json
from schemas.command_line import shell_word
from schemas.errors import UsageError, storable

RUNS = "runs"
KILLED = "killed"


def write_run(dataset: Path, record: dict[str, Any]) -> None:
    write_json(dataset / RUNS / f"{record['run_id']}.json", record)


def run_records(dataset: Path) -> list[dict[str, Any]]:
    """All runs, oldest first; run ids sort by the time they started."""
    return [_as_it_is(dataset, json.loads(path.read_text())) for path in _paths(dataset)]


def latest_run(dataset: Path) -> dict[str, Any] | None:
    """The newest run: its fingerprints are the current ones."""
    paths = _paths(dataset)
    return _as_it_is(dataset, json.loads(paths[-1].read_text())) if paths else None


def note_killed_runs(dataset: Path) -> bool:
    """Records of the runs before this one that no longer go on; the caller holds the lock.

    True if there are any: such runs leave files behind.
    """
    killed = False
    for path in _paths(dataset):
        # Told by its text first: there may be thousands, and nearly all are done.
        text = path.read_text()
        if '"state": "running"' in text:
            write_run(dataset, {**json.loads(text), "state": KILLED})
            killed = True
    return killed


def _paths(dataset: Path) -> list[Path]:
    return sorted((dataset / RUNS).glob("[!.]*.json"))


def _as_it_is(dataset: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The record; one that says its run goes on, and that was killed, says so."""
    if record.get("state") == "running" and not goes_on(dataset, record["run_id"]):
        return {**record, "state": KILLED}
    return record


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
